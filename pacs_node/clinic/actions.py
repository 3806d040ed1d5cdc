"""Every write of the AE registry, the refusals, the cached worklist and the local logins."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, Final

from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from gateway.actions import record_refused
from pacs_node.clinic import audit
from pacs_node.clinic.models import ApplicationEntity, RefusedAssociation, WorklistEntry
from pacs_node.config import config
from standards import charsets, transfer_syntaxes
from standards.errors import PermanentError
from worklist.feed import DeviceRules, WorklistItem


@transaction.atomic
def apply_schedule(items: Iterable[WorklistItem], removed: Iterable[str]) -> None:
    """Put or replace these Scheduled Procedure Steps and take the removed ids away; applying twice changes nothing."""
    for item in items:
        WorklistEntry.objects.update_or_create(
            scheduled_procedure_step_id=item.scheduled_procedure_step_id,
            defaults={
                "scheduled_station_ae_title": item.scheduled_station_ae_title,
                "starts_at": item.starts_at,
                "item": item.model_dump(mode="json"),
            },
        )
    WorklistEntry.objects.filter(scheduled_procedure_step_id__in=list(removed)).delete()


@transaction.atomic
def apply_devices(devices: Iterable[DeviceRules]) -> None:
    """Replace what the centre said of application entities; what a person admitted here stays as it is."""
    rules = {device.ae_title: device for device in devices}
    local = set(
        ApplicationEntity.objects.filter(origin=ApplicationEntity.Origin.LOCAL).values_list("ae_title", flat=True)
    )
    ApplicationEntity.objects.filter(origin=ApplicationEntity.Origin.CENTRE).exclude(ae_title__in=list(rules)).delete()
    for ae_title, device in rules.items():
        if ae_title not in local:
            ApplicationEntity.objects.update_or_create(
                ae_title=ae_title,
                defaults={**device.model_dump(exclude={"ae_title"}), "origin": ApplicationEntity.Origin.CENTRE},
            )


@transaction.atomic
def admit(
    ae_title: str, *, actor: str, address: str = "", host: str = "", port: int = 0, character_set: str = ""
) -> ApplicationEntity:
    """Let an application entity in and forget its refusals. ``address`` is where ``actor`` sits, for the audit.

    An AE that is known but may not call from where it calls may call from anywhere afterwards.
    """
    entity, created = ApplicationEntity.objects.get_or_create(
        ae_title=ae_title,
        defaults={
            "character_set": character_set or config().default_character_set,
            "time_zone": config().time_zone,
            "host": host,
            "port": port,
        },
    )
    if not created:
        entity.address = ""
        entity.origin = ApplicationEntity.Origin.LOCAL
        if host:
            entity.host, entity.port = host, port
        entity.character_set = character_set or entity.character_set
        entity.save()
    RefusedAssociation.objects.filter(calling_ae_title=ae_title).delete()
    audit.record("ae.admitted", actor=actor, entity=ae_title, address=address)
    return entity


RIGHTS: Final = ("store", "query", "retrieve", "commit", "worklist")
_SMALLEST_PDU_BYTES: Final = 4096


@dataclass(frozen=True)
class EntityRules:
    """What a person says of an application entity; texts as typed, lists parted by commas or spaces."""

    rights: frozenset[str]
    addresses: str = ""
    host: str = ""
    port: int = 0
    uses_tls: bool = False
    character_set: str = ""
    issuer_of_patient_id: str = ""
    preferred_transfer_syntaxes: str = ""
    forbidden_transfer_syntaxes: str = ""
    maximum_pdu_bytes: int = 0
    quirks: frozenset[str] = frozenset()

    def columns(self) -> dict[str, Any]:
        """The columns of the registry.

        Raises: PermanentError "invalid-address", "invalid-port", "unknown-transfer-syntax", "unknown-character-set",
            "invalid-pdu-length".
        """
        if not 0 <= self.port <= 0xFFFF:
            raise PermanentError("invalid-port", str(self.port))
        if self.maximum_pdu_bytes and self.maximum_pdu_bytes < _SMALLEST_PDU_BYTES:
            raise PermanentError("invalid-pdu-length", str(self.maximum_pdu_bytes))
        if not charsets.is_known(self.character_set):
            raise PermanentError("unknown-character-set", self.character_set)
        return {
            **{f"may_{right}": right in self.rights for right in RIGHTS},
            "address": ",".join(_network(place) for place in _words(self.addresses)),
            "host": self.host.strip(),
            "port": self.port,
            "uses_tls": self.uses_tls,
            "character_set": self.character_set,
            "issuer_of_patient_id": self.issuer_of_patient_id.strip(),
            "preferred_transfer_syntaxes": _syntaxes(self.preferred_transfer_syntaxes),
            "forbidden_transfer_syntaxes": _syntaxes(self.forbidden_transfer_syntaxes),
            "maximum_pdu_bytes": self.maximum_pdu_bytes,
            "quirks": sorted(self.quirks & set(ApplicationEntity.Quirk.values)),
        }


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _network(place: str) -> str:
    try:
        ip_network(place, strict=False)
    except ValueError as error:
        raise PermanentError("invalid-address", place) from error
    return place


def _syntaxes(text: str) -> str:
    for uid in _words(text):
        if not transfer_syntaxes.is_known(uid):
            raise PermanentError("unknown-transfer-syntax", uid)
    return ",".join(_words(text))


@transaction.atomic
def set_rules(entity: ApplicationEntity, rules: EntityRules, *, actor: str, address: str = "") -> None:
    """Change what an application entity may do; what a person said, the centre does not take back.

    Raises: as ``EntityRules.columns``.
    """
    columns = rules.columns()
    changed = {name: value for name, value in columns.items() if getattr(entity, name) != value}
    for name, value in changed.items():
        setattr(entity, name, value)
    entity.origin = ApplicationEntity.Origin.LOCAL
    entity.save()
    audit.record("ae.changed", actor=actor, entity=entity.ae_title, address=address, detail=changed)


@transaction.atomic
def add_person(username: str, *, engineer: bool, actor: str) -> str:
    """Make a local login, which no roster takes away; its generated password. An engineer may admit devices.

    Raises: PermanentError "invalid-username", "username-taken".
    """
    user = User(username=User.normalize_username(username), is_staff=engineer)
    try:
        user.clean_fields(exclude=["password"])
    except ValidationError as error:
        raise PermanentError("invalid-username", " ".join(error.messages)) from error
    if User.objects.filter(username__iexact=user.username).exists():
        raise PermanentError("username-taken", username)
    password = secrets.token_urlsafe(12)
    user.set_password(password)
    user.save()
    audit.record("person.added", actor=actor, entity=user.username, detail={"engineer": engineer})
    return password


@transaction.atomic
def record_refusal(*, calling_ae_title: str, called_ae_title: str, address: str, reason: str) -> RefusedAssociation:
    """Count a peer that was turned away. The first attempt of each kind, and
    each tenfold of it, goes to the audit and the centre: a device that knocks every second must not flood them."""
    row, created = RefusedAssociation.objects.get_or_create(
        calling_ae_title=calling_ae_title[:16],
        called_ae_title=called_ae_title[:16],
        address=address[:64],
        reason=reason[:64],
    )
    if not created:
        RefusedAssociation.objects.filter(pk=row.pk).update(attempts=F("attempts") + 1, last_at=timezone.now())
        row.refresh_from_db()
    if str(row.attempts).strip("0") == "1":
        record_refused(
            calling_ae_title=row.calling_ae_title,
            called_ae_title=row.called_ae_title,
            address=row.address,
            reason=row.reason,
        )
        audit.record(
            "association.refused",
            actor=row.calling_ae_title or "unknown",
            outcome="refused",
            entity=row.called_ae_title,
            address=row.address,
            detail={"reason": row.reason, "attempts": row.attempts},
        )
    return row

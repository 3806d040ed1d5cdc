"""Every write of local registration: each one transaction with the worklist entry, the audit row and the event."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from django.db import IntegrityError, transaction
from django.utils import timezone

from gateway import actions as gateway
from gateway.envelope import OrderCancelled, OrderChanged, OrderRegistered
from gateway.models import JoinState
from pacs_node.clinic import audit
from pacs_node.clinic.actions import apply_schedule
from pacs_node.clinic.models import ApplicationEntity, WorklistEntry
from pacs_node.offline import accessions, merging, queries
from pacs_node.offline.models import LocalStep
from standards.errors import ConflictError, PermanentError
from standards.person_names import fold
from standards.uids import new_uid
from worklist.feed import WorklistItem

PRIORITIES: Final = ("ROUTINE", "HIGH", "STAT")
SEXES: Final = ("", "M", "F", "O")
_LETTERS: Final = "ABCDEFGHJKMNPQRSTVWXYZ23456789"
_LONGEST: Final = timedelta(hours=10)


@dataclass(frozen=True)
class Person:
    """Who is examined. Without ``patient_id`` the node gives one. ``unknown``: nobody knows yet who it is."""

    name: str = ""
    birth_date: str = ""
    sex: str = ""
    patient_id: str = ""
    issuer: str = ""
    unknown: bool = False


@dataclass(frozen=True)
class Examination:
    """What is done, on which device, when and how urgently. ``modality`` counts where the device names none."""

    ae_title: str
    description: str
    starts_at: datetime
    minutes: int = 20
    priority: str = "ROUTINE"
    modality: str = ""
    reason: str = ""
    referring_physician_name: str = ""


@transaction.atomic
def register(
    person: Person, examination: Examination, *, key: str, actor: str, unknown_name: str = "Unknown", address: str = ""
) -> LocalStep:
    """Order and schedule an examination here; it is on the Modality Worklist at once. The same ``key`` makes it once.

    Raises: PermanentError "name-missing", "device-unknown", "modality-missing", "slot-invalid",
        "description-missing", "priority-unknown", "patient-unknown".
    """
    known = LocalStep.objects.filter(request_key=key).first()
    if known is not None:
        return known
    if not person.unknown and not fold(person.name):
        raise PermanentError("name-missing", "A patient needs a name.")
    if person.patient_id and not queries.knows_patient(person.patient_id, person.issuer):
        raise PermanentError("patient-unknown", person.patient_id)
    taken = accessions.take_number()
    values = _examination(examination) | _person(person, taken.number, unknown_name)
    values |= {
        "scheduled_procedure_step_id": f"{taken.number}-1"[:16],
        "accession_number": taken.number,
        "requested_procedure_id": taken.number,
        "study_instance_uid": new_uid(),
        "institution_name": _site_name(),
        "status": "SCHEDULED",
    }
    if not values["issuer_of_patient_id"]:
        values["issuer_of_patient_id"] = _device(examination.ae_title).issuer_of_patient_id
    item = WorklistItem.model_validate(values)
    step = LocalStep(
        scheduled_procedure_step_id=item.scheduled_procedure_step_id,
        accession_number=item.accession_number,
        study_instance_uid=item.study_instance_uid,
        made_here=True,
        request_key=key,
        item=item.model_dump(mode="json"),
        changed=list(item.model_dump()),
        revision=1,
        unknown_patient=person.unknown,
        emergency_number=taken.is_emergency,
        changed_by=actor[:150],
    )
    try:
        with transaction.atomic():
            step.save(force_insert=True)
    except IntegrityError:
        # The same form, sent twice at once: the other one made it.
        raise ConflictError("sent-twice", key) from None
    apply_schedule([item], [])
    merging.deliver_at(item)
    gateway.record_fact(
        OrderRegistered(
            item=item,
            revision=1,
            by=actor,
            at=timezone.now(),
            unknown_patient=person.unknown,
            emergency_number=taken.is_emergency,
        )
    )
    detail = {"device": item.scheduled_station_ae_title, "priority": item.requested_procedure_priority}
    audit.record("order.registered", actor=actor, entity=item.accession_number, address=address, detail=detail)
    return step


@transaction.atomic
def change(
    entry: WorklistEntry, person: Person, examination: Examination, *, actor: str, seen: str = "", address: str = ""
) -> LocalStep:
    """Change a step, made here or by the centre. ``seen``: ``mark_of`` the item that the person had on the screen.

    Raises: ConflictError "changed-meanwhile", "step-gone"; PermanentError as ``register`` does.
    """
    before, step = _locked(entry)
    if seen and seen != mark_of(before):
        raise ConflictError("changed-meanwhile", "Somebody else or the centre changed it meanwhile.")
    if not person.unknown and not fold(person.name):
        raise PermanentError("name-missing", "A patient needs a name.")
    values = _examination(examination)
    identity = {
        "patient_name": before.patient_name if person.unknown else person.name,
        "patient_birth_date": person.birth_date,
        "patient_sex": person.sex,
    }
    item = WorklistItem.model_validate(before.model_dump(mode="json") | values | identity)
    changed = [name for name in WorklistItem.model_fields if getattr(item, name) != getattr(before, name)]
    if not changed:
        return step
    step.item = item.model_dump(mode="json")
    step.changed = sorted({*step.changed, *changed})
    step.unknown_patient = person.unknown
    _revised(step, actor)
    apply_schedule([item], [])
    if "requested_procedure_priority" in changed:
        merging.deliver_at(item)
    gateway.record_fact(OrderChanged(item=item, base=before, revision=step.revision, by=actor, at=timezone.now()))
    detail = {"fields": changed}
    audit.record("order.changed", actor=actor, entity=item.accession_number, address=address, detail=detail)
    return step


@transaction.atomic
def cancel(entry: WorklistEntry, *, actor: str, reason: str = "", seen: str = "", address: str = "") -> LocalStep:
    """Take a step off the worklist. What has images already cannot be cancelled.

    Raises: ConflictError "changed-meanwhile", "step-gone", "has-images".
    """
    item, step = _locked(entry)
    if seen and seen != mark_of(item):
        raise ConflictError("changed-meanwhile", "Somebody else or the centre changed it meanwhile.")
    if queries.images_of([item.study_instance_uid]):
        raise ConflictError("has-images", "The examination has images: it can no longer be cancelled.")
    step.is_cancelled = True
    step.changed = sorted({*step.changed, "status"})
    _revised(step, actor)
    apply_schedule([], [item.scheduled_procedure_step_id])
    event = OrderCancelled(item=item, revision=step.revision, by=actor, at=timezone.now(), reason=reason[:500])
    gateway.record_fact(event)
    audit.record(
        "order.cancelled", actor=actor, entity=item.accession_number, address=address, detail={"reason": reason[:500]}
    )
    return step


def mark_of(item: WorklistItem) -> str:
    """What tells two states of a step apart, short enough for a form."""
    return hashlib.sha256(item.model_dump_json().encode()).hexdigest()[:16]


def _locked(entry: WorklistEntry) -> tuple[WorklistItem, LocalStep]:
    row = WorklistEntry.objects.select_for_update().filter(pk=entry.pk).first()
    if row is None:
        raise ConflictError("step-gone", "It is not on the worklist any more.")
    item = WorklistItem.model_validate(row.item)
    step, _ = LocalStep.objects.select_for_update().get_or_create(
        scheduled_procedure_step_id=item.scheduled_procedure_step_id,
        defaults={
            "accession_number": item.accession_number,
            "study_instance_uid": item.study_instance_uid,
            "made_here": False,
            "item": row.item,
        },
    )
    return item, step


def _revised(step: LocalStep, actor: str) -> None:
    step.revision += 1
    step.changed_by = actor[:150]
    step.save()


def _person(person: Person, number: str, unknown_name: str) -> dict[str, Any]:
    if person.sex not in SEXES:
        raise PermanentError("sex-unknown", person.sex)
    name = f"{unknown_name}^{number}" if person.unknown else person.name
    return {
        "patient_name": name[:324],
        "patient_birth_date": person.birth_date,
        "patient_sex": person.sex,
        "patient_id": person.patient_id or f"P{number}-{_mark()}",
        "issuer_of_patient_id": person.issuer,
    }


def _mark() -> str:
    """A node restored from a backup may give a number again; it must not thereby make two people one."""
    return "".join(secrets.choice(_LETTERS) for _ in range(4))


def _examination(examination: Examination) -> dict[str, Any]:
    device = _device(examination.ae_title)
    modality = device.modality or examination.modality
    if not modality:
        raise PermanentError("modality-missing", "Say what kind of device it is.")
    if not examination.description.strip():
        raise PermanentError("description-missing", "Say what is to be examined.")
    if examination.priority not in PRIORITIES:
        raise PermanentError("priority-unknown", examination.priority)
    length = timedelta(minutes=examination.minutes)
    if not timedelta(0) < length <= _LONGEST:
        raise PermanentError("slot-invalid", str(examination.minutes))
    starts = examination.starts_at.astimezone(ZoneInfo(device.time_zone))
    return {
        "scheduled_procedure_step_description": examination.description.strip()[:64],
        "requested_procedure_description": examination.description.strip()[:64],
        "scheduled_station_ae_title": device.ae_title,
        "modality": modality[:16],
        "starts_at": starts,
        "ends_at": starts + length,
        "time_zone": device.time_zone,
        "referring_physician_name": examination.referring_physician_name[:128],
        "reason_for_the_requested_procedure": examination.reason.strip(),
        "requested_procedure_priority": examination.priority,
    }


def _device(ae_title: str) -> ApplicationEntity:
    device = queries.devices().filter(ae_title=ae_title).first()
    if device is None:
        raise PermanentError("device-unknown", ae_title)
    return device


def _site_name() -> str:
    state = JoinState.objects.only("directory").first()
    return str(state.directory.get("site_name", "")) if state else ""

"""Who may open an association: the AE registry decides, and every refusal is written down."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Final, Literal, get_args
from weakref import WeakKeyDictionary

import structlog
from django.db import Error as DatabaseError
from pynetdicom import evt
from pynetdicom.association import Association

from pacs_node.clinic.actions import record_refusal
from pacs_node.clinic.models import ApplicationEntity
from pacs_node.config import config
from pacs_node.dimse.connections import healthy_connection
from pacs_node.dimse.negotiation import narrow, rules_for
from standards import charset_detection, charsets
from standards.association import APPLICATION_CONTEXT
from standards.errors import PermanentError

log = structlog.get_logger(__name__)

UNKNOWN_CALLING: Final = "the calling AE title is not registered here"
WRONG_ADDRESS: Final = "this AE title is registered for another address"
UNKNOWN_CALLED: Final = "the called AE title is not the one of this node"

# (result, source, diagnostic) of A-ASSOCIATE-RJ. Source: PS3.8 9.3.4
_CALLING_NOT_RECOGNISED: Final = (0x01, 0x01, 0x03)
_CALLED_NOT_RECOGNISED: Final = (0x01, 0x01, 0x07)
_APPLICATION_CONTEXT_NOT_SUPPORTED: Final = (0x01, 0x01, 0x02)
_TEMPORARY_CONGESTION: Final = (0x02, 0x03, 0x01)


Right = Literal["store", "query", "retrieve", "commit", "worklist"]


@dataclass(frozen=True)
class Peer:
    """The application entity at the other end of an association, as the registry has it."""

    ae_title: str
    address: str
    character_set: str
    issuer_of_patient_id: str
    rights: frozenset[str]
    quirks: frozenset[str] = frozenset()

    @property
    def writes(self) -> str:
        """What its texts are assumed to be written in, as ``part10.read_header`` takes it."""
        return writes(self.character_set, self.quirks)

    def require(self, right: Right) -> None:
        """Raises: PermanentError("not-authorised")."""
        if right not in self.rights:
            raise PermanentError("not-authorised", f"{self.ae_title} may not {_WORDS[right]} here")


_WRITES: Final = "writes-"


def writes(character_set: str, quirks: Iterable[str]) -> str:
    """The default of a source: its character set, unless a quirk says that it writes another whatever it declares."""
    for quirk in sorted(quirks):
        if quirk.startswith(_WRITES):
            return charsets.overriding(charset_detection.codec(quirk.removeprefix(_WRITES)))
    return character_set


_WORDS: Final[dict[str, str]] = {"commit": "ask for storage commitment", "worklist": "read the worklist"} | {
    word: word for word in ("store", "query", "retrieve")
}

_peers: WeakKeyDictionary[Association, Peer] = WeakKeyDictionary()


def peer_of(association: Association) -> Peer:
    """The admitted peer of an association. Raises: PermanentError("not-authorised")."""
    peer = _peers.get(association)
    if peer is None:
        raise PermanentError("not-authorised", "this association was not admitted")
    return peer


def on_requested(event: evt.Event) -> None:
    """Admit or reject an association before anything else of it is looked at."""
    association = event.assoc
    request = association.requestor.primitive
    calling, called = str(request.calling_ae_title or "").strip(), str(request.called_ae_title or "").strip()
    address = str(association.requestor.address or "")
    try:
        healthy_connection()
        if str(request.application_context_name) == APPLICATION_CONTEXT:
            rejection = _admit(association, calling, called, address)
        else:
            log.warning("association-refused", calling_ae_title=calling, address=address, reason="application context")
            rejection = _APPLICATION_CONTEXT_NOT_SUPPORTED
    except DatabaseError:
        log.exception("admission-failed", calling_ae_title=calling, address=address)
        rejection = _TEMPORARY_CONGESTION
    if rejection is not None:
        association.acse.send_reject(*rejection)
        association.kill()


def _admit(association: Association, calling: str, called: str, address: str) -> tuple[int, int, int] | None:
    entity = ApplicationEntity.objects.filter(ae_title=calling).first()
    if called != config().ae_title:
        reason, rejection = UNKNOWN_CALLED, _CALLED_NOT_RECOGNISED
    elif entity is None:
        reason, rejection = UNKNOWN_CALLING, _CALLING_NOT_RECOGNISED
    elif not may_call_from(entity, address):
        reason, rejection = WRONG_ADDRESS, _CALLING_NOT_RECOGNISED
    else:
        _peers[association] = Peer(
            ae_title=calling,
            address=address,
            character_set=entity.character_set,
            issuer_of_patient_id=entity.issuer_of_patient_id,
            rights=frozenset(right for right in get_args(Right) if getattr(entity, f"may_{right}")),
            quirks=frozenset(entity.quirks),
        )
        narrow(association, rules_for(entity))
        if entity.maximum_pdu_bytes:
            association.acceptor.maximum_length = entity.maximum_pdu_bytes
        return None
    log.warning("association-refused", calling_ae_title=calling, called_ae_title=called, address=address, reason=reason)
    record_refusal(calling_ae_title=calling, called_ae_title=called, address=address, reason=reason)
    return rejection


def may_call_from(entity: ApplicationEntity, address: str) -> bool:
    """Whether one of the addresses and networks of the registry covers ``address``; none given covers all."""
    allowed = [place.strip() for place in entity.address.split(",") if place.strip()]
    if not allowed:
        return True
    try:
        caller = ip_address(address.partition("%")[0])
        caller = getattr(caller, "ipv4_mapped", None) or caller
        return any(caller in ip_network(place, strict=False) for place in allowed)
    except ValueError as error:
        log.warning("address-unreadable", ae_title=entity.ae_title, error=str(error))
        return False

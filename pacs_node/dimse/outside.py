"""Places outside the region that images are brought to by C-STORE, and asked for storage commitment."""

import threading
import time
from dataclasses import dataclass
from typing import Final

import structlog

from gateway import queries
from gateway.envelope import OutsideDestination
from gateway.models import Delivery
from gateway.outside.commitments import LOOK_SECONDS, Answer, Commitments, Reference
from gateway.outside.stow import StowCarrier
from gateway.protocols import Proof
from gateway.rates import throttle
from gateway.registry import every, register_carrier
from pacs_node.clinic.models import ApplicationEntity
from pacs_node.config import config
from pacs_node.dimse import commitment
from pacs_node.dimse.calling import associate
from pacs_node.dimse.channel import Channel
from pacs_node.dimse.destination import address_of, proposals
from pacs_node.dimse.foreign import admit
from pacs_node.dimse.models import Commitment
from pacs_node.dimse.negotiation import rules_for
from pacs_node.dimse.sender import Manner, Opened, Sent, Stored, send_opened
from pacs_node.study_index.models import Instance
from standards.errors import PermanentError, RegisError, TransientError

log = structlog.get_logger(__name__)

_IDLE_SECONDS: Final = 10.0
_OUT_OF_RESOURCES: Final = range(0xA700, 0xA800)
_REFUSALS: Final = 3
"""So often a peer says that it knows no storage commitment until it is believed."""
_GONE: Final = 0x0112

Pair = tuple[str, str]
"""SOP class and transfer syntax."""


def entity_of(destination: OutsideDestination) -> ApplicationEntity:
    """The destination as the registry has it, put there when it is not: its reports of commitment come by that name.

    What a person said of it stays. Raises: PermanentError("invalid-setting").
    """
    if not (destination.ae_title and destination.host and destination.port):
        raise PermanentError("invalid-setting", f"{destination.name} needs AE title, host and port")
    entity, _ = ApplicationEntity.objects.get_or_create(
        ae_title=destination.ae_title,
        defaults={
            "origin": ApplicationEntity.Origin.CENTRE,
            "time_zone": config().time_zone,
            **{f"may_{right}": False for right in ("store", "query", "retrieve", "commit", "worklist")},
        },
    )
    place = {"host": destination.host, "port": destination.port, "uses_tls": destination.use_tls}
    if any(getattr(entity, name) != value for name, value in place.items()):
        if entity.origin == ApplicationEntity.Origin.CENTRE or not entity.port:
            ApplicationEntity.objects.filter(pk=entity.pk).update(**place)
        for name, value in place.items():
            setattr(entity, name, value)
    return entity


@dataclass
class _Open:
    """An association of one thread, and what it was opened for."""

    destination: OutsideDestination
    channel: Channel
    pairs: frozenset[Pair]
    used_at: float
    is_busy: bool = False


class StoreCarrier:
    """``gateway.protocols.Carrier`` by C-STORE. The proof is "stored", by the peer's own word; commitment follows."""

    in_flight = 2

    def __init__(self) -> None:
        self._open: dict[tuple[int, str], _Open] = {}
        self._lock = threading.Lock()

    def carry(self, delivery: Delivery, destination: OutsideDestination) -> Proof:
        """Send one instance.

        Raises: TransientError "unreachable", "storage-full", "store-failed"; PermanentError "store-refused",
            "instance-gone", "invalid-setting".
        """
        row = Instance.objects.filter(pk=delivery.instance_key).first()
        if row is None or row.released_at is not None:
            raise PermanentError("instance-gone", "the index no longer has it")
        stored = Stored(row.sop_class_uid, row.sop_instance_uid, row.transfer_syntax_uid, row.path)
        throttle.take(delivery.size)
        sent = self._send(destination, stored)
        if sent.status in _OUT_OF_RESOURCES:
            raise TransientError("storage-full", _said(sent))
        if sent.status == _GONE:
            raise PermanentError("instance-gone", sent.comment)
        if sent.outcome == "failed":
            raise PermanentError("store-refused", _said(sent))
        evidence = {
            "stored_by": "c-store",
            "ae_title": destination.ae_title,
            "status": f"{sent.status:04X}",
            "conversion": sent.conversion,
            "commitment": "to be asked" if destination.commitment else "not asked",
            "refusals": (delivery.receipt or {}).get("refusals", 0),
        }
        return Proof("stored", evidence, row.size)

    def _send(self, destination: OutsideDestination, stored: Stored) -> Sent:
        for is_last in (False, True):  # what was idle may have been ended by the peer meanwhile
            one, is_new = self._opened(destination, (stored.sop_class_uid, stored.transfer_syntax_uid))
            try:
                return send_opened(one.channel, Opened(stored), Manner())
            except TransientError as error:
                self._drop(one)
                if is_new or is_last:
                    raise TransientError("store-failed", f"{destination.ae_title}: {error}") from error
            finally:
                one.used_at, one.is_busy = time.monotonic(), False
        raise AssertionError("the last try either returned or raised")

    def _opened(self, destination: OutsideDestination, pair: Pair) -> tuple[_Open, bool]:
        key = (threading.get_ident(), destination.name)
        with self._lock:
            one = self._open.get(key)
            if one is not None:
                one.is_busy = True
        if one is not None and pair in one.pairs and one.destination == destination and not one.channel.ended:
            return one, False
        pairs = frozenset({pair}) | (one.pairs if one is not None else frozenset())
        if one is not None:
            self._drop(one)
        entity = entity_of(destination)
        parts = proposals(pairs, rules_for(entity))
        if len(parts) > 1:  # more than one association has room for: begin with this one alone
            pairs = frozenset({pair})
            parts = proposals(pairs, rules_for(entity))
        try:
            channel = associate(
                address_of(entity),
                calling=config().ae_title,
                contexts=[context for contexts in parts[0].values() for context in contexts],
                timeout=config().network_timeout_seconds,
            )
        except RegisError as error:
            raise TransientError("unreachable", str(error)) from error
        fresh = _Open(destination, channel, pairs, time.monotonic(), is_busy=True)
        with self._lock:
            self._open[key] = fresh
        return fresh, True

    def _drop(self, one: _Open) -> None:
        with self._lock:
            for key in [key for key, value in self._open.items() if value is one]:
                del self._open[key]
        if one.channel.ended:
            one.channel.close()
        else:
            one.channel.release()

    def tidy(self, idle_seconds: float = _IDLE_SECONDS) -> None:
        """Release what nobody used for a while."""
        limit = time.monotonic() - idle_seconds
        with self._lock:
            idle = [one for one in self._open.values() if not one.is_busy and one.used_at < limit]
            for one in idle:
                one.is_busy = True
        for one in idle:
            self._drop(one)


def _said(sent: Sent) -> str:
    return f"the peer answered {sent.status:04X}" + (f": {sent.comment}" if sent.comment else "")


class Scu:
    """``gateway.outside.commitments.CommitmentScu`` over the node's own requests of commitment."""

    def ask(self, destination: OutsideDestination, instances: list[Reference]) -> str:
        """Put a request on its way; its Transaction UID."""
        entity_of(destination)
        return commitment.ask(destination.ae_title, instances).transaction_uid

    def answer(self, transaction_uid: str) -> Answer | None:
        """What came of it; None while it is open."""
        row = Commitment.objects.filter(role=Commitment.Role.SCU, transaction_uid=transaction_uid).first()
        if row is None:
            return Answer(frozenset(), {}, "the request is no longer known here")
        refuses = row.last_error.startswith("commitment-refused") and row.attempts >= _REFUSALS
        if row.status == Commitment.Status.FAILED or refuses:
            return Answer(frozenset(), {}, row.last_error)
        if row.status != Commitment.Status.DONE or row.result is None:
            return None
        return Answer(
            frozenset(str(uid) for _, uid in row.result["committed"]),
            {str(uid): int(reason) for _, uid, reason in row.result["failed"]},
        )


def keep_registered() -> None:
    """What the centre's registry of devices replaced comes back: reports and images of these peers are awaited."""
    told = queries.configuration()
    for place in told.mirror.outside:
        if place.kind == "dicom" and place.ae_title and place.host and place.port:
            entity_of(place)
    for source in told.foreign:
        if source.kind == "dicom" and source.retrieve == "c-move" and source.sends_as:
            admit(source)


def register() -> None:
    """Called once, when the app is ready."""
    carrier = StoreCarrier()
    register_carrier("dicom", carrier)
    register_carrier("stow", StowCarrier())
    every(_IDLE_SECONDS, carrier.tidy)
    every(_IDLE_SECONDS, keep_registered)
    every(LOOK_SECONDS, Commitments(Scu()).run)

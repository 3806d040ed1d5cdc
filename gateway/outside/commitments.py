"""Storage commitment of places outside the region: asked for a study at a time, and what came of it on the ledger."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Protocol

import structlog
from django.db import transaction
from django.db.models import Max
from django.utils import timezone

from gateway import deliveries, queries, registry
from gateway.envelope import OutsideDestination
from gateway.models import Delivery
from gateway.protocols import Proof

log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 2.0
QUIET: Final = timedelta(seconds=5)
"""A study is asked for when nothing of it went there for so long, as one request of many is lighter than many."""
MOST_REFUSALS: Final = 5
_AT_ONCE: Final = 500
_REASONS: Final = {
    0x0110: "processing failure",
    0x0112: "no such object instance",
    0x0119: "class-instance conflict",
    0x0122: "SOP class not supported",
    0x0131: "duplicate transaction UID",
    0x0213: "resource limitation",
}

Reference = tuple[str, str]
"""SOP Class UID, SOP Instance UID."""


@dataclass(frozen=True)
class Answer:
    """What came of a request. ``failed``: reason by SOP Instance UID; ``given_up``: why no answer is awaited."""

    committed: frozenset[str]
    failed: dict[str, int]
    given_up: str = ""


class CommitmentScu(Protocol):
    """Asks for storage commitment; ``pacs_node`` implements it. Requests outlive the process."""

    def ask(self, destination: OutsideDestination, instances: list[Reference]) -> str:
        """Put a request on its way; its Transaction UID."""

    def answer(self, transaction_uid: str) -> Answer | None:
        """What came of it; None while it is open."""


class Commitments:
    """One look at a time (``registry.every``)."""

    def __init__(self, scu: CommitmentScu) -> None:
        self._scu = scu

    def run(self) -> None:
        """Take answers in, and ask for what was stored meanwhile."""
        for place in queries.configuration().mirror.outside:
            if place.kind == "dicom" and place.commitment:
                self._take(place)
                self._ask(place)

    def _stored(self, place: OutsideDestination) -> Any:
        return Delivery.objects.filter(
            destination=place.name, status=Delivery.Status.DELIVERED, proof=Delivery.Proof.STORED
        )

    def _ask(self, place: OutsideDestination) -> None:
        unasked = self._stored(place).filter(receipt__commitment="to be asked")
        studies = unasked.values("study_instance_uid").annotate(last=Max("receipted_at")).order_by()
        for study in studies.filter(last__lt=timezone.now() - QUIET)[:20]:
            rows = list(unasked.filter(study_instance_uid=study["study_instance_uid"]).order_by("pk")[:_AT_ONCE])
            described = registry.store().describe_instances([row.instance_key for row in rows])
            classes = {one.sop_instance_uid: one.sop_class_uid for one in described}
            known = [row for row in rows if row.sop_instance_uid in classes]
            with transaction.atomic():
                uid = ""
                if known:
                    uid = self._scu.ask(place, [(classes[row.sop_instance_uid], row.sop_instance_uid) for row in known])
                for row in rows:
                    asked = row in known
                    _note(row, commitment="asked" if asked else "not asked: gone from the index", transaction_uid=uid)

    def _take(self, place: OutsideDestination) -> None:
        asked = self._stored(place).filter(receipt__commitment="asked")
        for uid in set(asked.order_by().values_list("receipt__transaction_uid", flat=True).distinct()[:50]):
            answer = self._scu.answer(str(uid))
            if answer is not None:
                self._settle(asked.filter(receipt__transaction_uid=uid), str(uid), answer)

    def _settle(self, rows: Iterable[Delivery], uid: str, answer: Answer) -> None:
        for row in rows:
            if row.sop_instance_uid in answer.committed:
                evidence = {**(row.receipt or {}), "commitment": "committed", "transaction_uid": uid}
                deliveries.record_proof(row, Proof("committed", evidence))
            elif row.sop_instance_uid in answer.failed:
                _refuse(row, answer.failed[row.sop_instance_uid])
            else:
                _note(row, commitment=f"no answer: {answer.given_up or 'not in the report'}", transaction_uid=uid)


def _note(row: Delivery, **told: str) -> None:
    Delivery.objects.filter(pk=row.pk).update(receipt={**(row.receipt or {}), **told})


@transaction.atomic
def _refuse(row: Delivery, reason: int) -> None:
    """Who refuses commitment gets the instance again, some times; then a person must look."""
    named = f"commitment-refused: {reason:04X} {_REASONS.get(reason, '')}".strip()
    refusals = int((row.receipt or {}).get("refusals", 0)) + 1
    log.warning("commitment-refused", destination=row.destination, reason=named, refusals=refusals)
    Delivery.objects.filter(pk=row.pk).update(
        status=Delivery.Status.FAILED if refusals >= MOST_REFUSALS else Delivery.Status.WAITING,
        proof="",
        receipted_at=None,
        receipt={"refusals": refusals, "commitment": named},
        next_attempt_at=timezone.now() + timedelta(seconds=deliveries.pause(refusals, first=2.0)),
        last_error=named[:255],
    )
    deliveries.announce(row)

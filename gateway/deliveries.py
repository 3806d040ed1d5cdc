"""Rows of the ledger: whose turn it is, what proved them, why they failed, and when their file may go."""

import random
from collections.abc import Collection
from datetime import timedelta
from typing import Final

from django.db import transaction
from django.db.models import Exists, OuterRef, Q
from django.db.models.functions import Coalesce
from django.utils import timezone

from gateway import actions, ledger, queries, registry
from gateway.envelope import Directory, Peer
from gateway.models import Delivery, JoinState
from gateway.protocols import Proof
from gateway.together import Together
from standards.errors import PermanentError, RegisError, TransientError

LONGEST_PAUSE_SECONDS = 300.0
RELEASES_AT_ONCE = 200
UNREACHABLE = {"unreachable", "bad-certificate"}
OF_THE_PEER = UNREACHABLE | {"signature-expired", "signature-invalid", "unknown-key", "not-joined", "storage-full"}
"""What says nothing of the instance: the destination pauses, not the row, and it counts as no attempt of the row."""
SOON = {"still-checking"}
"""What is no failure: the receiver is at it."""


def next_waiting(destination: str = "", *, busy: Collection[int] = ()) -> Delivery | None:
    """The delivery to a destination, or to any, whose turn it is: small priority numbers first, then the oldest."""
    if not queries.anything_to_deliver():
        return None
    now = timezone.now()
    # What lies further ahead than any pause was written while this machine's clock was wrong.
    is_due = Q(next_attempt_at__lte=now) | Q(next_attempt_at__gt=now + timedelta(seconds=LONGEST_PAUSE_SECONDS))
    rows = Delivery.objects.filter(is_due, status=Delivery.Status.WAITING, held_by="")
    if destination:
        rows = rows.filter(destination=destination)
    return rows.exclude(pk__in=list(busy)).order_by("priority", "id").first()


def peer_named(state: JoinState, name: str) -> Peer:
    """The peer as the directory has it. Raises TransientError("unknown-destination"): it may still be announced."""
    for peer in Directory.model_validate(state.directory).peers:
        if peer.name == name:
            return peer
    raise TransientError("unknown-destination", name)


def announce(delivery: Delivery) -> None:
    """Have the centre told how far its study is."""
    ledger.announce([(delivery.study_instance_uid, delivery.destination)])


def record_proof(delivery: Delivery, proof: Proof) -> None:
    """Close the ledger's row with its proof, or put a stronger one in the place of the one that closed it.

    A peer's receipt must have been verified (``sending.verify_receipt``); a weaker proof than there is changes nothing.
    """
    _record_proofs((delivery, proof))


def _write_proofs(proved: list[tuple[Delivery, Proof]]) -> list[None]:
    rows = Delivery.objects.select_for_update().in_bulk([delivery.pk for delivery, _ in proved])
    strength = Delivery.Proof.values.index
    for delivery, proof in proved:
        row = rows.get(delivery.pk)
        if row is None or (row.proof and row.status in Delivery.CLOSED and strength(row.proof) > strength(proof.name)):
            continue
        is_receipt = proof.name == "receipt"
        row.status = Delivery.Status.RECEIPTED if is_receipt else Delivery.Status.DELIVERED
        row.proof = proof.name
        row.receipt = proof.evidence
        row.receipted_at = timezone.now()
        row.attempts += 1
        row.wire_bytes += proof.wire_bytes
        row.held_by, row.held_until, row.last_error, row.failing_since = "", None, "", None
        row.save(update_fields=_OF_PROOF)
    ledger.announce({(delivery.study_instance_uid, delivery.destination) for delivery, _ in proved})
    return [None] * len(proved)


_OF_PROOF: Final = (
    "status",
    "proof",
    "receipt",
    "receipted_at",
    "attempts",
    "wire_bytes",
    "held_by",
    "held_until",
    "last_error",
    "failing_since",
)
_record_proofs = Together(_write_proofs)


@transaction.atomic
def record_failure(delivery: Delivery, error: RegisError) -> None:
    """Keep why it failed; try later what may work later, leave to a person what cannot."""
    before, told = Delivery.objects.filter(pk=delivery.pk).values_list("attempts", "last_error").first() or (0, "")
    attempts, seconds = before + 1, pause(before + 1)
    if error.code in OF_THE_PEER:
        attempts, seconds = before, 0.0
    if error.code in SOON:
        attempts, seconds = attempts - 1, 2.0
    Delivery.objects.filter(pk=delivery.pk, status=Delivery.Status.WAITING).update(
        status=Delivery.Status.FAILED if isinstance(error, PermanentError) else Delivery.Status.WAITING,
        attempts=attempts,
        next_attempt_at=timezone.now() + timedelta(seconds=seconds),
        last_error=str(error)[:255],
        failing_since=Coalesce("failing_since", timezone.now()),
    )
    if isinstance(error, PermanentError) or attempts in (1, 10) or not told:
        announce(delivery)


def pause(attempts: int, *, first: float = 0.5, longest: float = LONGEST_PAUSE_SECONDS) -> float:
    """Seconds to wait after that many failed attempts: doubling, capped, and jittered by half."""
    return float(min(first * 2 ** min(attempts - 1, 20), longest) * random.uniform(0.5, 1.0))  # noqa: S311  no secret


def release_delivered() -> int:
    """At a node with zero retention, let go of files that went wherever the rules send them; how many.

    One of the proofs must be of a kind that the region trusts with the only copy (``MirrorPolicy.release_by``).
    """
    open_elsewhere = Delivery.objects.filter(instance_key=OuterRef("instance_key")).exclude(status__in=Delivery.CLOSED)
    trusted = queries.configuration().mirror.release_by
    done = list(
        Delivery.objects.filter(status__in=Delivery.CLOSED, proof__in=trusted, released_at=None)
        .exclude(Exists(open_elsewhere))
        .order_by("series_key", "id")[:RELEASES_AT_ONCE]
    )
    if not done:
        return 0
    keys = sorted({delivery.instance_key for delivery in done})
    registry.store().release(keys)
    by_series: dict[int, list[Delivery]] = {}
    for delivery in done:
        by_series.setdefault(delivery.series_key, []).append(delivery)
    with transaction.atomic():
        Delivery.objects.filter(instance_key__in=keys).update(released_at=timezone.now())
        for series_key, deliveries in by_series.items():
            actions.record_released(series_key, [(item.sop_instance_uid, item.dataset_sha256) for item in deliveries])
    return len(keys)

"""Instances on their way: push what waits on the ledger, urgent first, until a verified receipt came back."""

import hashlib
import random
from collections.abc import Iterator
from datetime import timedelta
from typing import BinaryIO
from urllib.parse import urlencode

import httpx
import structlog
from django.db import transaction
from django.db.models import Exists, OuterRef
from django.utils import timezone
from pydantic import ValidationError

from gateway import actions, client, queries, registry
from gateway.envelope import Directory, InstanceDescription, Peer, Receipt
from gateway.keys import is_receipt_of
from gateway.models import Delivery, JoinState, OutboxEntry
from gateway.protocols import Proof
from standards.digests import dataset_sha256
from standards.errors import PermanentError, RegisError, TransientError

log = structlog.get_logger(__name__)

CHUNK = 1 << 18
LONGEST_PAUSE_SECONDS = 300.0
RELEASES_AT_ONCE = 200
UNREACHABLE = {"unreachable", "bad-certificate"}


def next_waiting(*, busy: set[int], paused: set[str]) -> Delivery | None:
    """The delivery whose turn it is: small priority numbers first, then the oldest."""
    if not queries.anything_to_deliver():
        return None
    return (
        Delivery.objects.filter(status=Delivery.Status.WAITING, next_attempt_at__lte=timezone.now())
        .exclude(pk__in=busy)
        .exclude(destination__in=paused)
        .order_by("priority", "id")
        .first()
    )


def peer_named(state: JoinState, name: str) -> Peer:
    """The peer as the directory has it. Raises TransientError("unknown-destination"): it may still be announced."""
    for peer in Directory.model_validate(state.directory).peers:
        if peer.name == name:
            return peer
    raise TransientError("unknown-destination", name)


def deliver(delivery: Delivery, state: JoinState, peer: Peer, connection: httpx.Client) -> Receipt:
    """Push one instance and give the verified receipt; nothing is written here.

    Raises: PermanentError when this instance can never arrive as it is, TransientError otherwise.
    """
    store = registry.store()
    frames = store.ensure_frames_digest(delivery.instance_key)
    described = store.describe_instances([delivery.instance_key])
    if not described:
        raise PermanentError("instance-gone", "the index no longer has it")
    instance = described[0].model_copy(update={"frames_sha256": frames})
    with store.open(delivery.instance_key) as file:
        content_digest, length = _whole(file)
        if dataset_sha256(file) != delivery.dataset_sha256:
            raise PermanentError("source-damaged", "the stored file is no longer what was received")
        answer = client.send(
            connection, state, "PUT", _path(instance, peer), _chunks(file), content_digest, length, "application/dicom"
        )
    try:
        receipt = Receipt.model_validate_json(answer)
    except ValidationError as error:
        raise TransientError("receipt-unreadable", f"{error.error_count()} faults") from error
    verify_receipt(receipt, instance, state.name, peer)
    return receipt


def _path(instance: InstanceDescription, peer: Peer) -> str:
    """The digests and the receiver stand in the query because the signature covers it."""
    promised = {
        "to": peer.name,
        "dataset": instance.dataset_sha256,
        "pixel": instance.pixel_sha256 or "",
        "frames": instance.frames_sha256 or "",
    }
    return f"/gateway/v1/instances/{instance.sop_instance_uid}?{urlencode(promised)}"


def _whole(file: BinaryIO) -> tuple[bytes, int]:
    digest, length = hashlib.sha256(), 0
    while chunk := file.read(CHUNK):
        digest.update(chunk)
        length += len(chunk)
    return digest.digest(), length


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while chunk := file.read(CHUNK):
        yield chunk


def verify_receipt(receipt: Receipt, instance: InstanceDescription, sender: str, peer: Peer) -> None:
    """Believe a receipt only if the peer itself signed it, for this node, about exactly these bytes.

    Raises: TransientError("receipt-forged", "receipt-mismatch"): what was delivered is to be proved again.
    """
    if not is_receipt_of(peer, receipt):
        raise TransientError("receipt-forged", f"not signed by {peer.name}")
    promised = (instance.sop_instance_uid, instance.dataset_sha256, instance.pixel_sha256, instance.frames_sha256)
    told = (receipt.sop_instance_uid, receipt.dataset_sha256, receipt.pixel_sha256, receipt.frames_sha256)
    named = [name for name, digest in zip(("dataset", "pixel", "frames"), promised[1:], strict=True) if digest]
    if (receipt.receiver, receipt.sender) != (peer.name, sender) or told != promised or receipt.checked != named:
        raise TransientError("receipt-mismatch", "the receipt is of something else")


@transaction.atomic
def record_proof(delivery: Delivery, proof: Proof) -> None:
    """Close the ledger's row with its proof, or put a stronger one in the place of the one that closed it.

    A peer's receipt must have been verified (:func:`verify_receipt`); a weaker proof than there is changes nothing.
    """
    row = Delivery.objects.select_for_update().filter(pk=delivery.pk).first()
    strength = Delivery.Proof.values.index
    if row is None or (row.proof and row.status in Delivery.CLOSED and strength(row.proof) > strength(proof.name)):
        return
    is_receipt = proof.name == Delivery.Proof.RECEIPT
    row.status = Delivery.Status.RECEIPTED if is_receipt else Delivery.Status.DELIVERED
    row.proof = proof.name
    row.receipt = proof.evidence
    row.receipted_at = timezone.now()
    row.attempts += 1
    row.wire_bytes += proof.wire_bytes
    row.held_by, row.held_until, row.last_error = "", None, ""
    row.save()
    _announce_progress(delivery)


@transaction.atomic
def record_failure(delivery: Delivery, error: RegisError) -> None:
    """Keep why it failed; try later what may work later, leave to a person what cannot."""
    attempts = delivery.attempts + 1
    # A peer that is away says nothing of the instance: the destination pauses, not the row.
    seconds = 0.0 if error.code in UNREACHABLE else pause(attempts)
    Delivery.objects.filter(pk=delivery.pk, status=Delivery.Status.WAITING).update(
        status=Delivery.Status.FAILED if isinstance(error, PermanentError) else Delivery.Status.WAITING,
        attempts=attempts,
        next_attempt_at=timezone.now() + timedelta(seconds=seconds),
        last_error=str(error)[:255],
    )
    if isinstance(error, PermanentError) or attempts in (1, 10):
        _announce_progress(delivery)


def _announce_progress(delivery: Delivery) -> None:
    OutboxEntry.objects.create(
        kind=actions.DELIVERY_PROGRESS,
        body={"study_instance_uid": delivery.study_instance_uid, "destination": delivery.destination},
    )


def pause(attempts: int, *, first: float = 0.5, longest: float = LONGEST_PAUSE_SECONDS) -> float:
    """Seconds to wait after that many failed attempts: doubling, capped, and jittered by half."""
    return float(min(first * 2 ** min(attempts - 1, 20), longest) * random.uniform(0.5, 1.0))  # noqa: S311  no secret


def release_delivered() -> int:
    """At a node with zero retention, let go of files that all their destinations have receipted; how many."""
    open_elsewhere = Delivery.objects.filter(instance_key=OuterRef("instance_key")).exclude(
        status=Delivery.Status.RECEIPTED
    )
    done = list(
        Delivery.objects.filter(status=Delivery.Status.RECEIPTED, released_at=None)
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

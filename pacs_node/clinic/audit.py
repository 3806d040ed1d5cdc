"""The node's audit trail: rows are written with what they record, one sealer chains them within seconds."""

import hashlib
import json
import threading
import time
from datetime import UTC, timedelta
from typing import Any, Final

from django.db import IntegrityError, transaction
from django.utils import timezone

from gateway.registry import every
from pacs_node.clinic.models import AuditEntry

SITTING: Final = timedelta(minutes=30)
"""A person who looks at a study again after a longer pause begins another sitting."""

_SEAL_BATCH: Final = 1000
_sitting: dict[tuple[str, str, str], float] = {}
_sitting_lock = threading.Lock()


def record(
    action: str,
    *,
    actor: str,
    outcome: str = "success",
    entity: str = "",
    address: str = "",
    detail: dict[str, Any] | None = None,
) -> AuditEntry:
    """Write one row; call it inside the transaction of what it records. Values are cut to their columns."""
    return AuditEntry.objects.create(
        action=action[:64],
        actor=actor[:150],
        outcome=outcome[:16],
        entity=entity[:255],
        address=address[:64],
        detail=detail or {},
    )


def record_once_a_sitting(
    action: str, *, actor: str, entity: str = "", outcome: str = "success", address: str = ""
) -> None:
    """One row an actor, action, entity and sitting, however many requests it takes (a series has thousands of frames).

    The process remembers who is sitting; the table is asked only at the start of a sitting, so that the other
    process of this node and a restart count as the same sitting.
    """
    key = (actor, action, entity)
    now = time.monotonic()
    with _sitting_lock:
        last = _sitting.get(key)
        _sitting[key] = now
        if len(_sitting) > 10_000:
            for old in [k for k, seen in _sitting.items() if now - seen > SITTING.total_seconds()]:
                del _sitting[old]
        if last is not None and now - last < SITTING.total_seconds():
            return
        try:
            same = AuditEntry.objects.filter(
                actor=actor[:150], action=action, entity=entity[:255], occurred_at__gte=timezone.now() - SITTING
            )
            if not same.exists():
                record(action, actor=actor, entity=entity, outcome=outcome, address=address)
        except Exception:
            del _sitting[key]  # not written, so the next request must try again
            raise


def _digest(entry: AuditEntry) -> str:
    content = {
        "sequence": entry.sequence,
        "occurred_at": entry.occurred_at.astimezone(UTC).isoformat(timespec="microseconds"),
        "actor": entry.actor,
        "action": entry.action,
        "outcome": entry.outcome,
        "entity": entry.entity,
        "address": entry.address,
        "detail": entry.detail,
        "previous_hash": entry.previous_hash,
    }
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def seal() -> int:
    """Chain the rows that are not chained yet, oldest first; returns how many.

    A row's place is its ``sequence``, given here and not by the row's key, because rows commit in another order than
    keys are given. Two sealers at once: the unique place lets one win, the other does nothing.
    """
    try:
        with transaction.atomic():
            last = AuditEntry.objects.filter(sequence__isnull=False).order_by("-sequence").first()
            sequence, previous = (last.sequence or 0, last.hash) if last else (0, "")
            waiting = list(AuditEntry.objects.filter(sequence__isnull=True).order_by("pk")[:_SEAL_BATCH])
            for entry in waiting:
                sequence += 1
                entry.sequence, entry.previous_hash = sequence, previous
                entry.hash = previous = _digest(entry)
                entry.save(update_fields=["sequence", "previous_hash", "hash"])
            return len(waiting)
    except IntegrityError:  # another process of this node sealed the same rows first
        return 0


def first_break() -> int | None:
    """The ``sequence`` at which the chain does not hold (changed, taken out, put in), or None when it is whole."""
    expected, previous = 1, ""
    for entry in AuditEntry.objects.filter(sequence__isnull=False).order_by("sequence").iterator(1000):
        if entry.sequence != expected or entry.previous_hash != previous or entry.hash != _digest(entry):
            return expected
        expected, previous = expected + 1, entry.hash
    return None


def seal_all() -> None:
    """Chain all that waits."""
    while seal() == _SEAL_BATCH:
        pass


def register() -> None:
    """Called once, when the app is ready."""
    every(3, seal_all)

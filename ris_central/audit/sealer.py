"""The hash chain over the audit trail: one sealer at a time gives rows their place and their hash."""

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC

from django.db import connection, transaction

from ris_central.audit.models import AuditEvent

_LOCK = 0x5245474953  # "REGIS": the advisory lock that one sealer holds
_BATCH = 2000
GENESIS = "0" * 64


def digest(event: AuditEvent, sequence: int, previous_hash: str) -> str:
    """SHA-256 (hex) over the previous hash and the row's content as canonical JSON (sorted keys, no spaces, UTF-8)."""
    content = {
        "sequence": sequence,
        "occurred_at": event.occurred_at.astimezone(UTC).isoformat(timespec="microseconds"),
        "actor": event.actor_id,
        "actor_name": event.actor_name,
        "action": event.action,
        "outcome": event.outcome,
        "entity_type": event.entity_type,
        "entity_id": event.entity_id,
        "patient_key": event.patient_key,
        "address": event.address,
        "detail": event.detail,
    }
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(previous_hash.encode() + b"\n" + text.encode()).hexdigest()


def seal() -> int:
    """Chain what is not chained yet, in order of keys; returns how many rows. A second sealer at once does nothing.

    A row's place is its ``sequence``, not its key: rows commit in another order than keys are given.
    """
    sealed = 0
    while True:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [_LOCK])
                if not cursor.fetchone()[0]:
                    return sealed
            last = AuditEvent.objects.filter(sequence__isnull=False).order_by("-sequence").first()
            sequence, previous = (last.sequence or 0, last.hash) if last else (0, GENESIS)
            batch = list(AuditEvent.objects.filter(sequence__isnull=True).order_by("pk")[:_BATCH])
            for event in batch:
                sequence += 1
                event.sequence, event.previous_hash = sequence, previous
                event.hash = previous = digest(event, sequence, previous)
            AuditEvent.objects.bulk_update(batch, ["sequence", "previous_hash", "hash"], batch_size=500)
        sealed += len(batch)
        if len(batch) < _BATCH:
            return sealed


@dataclass(frozen=True)
class Verdict:
    """What checking the chain found: ``broken_at`` is the first sequence that does not hold, None when all do."""

    checked: int
    broken_at: int | None
    head: str


def verify() -> Verdict:
    """Recompute the whole chain: a changed, missing, inserted or moved row shows as ``broken_at``."""
    expected, previous = 1, GENESIS
    for event in AuditEvent.objects.filter(sequence__isnull=False).order_by("sequence").iterator(_BATCH):
        whole = (
            event.sequence == expected
            and event.previous_hash == previous
            and event.hash == digest(event, expected, previous)
        )
        if not whole:
            return Verdict(expected - 1, expected, previous)
        expected, previous = expected + 1, event.hash
    return Verdict(expected - 1, None, previous)

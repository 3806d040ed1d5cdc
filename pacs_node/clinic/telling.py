"""What the centre is told of this node: its audit trail, and with every heartbeat how it is kept."""

import json
import time
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from cryptography import x509
from django.db.models import Max, Sum
from django.utils.dateparse import parse_datetime

from gateway.envelope import AuditRow
from gateway.registry import every, tell_with_status
from gateway.telling import ROWS_AT_ONCE, audit_told, tell_audit
from pacs_node.backup import LAST_BACKUP
from pacs_node.clinic.models import AuditEntry, RosterMember
from pacs_node.config import config
from pacs_node.study_index.models import Instance

UPLOAD_SECONDS = 5
SIZE_SECONDS = 600.0
"""Adding up what is stored reads the whole index."""


def upload_audit() -> None:
    """Put all sealed rows on the outbox that are not told yet."""
    while (after := audit_told()) is not None:
        rows = AuditEntry.objects.filter(sequence__gt=after).order_by("sequence")[:ROWS_AT_ONCE]
        if not tell_audit([row_of(entry) for entry in rows], after):
            return


def row_of(entry: AuditEntry) -> AuditRow:
    """A sealed row as the centre is told of it."""
    return AuditRow(
        sequence=entry.sequence or 0,
        occurred_at=entry.occurred_at,
        actor=entry.actor,
        action=entry.action,
        outcome=entry.outcome,
        entity=entry.entity,
        address=entry.address,
        detail=entry.detail,
        previous_hash=entry.previous_hash,
        hash=entry.hash,
    )


class StoredBytes:
    """The size of what is stored, added up now and then."""

    def __init__(self) -> None:
        self._value: int | None = None
        self._until = 0.0

    def __call__(self) -> int:
        if self._value is None or time.monotonic() > self._until:
            held = Instance.objects.filter(released_at=None).aggregate(size=Sum("size"))
            self._value = int(held["size"] or 0)
            self._until = time.monotonic() + SIZE_SECONDS
        return self._value


_stored_bytes = StoredBytes()


def facts() -> dict[str, Any]:
    """Fields of ``envelope.NodeStatus``: size, last backup, and when certificate and roster end."""
    certificate = config().tls_certificate
    return {
        "stored_bytes": _stored_bytes(),
        "backed_up_at": last_backup(config().data_dir),
        "certificate_until": _end_of(certificate, certificate.stat().st_mtime_ns)
        if certificate is not None and certificate.is_file()
        else None,
        "roster_until": RosterMember.objects.filter(user__is_active=True).aggregate(Max("expires_at"))[
            "expires_at__max"
        ],
    }


def last_backup(data_dir: Path) -> datetime | None:
    """When this node was backed up last; None: never, as far as its data folder knows."""
    try:
        told = json.loads((data_dir / LAST_BACKUP).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return parse_datetime(str(told.get("at")))


@lru_cache(maxsize=4)
def _end_of(certificate: Path, changed_ns: int) -> datetime:
    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc


def register() -> None:
    """Called once, when the app is ready."""
    tell_with_status(facts)
    every(UPLOAD_SECONDS, upload_audit)

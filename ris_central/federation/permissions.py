"""Which node speaks: its signature, its standing, and a trace of every refusal."""

import time
from collections.abc import Mapping
from datetime import timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.utils import timezone

from ris_central.audit.actions import record
from ris_central.audit.models import AuditEvent
from ris_central.federation.models import Node
from standards import http_signatures
from standards.errors import PermanentError, RegisError
from standards.tokens import public_key_from_text

REFUSAL_ONCE = timedelta(minutes=10)


def node_of(method: str, path_with_query: str, headers: Mapping[str, str]) -> Node:
    """The joined, trusted node that signed this request.

    Raises: PermanentError "signature-missing", "signature-invalid", "signature-expired", "unknown-key",
        "node-revoked".
    """
    found: list[Node] = []

    def key_of(name: str) -> Ed25519PublicKey | None:
        node = Node.objects.filter(name=name, joined_at__isnull=False).select_related("site").first()
        if node is None:
            return None
        found.append(node)
        return public_key_from_text(node.public_key)

    http_signatures.verify(method, path_with_query, headers, key_of, time.time())
    node = found[0]
    if node.revoked_at is not None:
        raise PermanentError("node-revoked", f"{node.name} is no longer trusted")
    return node


def record_refusal(error: RegisError, path: str, address: str) -> None:
    """Leave a trace that a node was refused: one row for the same reason, place and address in ten minutes."""
    recent = AuditEvent.objects.filter(
        action="node.refused",
        entity_id=path[:128],
        detail__code=error.code,
        detail__address=address,
        occurred_at__gte=timezone.now() - REFUSAL_ONCE,
    )
    if not recent.exists():
        record(
            "node.refused",
            actor="federation",
            entity=("url", path),
            outcome=AuditEvent.Outcome.REFUSED,
            detail={"code": error.code, "reason": error.detail[:200], "address": address},
        )

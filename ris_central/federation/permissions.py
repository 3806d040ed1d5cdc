"""Which node speaks: its signature, its standing, and a trace of every refusal."""

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.utils import timezone

from ris_central.audit.actions import record
from ris_central.audit.models import AuditEvent
from ris_central.federation import trust
from ris_central.federation.models import Node
from standards import http_signatures
from standards.errors import PermanentError, RegisError

REFUSAL_ONCE = timedelta(minutes=10)


def node_of(method: str, path_with_query: str, headers: Mapping[str, str]) -> Node:
    """The joined, trusted node that signed this request.

    Raises: PermanentError "signature-missing", "signature-invalid", "signature-expired", "unknown-key",
        "node-revoked".
    """
    found: list[Node] = []

    def keys_of(name: str) -> Iterator[Ed25519PublicKey] | None:
        node = Node.objects.filter(name=name, joined_at__isnull=False).select_related("site").first()
        if node is None:
            return None
        found.append(node)
        return trust.keys_of(node)

    now = time.time()
    try:
        http_signatures.verify(method, path_with_query, headers, keys_of, now)
    except PermanentError as error:
        if error.code == "signature-expired":
            _note_clock(method, path_with_query, headers, keys_of, now)
        raise
    node = found[0]
    if node.revoked_at is not None:
        raise PermanentError("node-revoked", f"{node.name} is no longer trusted")
    return node


def _note_clock(
    method: str,
    path_with_query: str,
    headers: Mapping[str, str],
    keys_of: Callable[[str], Iterator[Ed25519PublicKey] | None],
    now: float,
) -> None:
    """A node that signs by a wrong clock is refused, but people are told: its signature says how wrong it is."""
    made = http_signatures.created_at(headers)
    if made is None:
        return
    try:
        name = http_signatures.verify(method, path_with_query, headers, keys_of, float(made))
    except PermanentError:
        return  # somebody else's, and no word of the node's
    Node.objects.filter(name=name).update(
        clock_skew_seconds=trust.bounded(round(made - now)), clock_heard_at=timezone.now()
    )


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

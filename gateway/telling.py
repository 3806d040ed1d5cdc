"""What a node tells of itself besides images: its audit trail, row by row, in the order of its chain."""

from django.db import transaction

from gateway.envelope import AuditRow, AuditSealed
from gateway.models import JoinState, OutboxEntry

AUDIT_SEALED = "audit.sealed"
ROWS_AT_ONCE = 200


def audit_told() -> int | None:
    """Up to which row of its audit trail the centre was told; None while this node is not joined."""
    return JoinState.objects.values_list("audit_told", flat=True).first()


@transaction.atomic
def tell_audit(rows: list[AuditRow], after: int) -> bool:
    """Put sealed rows on the outbox and remember it; False when another process was first, or nobody is to be told."""
    mine = JoinState.objects.select_for_update().filter(audit_told=after)
    if not rows or not mine.exists():
        return False
    OutboxEntry.objects.create(kind=AUDIT_SEALED, body=AuditSealed(rows=rows).model_dump(mode="json"))
    mine.update(audit_told=rows[-1].sequence)
    return True

"""What an idle node asks several times a second: ready-made SQL, as building a query costs twenty times its answer."""

from django.db import connection

from gateway.envelope import Configuration
from gateway.models import JoinState


def _exists(rows: str) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT EXISTS (SELECT 1 FROM {rows})")  # noqa: S608  the texts below, no values
        return bool(cursor.fetchone()[0])


def anything_to_catch_up() -> bool:
    """Whether what is held is being put on the outbox again."""
    return _exists("gateway_joinstate WHERE backfill_after IS NOT NULL")


def anything_to_lay_on() -> bool:
    """Whether what is held is being laid on the ledger again."""
    return _exists("gateway_joinstate WHERE ledger_after IS NOT NULL")


def anything_to_number() -> bool:
    """Whether the outbox holds anything."""
    return _exists("gateway_outboxentry")


def anything_to_tell() -> bool:
    """Whether there is an event the centre has not acknowledged."""
    return _exists(
        "gateway_numberedevent e JOIN gateway_joinstate s ON e.epoch = s.epoch AND e.seq > s.acknowledged_seq"
    )


def anything_to_deliver() -> bool:
    """Whether the ledger has a delivery without its proof that no rule holds back, due or not."""
    return _exists("gateway_delivery WHERE status = 'waiting' AND held_by = ''")


def configuration() -> Configuration:
    """What the region decided for this node; the defaults before it is joined and told."""
    told = JoinState.objects.values_list("configuration", flat=True).first()
    return Configuration.model_validate(told or {})

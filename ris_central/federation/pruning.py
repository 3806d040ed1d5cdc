"""Forget events that were applied and commands that were taken, after their time."""

from datetime import datetime, timedelta

from django.db import connection
from django.utils import timezone

from ris_central.config import config

AT_ONCE = 5000


def prune(now: datetime | None = None) -> tuple[int, int]:
    """How many events and commands went.

    Kept whatever their age: events that could not be applied, the newest event of each sequence (it tells a copy of a
    node from the node), and commands that the node has not applied.
    """
    limit = (now or timezone.now()) - timedelta(days=config().inbox_retention_days)
    events = _delete(
        "federation_inboxevent",
        "received_at < %s AND error = '' AND EXISTS (SELECT 1 FROM federation_inboxevent newer"
        " WHERE newer.node_id = it.node_id AND newer.epoch = it.epoch AND newer.seq > it.seq)",
        limit,
    )
    commands = _delete(
        "federation_command",
        "created_at < %s AND seq <= (SELECT applied_command_seq FROM federation_node n WHERE n.id = it.node_id)",
        limit,
    )
    return events, commands


def _delete(table: str, condition: str, limit: datetime) -> int:
    """In lots, each its own transaction: nodes that are told meanwhile wait for none of it."""
    gone = 0
    statement = (
        f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} it WHERE {condition} ORDER BY id LIMIT {AT_ONCE})"  # noqa: S608
    )
    while True:
        with connection.cursor() as cursor:
            cursor.execute(statement, [limit])
            count = int(cursor.rowcount)
        gone += count
        if count < AT_ONCE:
            return gone

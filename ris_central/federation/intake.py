"""Events up: each is taken into the inbox once, in the order of its node, and applied in the same transaction."""

import hashlib
import json
import time

import structlog
from django.db import DatabaseError, InterfaceError, transaction
from pydantic import ValidationError

from gateway.envelope import (
    ACCEPTED_VERSIONS,
    SCHEMA_VERSION,
    AuditRow,
    AuditSealed,
    DeliveryProgress,
    Event,
    EventAnswer,
    RawEvent,
)
from ris_central.federation import coalescing
from ris_central.federation.listeners import tell
from ris_central.federation.models import DeliveryState, InboxEvent, Node, NodeAuditRow
from ris_central.federation.prepared import execute
from standards.errors import PermanentError, TransientError

log = structlog.get_logger(__name__)

NOT_UNDERSTOOD = "event-not-understood"
VOCABULARY = hashlib.sha256(json.dumps(Event.model_json_schema(), sort_keys=True).encode()).hexdigest()[:16]
"""Changes whenever this program understands other events than the one before."""
AT_ONCE = 200
LONGEST_SECONDS = 8.0
"""A node that has waited longer than its patience says it all again, while the first request is still at it: a busy
centre answers with what it has taken by then, and the node goes on from there."""

_KEEP = """
WITH taken AS (
  INSERT INTO federation_inboxevent (node_id, epoch, seq, type, occurred_at, received_at, body, error, tried_with)
  SELECT %(node)s, %(epoch)s, seq, type, at, statement_timestamp(), body, %(error)s, %(tried_with)s
  FROM json_to_recordset(%(rows)s) AS row(seq bigint, type text, at timestamptz, body jsonb)
)
UPDATE federation_node SET cursor = %(cursor)s, last_seen_at = statement_timestamp() WHERE id = %(node)s
"""


def take(node: Node, events: list[RawEvent], since: float | None = None) -> EventAnswer:
    """Take a batch; how far this node's events are durably taken now.

    ``since``: when the node began to wait for this answer (``time.monotonic``); without it, now. Something is taken
    however long ago that is. Events that were taken before are passed over; after a gap nothing is taken, and the
    answer tells where to go on.

    Raises: PermanentError "mixed-epochs", "schema-version", "epoch-superseded", "epoch-forked"; TransientError of a
        listener, and DatabaseError: what came before in the batch is kept.
    """
    if len({event.epoch for event in events}) > 1:
        raise PermanentError("mixed-epochs", "one batch, one epoch")
    if strange := {event.schema_version for event in events} - set(ACCEPTED_VERSIONS):
        raise PermanentError("schema-version", f"the centre does not speak version {sorted(strange)}")
    if events and node.epoch != events[0].epoch:
        _enter_epoch(node, events[0].epoch)
    known = sum(event.seq <= node.cursor for event in events)
    begun = time.monotonic() if since is None else since
    if all(_take_one(node, event) for event in events[:known]):
        for lot in coalescing.lots(events[known:], across_studies=node.kind == Node.Kind.ARCHIVE):
            if not _take_together(node, lot) and not all(_take_one(node, event) for event in lot):
                break
            if time.monotonic() - begun > LONGEST_SECONDS:
                break
    if events and node.epoch != events[0].epoch:
        raise PermanentError("epoch-superseded", "this node went on under another epoch meanwhile; is it a copy?")
    return EventAnswer(epoch=node.epoch, cursor=node.cursor)


@transaction.atomic
def _enter_epoch(node: Node, epoch: str) -> None:
    _lock(node)
    if node.epoch == epoch:
        return
    if InboxEvent.objects.filter(node=node, epoch=epoch).exists():
        raise PermanentError("epoch-superseded", "this node went on under another epoch; is it a copy?")
    log.info("node-enters-epoch", node=node.name, epoch=epoch)
    node.epoch, node.cursor = epoch, 0
    node.save(update_fields=["epoch", "cursor"])


def _lock(node: Node) -> None:
    """Lock the node; ``node`` hears how far its events are taken."""
    rows = execute("SELECT epoch, cursor FROM federation_node WHERE id = %(node)s FOR NO KEY UPDATE", {"node": node.pk})
    if not rows:
        raise PermanentError("unknown-key", f"{node.name} is not registered any more")
    ((node.epoch, node.cursor),) = rows


def _take_together(node: Node, lot: list[RawEvent]) -> bool:
    """Take the next events of a node as one; False when they are not the next, or must be taken one by one."""
    if not coalescing.study_of(lot[0]):
        return False
    try:
        with transaction.atomic():
            _lock(node)
            follow = [raw.seq for raw in lot] == list(range(node.cursor + 1, node.cursor + 1 + len(lot)))
            if node.epoch != lot[0].epoch or not follow:
                return False
            tell(node, coalescing.merged([Event.model_validate(raw.model_dump()) for raw in lot]))
            _keep_taken(node, lot)
    except (DatabaseError, InterfaceError) as error:
        if may_pass(error):
            raise
        return False
    except Exception as error:  # taken one by one it shows which of them it is, and the others are not held up
        log.info("events-taken-one-by-one", node=node.name, seq=lot[0].seq, error=type(error).__name__)
        return False
    node.cursor = lot[-1].seq
    return True


def _keep_taken(node: Node, taken: list[RawEvent], error: str = "", tried_with: str = "") -> None:
    """Keep events as they came, and how far the node is."""
    rows = [
        {
            "seq": raw.seq,
            "type": str(raw.body.get("type", ""))[:32],
            "at": raw.occurred_at.isoformat(),
            "body": raw.body,
        }
        for raw in taken
    ]
    execute(
        _KEEP,
        {
            "rows": json.dumps(rows),
            "node": node.pk,
            "epoch": taken[0].epoch,
            "error": error,
            "tried_with": tried_with,
            "cursor": taken[-1].seq,
        },
    )


@transaction.atomic
def _take_one(node: Node, raw: RawEvent) -> bool:
    """Take one event if it is the next one; False at a gap."""
    _lock(node)
    if node.epoch != raw.epoch:
        return False
    if raw.seq <= node.cursor:
        known = (
            InboxEvent.objects.filter(node=node, epoch=raw.epoch, seq=raw.seq).values_list("body", flat=True).first()
        )
        if known is not None and known != raw.body:
            raise PermanentError("epoch-forked", f"event {raw.seq} came twice with different content; is it a copy?")
        return True
    if raw.seq > node.cursor + 1:
        return False
    error = _apply(node, raw)
    _keep_taken(node, [raw], error, VOCABULARY if error.startswith(NOT_UNDERSTOOD) else "")
    node.cursor = raw.seq
    return True


def _apply(node: Node, raw: RawEvent) -> str:
    """Hand an event to its listeners, all or none of them; why it could not be applied, or "".

    What may work later is raised, so that the node sends the event again.
    """
    try:
        event = Event.model_validate(raw.model_dump())
    except ValidationError as error:
        log.error("event-not-understood", node=node.name, seq=raw.seq, type=raw.body.get("type"))
        return f"{NOT_UNDERSTOOD}: {error.error_count()} faults, first at {error.errors()[0]['loc']}"
    try:
        with transaction.atomic():
            tell(node, [event])
    except TransientError:
        raise
    except (DatabaseError, InterfaceError) as error:
        if may_pass(error):
            raise
        return _keep(node, raw, error)
    except Exception as error:
        # The boundary between a node's facts and our own code: kept with the event, shown, applied again by a person.
        return _keep(node, raw, error)
    return ""


def may_pass(error: DatabaseError | InterfaceError) -> bool:
    """Whether the database itself was at fault (away, deadlock, serialization), not what was written."""
    if isinstance(error, InterfaceError):
        return True
    state = str(getattr(error.__cause__, "sqlstate", None) or "08000")
    return state[:2] in {"08", "40", "53", "55", "57", "58"}


def _keep(node: Node, raw: RawEvent, error: Exception) -> str:
    log.exception("event-not-applied", node=node.name, seq=raw.seq, type=raw.body.get("type"))
    return f"{type(error).__name__}: {error}"


@transaction.atomic
def apply_again(row: InboxEvent) -> str:
    """Try an event again that could not be applied; what is wrong still, or ""."""
    locked = InboxEvent.objects.select_for_update(of=("self",)).select_related("node").get(pk=row.pk)
    if not locked.error:
        return ""
    raw = RawEvent.model_validate(
        {
            "schema_version": SCHEMA_VERSION,
            "epoch": locked.epoch,
            "seq": locked.seq,
            "occurred_at": locked.occurred_at,
            "body": locked.body,
        }
    )
    locked.error = _apply(locked.node, raw)
    locked.tried_with = VOCABULARY if locked.error.startswith(NOT_UNDERSTOOD) else ""
    locked.save(update_fields=["error", "tried_with"])
    return locked.error


def apply_what_is_understood_now() -> int:
    """Try the events again that were not understood by another version of this program; how many were applied."""
    rows = InboxEvent.objects.filter(error__startswith=NOT_UNDERSTOOD).exclude(tried_with=VOCABULARY).order_by("pk")
    return sum(apply_again(row) == "" for row in rows[:AT_ONCE])


def keep_audit(node: Node, event: Event) -> None:
    """Keep rows of a node's audit trail, and whether they follow each other as the node chained them (a listener)."""
    if not isinstance(event.body, AuditSealed):
        raise PermanentError("unexpected-event", event.body.type)
    for row in event.body.rows:
        before = NodeAuditRow.objects.filter(node=node, sequence=row.sequence - 1, hash=row.previous_hash)
        whole = row.hash == row.digest() and (row.sequence == 1 or before.exists())
        NodeAuditRow.objects.get_or_create(
            node=node,
            sequence=row.sequence,
            hash=row.hash[:64],
            defaults={
                "occurred_at": row.occurred_at,
                "actor": row.actor[:150],
                "action": row.action[:64],
                "outcome": row.outcome[:16],
                "entity": row.entity[:255],
                "address": row.address[:64],
                "detail": row.detail,
                "previous_hash": row.previous_hash[:64],
                "whole": whole,
            },
        )
    _judge_what_came_early(node, event.body.rows)


def _judge_what_came_early(node: Node, rows: list[AuditRow]) -> None:
    """What follows the last of these rows came before them where they were not understood at first."""
    for last in rows[-1:]:
        early = NodeAuditRow.objects.filter(node=node, sequence=last.sequence + 1, previous_hash=last.hash, whole=False)
        for row in early:
            row.whole = AuditRow.model_validate(row, from_attributes=True).digest() == row.hash
            row.save(update_fields=["whole"])


def keep_progress(node: Node, events: list[Event]) -> None:
    """Keep how far the node's ledger is with its deliveries (a listener)."""
    latest = {}
    for event in events:
        told = event.body
        if not isinstance(told, DeliveryProgress):
            raise PermanentError("unexpected-event", told.type)
        latest[told.study_instance_uid, told.destination] = DeliveryState(
            node=node,
            study_instance_uid=told.study_instance_uid,
            destination=told.destination,
            total=told.total,
            receipted=told.receipted,
            failed=told.failed,
            last_error=told.last_error[:255],
        )
    DeliveryState.objects.bulk_create(
        latest.values(),
        update_conflicts=True,
        unique_fields=["node", "study_instance_uid", "destination"],
        update_fields=["total", "receipted", "failed", "last_error", "updated_at"],
    )

"""Events up: number what lies on the outbox, without gaps, and send it until the centre has it.

Numbering and sending are separate loops, so that the ledger fills while the centre is away.
"""

import json
from collections.abc import Iterable
from datetime import timedelta

import httpx
import structlog
from django.db import transaction
from django.db.models import Max
from django.utils import timezone

from gateway import actions, client, ledger, queries, reconcile, registry
from gateway.envelope import SCHEMA_VERSION, EventAnswer, RawEvent, RawEventBatch
from gateway.models import JoinState, NumberedEvent, OutboxEntry
from gateway.protocols import HeldInstance
from standards.errors import PermanentError

log = structlog.get_logger(__name__)

ENTRIES_AT_ONCE = 1000
INSTANCES_PER_EVENT = 500
EVENTS_PER_BATCH = 500
BYTES_PER_BATCH = 4_000_000
LONGEST_PAUSE_SECONDS = 10.0
HELD_AT_ONCE = 500
SAME_REFUSAL_SECONDS = 60
ANOTHER_HAS_THIS_EPOCH = {"epoch-superseded", "epoch-forked"}


def catch_up() -> bool:
    """Put the next lot of what is held on the outbox again, if a join or new destinations ask for it.

    Returns whether there is more to do.
    """
    state = JoinState.objects.first() if queries.anything_to_catch_up() else None
    if state is None or state.backfill_after is None:
        return False
    held = registry.store().instances_after(state.backfill_after, HELD_AT_ONCE)
    with transaction.atomic():
        mine = JoinState.objects.select_for_update().filter(pk=state.pk, backfill_after=state.backfill_after)
        if not mine.exists():
            return True  # another directory came meanwhile; begin anew
        actions.record_held(held)
        mine.update(backfill_after=held[-1].instance_key if held else None)
    return bool(held)


def catch_up_ledger() -> bool:
    """Lay the next lot of what is held on the ledger again, if other rules ask for it; whether there is more to do."""
    state = JoinState.objects.first() if queries.anything_to_lay_on() else None
    if state is None or state.ledger_after is None:
        return False
    held = registry.store().instances_after(state.ledger_after, HELD_AT_ONCE)
    with transaction.atomic():
        mine = JoinState.objects.select_for_update().filter(pk=state.pk, ledger_after=state.ledger_after)
        if not mine.exists():
            return True  # other rules came meanwhile; begin anew
        ledger.lay_on(mine.get(), held)
        mine.update(ledger_after=held[-1].instance_key if held else None)
    return bool(held)


def number(*, with_progress: bool = True) -> int:
    """Turn outbox rows into numbered events and open the ledger's rows; how many rows were taken.

    Rows of one series that follow each other become one event. Without a join nothing is numbered: the rows wait.
    """
    # An idle node must not take the write lock several times a second.
    return _number(with_progress=with_progress) if queries.anything_to_number() else 0


@transaction.atomic
def _number(*, with_progress: bool) -> int:
    state = JoinState.objects.select_for_update().first()
    if state is None:
        return 0
    rows = OutboxEntry.objects.order_by("id")
    if not with_progress:
        rows = rows.exclude(kind=actions.DELIVERY_PROGRESS)
    entries = list(rows[:ENTRIES_AT_ONCE])
    if not entries:
        return 0
    stored = [entry for entry in entries if entry.kind == actions.INSTANCE_STORED]
    ledger.lay_on(state, [_instance_of(entry) for entry in stored])
    highest = NumberedEvent.objects.filter(epoch=state.epoch).aggregate(Max("seq"))["seq__max"] or 0
    seq = max(highest, state.acknowledged_seq)
    ahead = timedelta(seconds=state.clock_offset_seconds)  # the region's time, whatever this machine's clock says
    events = []
    for lot in _lots(entries):
        for body in _bodies(lot, state.epoch):
            seq += 1
            events.append(
                NumberedEvent(epoch=state.epoch, seq=seq, occurred_at=lot[0].occurred_at + ahead, body=body),
            )
    NumberedEvent.objects.bulk_create(events)
    OutboxEntry.objects.filter(pk__in=[entry.pk for entry in entries]).delete()
    return len(entries)


def _instance_of(entry: OutboxEntry) -> HeldInstance:
    return HeldInstance(entry.instance_key or 0, entry.series_key or 0, **entry.body)


def _lots(entries: list[OutboxEntry]) -> Iterable[list[OutboxEntry]]:
    """Rows that become one event, in the order of the first row of each.

    A release ends the lot of its series: an instance that comes back later is announced after it.
    """
    open_lots: dict[tuple[object, ...], list[OutboxEntry]] = {}
    ordered: list[list[OutboxEntry]] = []
    for entry in entries:
        match entry.kind:
            case actions.INSTANCE_STORED:
                key: tuple[object, ...] = (entry.kind, entry.series_key)
            case actions.DELIVERY_PROGRESS:
                key = (entry.kind, entry.body["study_instance_uid"], entry.body["destination"])
            case actions.SERIES_RELEASED:
                open_lots.pop((actions.INSTANCE_STORED, entry.series_key), None)
                key = (entry.kind, entry.pk)
            case _:
                key = (entry.kind, json.dumps(entry.body, sort_keys=True))
        lot = open_lots.get(key)
        if lot is None or len(lot) >= INSTANCES_PER_EVENT:
            lot = open_lots[key] = []
            ordered.append(lot)
        lot.append(entry)
    return ordered


def _bodies(lot: list[OutboxEntry], epoch: str) -> list[dict[str, object]]:
    """The bodies of the events that one lot becomes: one, or none when there is nothing left to say."""
    first = lot[0]
    match first.kind:
        case actions.INSTANCE_STORED:
            return _series_changed(lot)
        case actions.SERIES_RELEASED:
            return _series_released(first)
        case actions.SERIES_HELD:
            return [reconcile.held_body(first.body)]
        case actions.DELIVERY_PROGRESS:
            return [ledger.progress_of(**first.body)]
        case actions.ASSOCIATION_REFUSED:
            since = timezone.now() - timedelta(seconds=SAME_REFUSAL_SECONDS)
            told = NumberedEvent.objects.filter(epoch=epoch, body=first.body, occurred_at__gte=since).exists()
            return [] if told else [first.body]
        case _:
            return [first.body]


def _series_changed(lot: list[OutboxEntry]) -> list[dict[str, object]]:
    series = registry.store().describe_series(lot[0].series_key or 0)
    if series is None:
        log.warning("series-gone-before-announced", series_key=lot[0].series_key)
        return []
    keys = list(dict.fromkeys(entry.instance_key for entry in lot if entry.instance_key is not None))
    return [
        {
            "type": "series.changed",
            "patient": series.patient.model_dump(mode="json"),
            "study": series.study.model_dump(mode="json"),
            "series": series.series.model_dump(mode="json"),
            "added": [item.model_dump(mode="json") for item in registry.store().describe_instances(keys)],
            "count": series.count,
            "root_hash": series.root_hash,
        }
    ]


def _series_released(entry: OutboxEntry) -> list[dict[str, object]]:
    series = registry.store().describe_series(entry.series_key or 0)
    if series is None:
        log.warning("series-gone-before-announced", series_key=entry.series_key)
        return []
    return [
        {
            "type": "series.released",
            "study_instance_uid": series.study.study_instance_uid,
            "series_instance_uid": series.series.series_instance_uid,
            "patient_id": series.patient.patient_id,
            "released": entry.body["released"],
            "count": series.count,
            "root_hash": series.root_hash,
        }
    ]


def waiting_events(state: JoinState) -> int:
    """How many numbered events the centre has not acknowledged."""
    return NumberedEvent.objects.filter(epoch=state.epoch, seq__gt=state.acknowledged_seq).count()


def push(centre: httpx.Client) -> float | None:
    """Send the next batch of numbered events; after how many seconds to go on, None when there was nothing to send.

    A busy centre asks to gather for a while, for it does less with more at once. What fills a batch need not wait.

    Raises: TransientError, PermanentError as ``client.ask`` does.
    """
    state = JoinState.objects.first()
    if state is None:
        return None
    batch, is_full = _next_batch(state)
    if not batch:
        return None
    body = RawEventBatch(events=batch).model_dump_json()
    try:
        answer = client.ask(centre, state, "POST", "/federation/v1/events", body)
    except PermanentError as error:
        if error.code in ANOTHER_HAS_THIS_EPOCH:
            log.error("another-node-has-this-epoch", epoch=state.epoch, error=str(error))
            actions.new_epoch()
        raise
    heard = EventAnswer.model_validate_json(answer)
    settle(heard, state.acknowledged_seq)
    return 0.0 if is_full else min(heard.pause, LONGEST_PAUSE_SECONDS)


def _next_batch(state: JoinState) -> tuple[list[RawEvent], bool]:
    """The events to send next, and whether no more fit into one batch."""
    rows = NumberedEvent.objects.filter(epoch=state.epoch, seq__gt=state.acknowledged_seq).order_by("seq")
    batch: list[RawEvent] = []
    size = 0
    for row in rows[:EVENTS_PER_BATCH].iterator(chunk_size=50):
        size += len(json.dumps(row.body))
        if batch and size > BYTES_PER_BATCH:
            return batch, True
        batch.append(
            RawEvent(
                schema_version=SCHEMA_VERSION, epoch=row.epoch, seq=row.seq, occurred_at=row.occurred_at, body=row.body
            )
        )
    return batch, len(batch) == EVENTS_PER_BATCH


@transaction.atomic
def settle(answer: EventAnswer, asked_from: int) -> None:
    """Take the centre's cursor for the truth, upwards and downwards.

    ``asked_from`` is what was acknowledged when the centre was asked; an answer overtaken by another one is ignored.
    A lower one means the centre was restored from a backup: the kept events are sent again from there. A cursor that
    our own events cannot serve (they are past their time, or this node is itself the restored one) begins a new epoch.
    """
    state = JoinState.objects.select_for_update().first()
    if state is None or answer.epoch != state.epoch or state.acknowledged_seq != asked_from:
        return
    ours = NumberedEvent.objects.filter(epoch=state.epoch)
    highest = ours.aggregate(Max("seq"))["seq__max"] or 0
    if answer.cursor > max(highest, state.acknowledged_seq):
        log.warning("centre-knows-more-of-this-node-than-it-does", cursor=answer.cursor, highest=highest)
        actions.new_epoch()
        return
    if answer.cursor < state.acknowledged_seq:
        log.warning("centre-lost-events", cursor=answer.cursor, acknowledged=state.acknowledged_seq)
        if not ours.filter(seq=answer.cursor + 1).exists():
            actions.new_epoch()
            return
        ours.filter(seq__gt=answer.cursor).update(acknowledged_at=None)
    else:
        ours.filter(seq__gt=state.acknowledged_seq, seq__lte=answer.cursor).update(acknowledged_at=timezone.now())
    state.acknowledged_seq = answer.cursor
    state.centre_seen_at = timezone.now()
    state.last_error = ""
    state.save(update_fields=["acknowledged_seq", "centre_seen_at", "last_error"])


def prune() -> int:
    """Forget events that were acknowledged longer ago than they are kept; how many. The newest always stays."""
    limit = timezone.now() - timedelta(days=registry.node().event_retention_days)
    old = NumberedEvent.objects.filter(acknowledged_at__lt=limit)
    state = JoinState.objects.first()
    if state is not None:
        old = old.exclude(epoch=state.epoch, seq__gte=state.acknowledged_seq)
    return old.delete()[0]

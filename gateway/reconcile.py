"""Does the centre believe of this node what it really holds? Compared by itself, again and again; see the envelope.

A round reads the index page by page and rests nineteen times as long as it read, so that a node of a million series
spends a twentieth of one core on it. What the centre wants told again is told by events, in their order.
"""

import threading
import time

import httpx
import structlog
from django.db import transaction
from django.utils import timezone

from gateway import actions, client, queries, registry
from gateway.envelope import Bucket, HeldSeries, HoldingsAnswer, HoldingsQuestion, ProveAgain, SeriesKey, TellHoldings
from gateway.envelope.holdings import SERIES_AT_ONCE, line
from gateway.models import Delivery, JoinState
from standards.digests import root_hash

log = structlog.get_logger(__name__)

PATH = "/federation/v1/holdings"
ROUND_SECONDS = 6 * 3600.0
FIRST_SECONDS = 60.0
"""After a start the node has more urgent things to do."""
PAGE = 200
REST = 19.0
"""How many times as long as a page took to read it rests; not when somebody waits for the answer."""
BUSY_SECONDS = 2.0
ATTEMPTS = 60
_wanted = threading.Event()


def begin_now(command: TellHoldings | None = None) -> None:
    """Begin a round at once: the centre asked (a command), or this node was joined anew."""
    _wanted.set()


class Rounds:
    """Rounds of comparing, in steps of some milliseconds."""

    def __init__(self) -> None:
        self._epoch = ""
        self._next = time.monotonic() + FIRST_SECONDS
        self._after = 0
        self._buckets: dict[int, tuple[int, int]] | None = None
        self._hurried = False

    def step(self, centre: httpx.Client, state: JoinState) -> float:
        """Do what is next; seconds until the next step. Raises: TransientError, PermanentError as ``client.ask``."""
        if state.backfill_after is not None:
            return BUSY_SECONDS  # everything is being told anyway
        if self._epoch and self._epoch != state.epoch:
            begin_now()
        self._epoch = state.epoch
        if _wanted.is_set():
            _wanted.clear()
            self._buckets, self._after, self._hurried = {}, 0, True
        if self._buckets is None:
            if time.monotonic() < self._next:
                return 1.0
            self._buckets, self._after, self._hurried = {}, 0, False
        began = time.monotonic()
        if self._read_page(self._buckets):
            return 0.0 if self._hurried else REST * (time.monotonic() - began)
        buckets, self._buckets = self._buckets, None
        self._next = time.monotonic() + FIRST_SECONDS  # where this fails, another round begins soon
        told = compare(centre, state, buckets)
        self._next = time.monotonic() + ROUND_SECONDS
        log.info("holdings-compared", series=sum(count for count, _ in buckets.values()), told=told)
        return 1.0

    def _read_page(self, buckets: dict[int, tuple[int, int]]) -> bool:
        """Add the next page to the buckets; False when there is none."""
        page = registry.store().series_after(self._after, PAGE)
        if not page:
            return False
        for one in registry.store().summarize([key for key, _ in page]):
            count, total = buckets.get(one.key.bucket, (0, 0))
            buckets[one.key.bucket] = count + 1, total ^ line(one.key, one.count, one.root_hash, one.identity)
        self._after = page[-1][0]
        return True


def compare(centre: httpx.Client, state: JoinState, buckets: dict[int, tuple[int, int]]) -> int:
    """Compare all buckets, open those that differ, and put on the outbox what is to be told again; how many series.

    Raises: TransientError, PermanentError as ``client.ask`` does.
    """
    sums = [Bucket(bucket=key, count=n, total=f"{total:016x}") for key, (n, total) in sorted(buckets.items())]
    question = HoldingsQuestion(epoch=state.epoch, seq=0, buckets=sums)
    differ = set(_ask(centre, state, question).differ)
    tell: list[SeriesKey] = []
    for lot in _lots(differ):
        tell += _open(centre, state, lot)
    for key in tell:
        tell_again(key)
    _ask(centre, state, HoldingsQuestion(epoch=state.epoch, seq=0, ended=True))
    return len(tell)


def _lots(differ: set[int]) -> list[dict[int, list[int]]]:
    """The buckets with the surrogate keys of their series, in lots of which each fits into one request."""
    keys: dict[int, list[int]] = {bucket: [] for bucket in sorted(differ)}
    after = 0
    while differ and (page := registry.store().series_after(after, 5 * PAGE)):
        for key, name in page:
            if name.bucket in differ:
                keys[name.bucket].append(key)
        after = page[-1][0]
    lots: list[dict[int, list[int]]] = []
    size = 0
    for bucket, found in keys.items():
        if not lots or size + len(found) > SERIES_AT_ONCE:
            lots.append({})
            size = 0
        lots[-1][bucket] = found
        size += len(found)
    return lots


def _open(centre: httpx.Client, state: JoinState, lot: dict[int, list[int]]) -> list[SeriesKey]:
    """What the centre wants told again of these buckets. It compares only when it has taken every event of before."""
    for _ in range(ATTEMPTS):
        seq = _quiet_seq(state)
        if seq is not None:
            series: list[HeldSeries] = []
            keys = [key for found in lot.values() for key in found]
            for start in range(0, len(keys), PAGE):
                series += registry.store().summarize(keys[start : start + PAGE])
            if _quiet_seq(state) == seq:
                question = HoldingsQuestion(epoch=state.epoch, seq=seq, opened=sorted(lot), series=series)
                answer = _ask(centre, state, question)
                if answer.state == "compared":
                    return [SeriesKey(*key) for key in answer.tell]
        time.sleep(BUSY_SECONDS)
    log.info("holdings-not-compared", reason="events are under way", buckets=len(lot))
    return []


def _quiet_seq(state: JoinState) -> int | None:
    """The last event, if the centre has acknowledged it and nothing waits to be numbered."""
    if queries.anything_to_number() or queries.anything_to_tell():
        return None
    return JoinState.objects.filter(pk=state.pk, epoch=state.epoch).values_list("acknowledged_seq", flat=True).first()


def _ask(centre: httpx.Client, state: JoinState, question: HoldingsQuestion) -> HoldingsAnswer:
    answer = client.ask(centre, state, "POST", PATH, question.model_dump_json(), timeout=120.0)
    return HoldingsAnswer.model_validate_json(answer)


@transaction.atomic
def tell_again(key: SeriesKey) -> None:
    """Put all that is held of a series on the outbox again, and behind it that this is all."""
    held = registry.store().instances_of_series(key)
    if held:
        actions.record_held(held)
    actions.record_series_held(key)


def held_body(key: dict[str, str]) -> dict[str, object]:
    """The body of ``series.held`` for what is held at this moment."""
    entries = [
        (one.sop_instance_uid, one.dataset_sha256) for one in registry.store().instances_of_series(SeriesKey(**key))
    ]
    return {"type": actions.SERIES_HELD, **key, "held": entries, "count": len(entries), "root_hash": root_hash(entries)}


@transaction.atomic
def prove_again(command: ProveAgain) -> None:
    """Deliver a series again to a destination that no longer holds all of it, though it gave receipts."""
    name = SeriesKey(command.study_instance_uid, command.patient_id, command.series_instance_uid)
    keys = [held.instance_key for held in registry.store().instances_of_series(name)]
    for start in range(0, len(keys), 500):
        Delivery.objects.filter(
            instance_key__in=keys[start : start + 500],
            destination=command.destination,
            status=Delivery.Status.RECEIPTED,
        ).update(
            status=Delivery.Status.WAITING,
            receipt=None,
            receipted_at=None,
            priority=command.priority,
            next_attempt_at=timezone.now(),
        )

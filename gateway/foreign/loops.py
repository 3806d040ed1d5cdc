"""Who looks after the foreign PACS of this node: polls and fetches in threads of their own, so that a slow PACS holds
up nobody else."""

import contextlib
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import structlog
from django.db import connections
from django.utils import timezone

from gateway import queries as gateway_queries
from gateway import registry
from gateway.deliveries import pause
from gateway.envelope import Configuration, ForeignSource
from gateway.foreign import actions, polling, probing, queries, retrieving
from gateway.foreign.models import ForeignPacs, Retrieval
from gateway.foreign.pacing import Pace, is_within
from gateway.foreign.pacs import pacs_of
from gateway.models import JoinState
from standards.errors import RegisError, TransientError

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
_FIRST_PAUSE_SECONDS = 5.0


class Attendant:
    """One look a second at what is due; all state that matters is in the database."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._polling: set[str] = set()
        self._probing: set[str] = set()
        self._fetching: dict[str, set[int]] = {}
        self._paces: dict[str, Pace] = {}

    def run(self) -> None:
        """Begin what is due, and tell the centre what is new."""
        configuration = gateway_queries.configuration()
        names = sorted(source.name for source in configuration.foreign)
        now = timezone.now().astimezone(site_zone())
        rows = {row.name: row for row in ForeignPacs.objects.all()}
        # Not once, but when there is one: a poll that was under way brings its source back as it ends.
        is_left = any(row.retired_at is None and name not in names for name, row in rows.items())
        if configuration.version and is_left:  # before it is told, a node knows nothing of sources
            actions.retire(names, now=timezone.now())
        for source in configuration.foreign:
            row = rows.get(source.name)
            self._begin_probe(source, row, now)
            if source.enabled:
                self._begin_poll(source, row, now)
                self._begin_fetches(source, configuration, now)
        if names or ForeignPacs.objects.filter(untold=True).exists():
            actions.tell()

    def pace_of(self, source: ForeignSource) -> Pace:
        """The pace of a source, kept from poll to poll; a changed setting holds at once."""
        pace = self._paces.setdefault(source.name, Pace(source.queries_per_minute))
        pace.per_minute = source.queries_per_minute
        return pace

    def _begin_probe(self, source: ForeignSource, row: ForeignPacs | None, now: datetime) -> None:
        """At once, whatever the hours: a person waits for it. It is within the pace as every request is."""
        if row is None or row.probe_asked_at is None or source.name in self._probing:
            return
        self._probing.add(source.name)
        self._start(f"probe-{source.name}", partial(self._probe, source, row.probe_asked_at, now))

    def _probe(self, source: ForeignSource, asked_at: datetime, now: datetime) -> None:
        try:
            tried = probing.with_patience(source)
            with contextlib.closing(pacs_of(tried, self.pace_of(source))) as pacs:
                found = probing.probe(tried, pacs, asked_at=asked_at, today=now.date())
            actions.record_probe(source.name, found)
        finally:
            self._probing.discard(source.name)

    def _begin_poll(self, source: ForeignSource, row: ForeignPacs | None, now: datetime) -> None:
        is_due = row is None or row.retired_at is not None or row.next_poll_at <= now
        if not is_due or source.name in self._polling or not is_within(source.hours, now):
            return
        self._polling.add(source.name)
        self._start(f"poll-{source.name}", partial(self._poll, source, row, now))

    def _poll(self, source: ForeignSource, row: ForeignPacs | None, now: datetime) -> None:
        fresh = row is None or row.swept_at is None or row.retired_at is not None
        sweep = fresh or (row is not None and now - (row.swept_at or now) >= timedelta(seconds=source.sweep_seconds))
        try:
            with contextlib.closing(pacs_of(source, self.pace_of(source))) as pacs:
                look = polling.poll(source, pacs, now=now, sweep=sweep)
        except Exception as error:  # the boundary of the thread: kept, shown, tried again later
            failures = (row.failures if row else 0) + 1
            rest = pause(failures, first=_FIRST_PAUSE_SECONDS, longest=max(source.poll_seconds, 60))
            due = timezone.now() + timedelta(seconds=rest)
            actions.record_poll(source, now=now, due=due, swept=False, quirks=None, error=_named(error))
            log.warning("foreign-poll-failed", source=source.name, error=_named(error), failures=failures)
        else:
            due = timezone.now() + timedelta(seconds=source.poll_seconds)
            actions.record_poll(source, now=now, due=due, swept=sweep, quirks=look.quirks)
            log.info("foreign-polled", source=source.name, studies=len(look.studies), sweep=sweep, whole=look.is_whole)
        finally:
            self._polling.discard(source.name)

    def _begin_fetches(self, source: ForeignSource, configuration: Configuration, now: datetime) -> None:
        with self._lock:
            busy = self._fetching.setdefault(source.name, set())
            room = source.concurrent_retrieves - len(busy)
            if room <= 0:
                return
            night = [f"{configuration.mirror.night_since}-{configuration.mirror.night_until}"]
            jobs = queries.due_jobs(
                source.name,
                busy=busy,
                now=now,
                by_rule=is_within(source.hours, now),
                at_night=is_within(night, now),
            )[:room]
            busy.update(job.pk for job in jobs)
        for job in jobs:
            self._start(f"fetch-{source.name}-{job.pk}", partial(self._fetch, source, job))

    def _fetch(self, source: ForeignSource, job: Retrieval) -> None:
        try:
            with contextlib.closing(pacs_of(source, self.pace_of(source))) as pacs:
                retrieving.fetch(job, source, pacs)
        except Exception as error:  # the boundary of the thread: kept, shown, tried again later
            known = error if isinstance(error, RegisError) else TransientError("unexpected", _named(error))
            held = registry.store().received_of_study(job.study_instance_uid)
            actions.record_attempt(job, expected=None, held=held, before=len(held), error=known)
            log.warning("foreign-fetch-failed", source=source.name, job=job.pk, error=_named(error))
        finally:
            with self._lock:
                self._fetching[source.name].discard(job.pk)

    @staticmethod
    def _start(name: str, work: Callable[[], None]) -> None:
        threading.Thread(target=partial(_guarded, name, work), name=name, daemon=True).start()


def _guarded(name: str, work: Callable[[], None]) -> None:
    try:
        work()
    except Exception:  # not even the failure could be kept; the next look begins it again
        log.exception("foreign-work-broke", work=name)
    finally:
        connections.close_all()


def _named(error: Exception) -> str:
    if not isinstance(error, RegisError):
        log.error("foreign-work-broke", exc_info=error)
    return str(error) if isinstance(error, RegisError) else f"{type(error).__name__}: {error}"


def site_zone() -> ZoneInfo:
    """The zone that the site's hours are meant in."""
    directory = JoinState.objects.values_list("directory", flat=True).first() or {}
    try:
        return ZoneInfo(directory.get("time_zone") or "Europe/Moscow")
    except ZoneInfoNotFoundError:
        log.warning("time-zone-unknown", zone=directory.get("time_zone"))
        return ZoneInfo("UTC")


attendant = Attendant()

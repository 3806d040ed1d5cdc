"""Every write of what was seen at foreign PACS and of what is fetched from them."""

import hashlib
import json
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import structlog
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from gateway import queries as gateway_queries
from gateway.deliveries import pause
from gateway.envelope import (
    FetchStudy,
    ForeignRetrieval,
    ForeignSource,
    ForeignSourceState,
    ForeignStudySeen,
    Probe,
    ProbeSource,
)
from gateway.foreign.models import ForeignPacs, ForeignStudy, Retrieval
from gateway.foreign.pacs import FoundInstance, FoundStudy
from gateway.models import JoinState, OutboxEntry
from standards.errors import PermanentError, RegisError

log = structlog.get_logger(__name__)

MOST_ATTEMPTS = 12
MISSES_UNTIL_GONE = 2
_NAMED = 50
"""So many missing instances are named; all are counted."""
_AT_ONCE = 200
_WRITTEN_AT_ONCE = 50
_FIRST_PAUSE_SECONDS = 5.0
_SOURCE_REMOVED = "source-removed"
_AWAY = {"connection-failed", "association-rejected", "timed-out", "connection-lost", "unreachable", "busy"}
_LONGEST_PAUSE_SECONDS = 3600.0
_TOLD_EVERY = timedelta(minutes=5)
_OF_POLLS = ["next_poll_at", "retired_at", "failures", "last_error", "failing_since", "polled_at", "swept_at", "quirks"]


def record_seen(source: ForeignSource, found: Iterable[FoundStudy], *, now: datetime) -> int:
    """Keep what a PACS lists; how many studies are new or changed. New ones are fetched where a rule says so; one that
    grew is fetched again. In small transactions: whoever stores images must not wait for a long list."""
    studies, changed = list(found), 0
    for start in range(0, len(studies), _WRITTEN_AT_ONCE):
        changed += _record_lot(source, studies[start : start + _WRITTEN_AT_ONCE], now)
    return changed


@transaction.atomic
def _record_lot(source: ForeignSource, studies: list[FoundStudy], now: datetime) -> int:
    uids = [one.study.study_instance_uid for one in studies]
    rows = ForeignStudy.objects.filter(source=source.name, study_instance_uid__in=uids)
    known = {row.study_instance_uid: row for row in rows}
    changed, same = 0, []
    for one in studies:
        uid = one.study.study_instance_uid
        row = known.get(uid)
        described = _described(source.name, one)
        when = _rule(source, one.modalities)
        # A PACS that says nothing of a count today has not lost what it said yesterday.
        series_count = one.series_count if one.series_count is not None or row is None else row.series_count
        count = one.instance_count if one.instance_count is not None or row is None else row.instance_count
        values: dict[str, Any] = {
            "study_date": one.study.study_date[:8],
            "described": described,
            "fingerprint": hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest(),
            "series_count": series_count,
            "instance_count": count,
            "may_fetch": when != "catalogue",
            "seen_at": now,
            "missed": 0,
            "gone_at": None,
        }
        if row is not None and row.missed == 0 and all(getattr(row, name) == values[name] for name in _TOLD):
            same.append(row.pk)
            continue
        changed += 1
        ForeignStudy.objects.update_or_create(
            source=source.name, study_instance_uid=uid, defaults={**values, "changed_at": now, "untold": True}
        )
        if row is None and when in ("now", "night"):
            _want(source.name, uid, priority=50, at_night=when == "night")
        elif row is not None and (count or 0) > (row.instance_count or 0):
            _reopen(source.name, uid)
    ForeignStudy.objects.filter(pk__in=same).update(seen_at=now)
    return changed


_TOLD = ("fingerprint", "series_count", "instance_count", "may_fetch", "gone_at")


def _described(source: str, found: FoundStudy) -> dict[str, Any]:
    seen = ForeignStudySeen(
        source=source, patient=found.patient, study=found.study, modalities=sorted(set(found.modalities))
    )
    return seen.model_dump(mode="json", exclude={"series_count", "instance_count", "may_fetch", "gone"})


def _rule(source: ForeignSource, modalities: Iterable[str]) -> str:
    present = set(modalities)
    for rule in source.rules:
        if not rule.modalities or present & set(rule.modalities):
            return rule.when
    return "on-demand"


def _want(source: str, uid: str, *, priority: int, at_night: bool = False, by_person: bool = False) -> None:
    Retrieval.objects.get_or_create(
        source=source,
        study_instance_uid=uid,
        defaults={
            "priority": priority,
            "at_night": at_night,
            "by_person": by_person,
            "next_attempt_at": timezone.now(),
        },
    )


def _reopen(source: str, uid: str) -> None:
    Retrieval.objects.filter(source=source, study_instance_uid=uid, status=Retrieval.Status.DONE).update(
        status=Retrieval.Status.WAITING, attempts=0, next_attempt_at=timezone.now(), done_at=None, untold=True
    )


@transaction.atomic
def record_missed(source: ForeignSource, since: str, until: str, seen: set[str], *, now: datetime) -> int:
    """Count the studies of these dates that a whole look did not show; at the second time they are gone."""
    rows = ForeignStudy.objects.filter(
        source=source.name, study_date__gte=since, study_date__lte=until, gone_at=None
    ).values_list("pk", "study_instance_uid", "missed")
    lost = [(key, missed) for key, uid, missed in rows if uid not in seen]
    gone = [key for key, missed in lost if missed + 1 >= MISSES_UNTIL_GONE]
    ForeignStudy.objects.filter(pk__in=[key for key, _ in lost]).update(missed=F("missed") + 1)
    ForeignStudy.objects.filter(pk__in=gone).update(gone_at=now, untold=True)
    if gone:
        log.info("foreign-studies-gone", source=source.name, studies=len(gone))
    return len(gone)


@transaction.atomic
def record_poll(
    source: ForeignSource, *, now: datetime, due: datetime, swept: bool, quirks: Iterable[str] | None, error: str = ""
) -> None:
    """Keep how a poll went and when the next one is due. ``quirks`` None: nothing was learnt."""
    row, _ = ForeignPacs.objects.get_or_create(name=source.name, defaults={"next_poll_at": due})
    before = (row.last_error, row.failing_since, row.quirks)
    if row.retired_at is not None:  # it is back, and so is what was to be fetched from it
        Retrieval.objects.filter(source=source.name, last_error=_SOURCE_REMOVED).update(
            status=Retrieval.Status.WAITING, last_error="", next_attempt_at=now, untold=True
        )
    row.next_poll_at, row.retired_at = due, None
    if error:
        row.failures += 1
        row.last_error, row.failing_since = error[:255], row.failing_since or now
    else:
        row.failures, row.last_error, row.failing_since, row.polled_at = 0, "", None, now
        row.swept_at = now if swept else row.swept_at
    if quirks is not None:
        row.quirks = sorted(set(quirks))
    is_news = swept or before != (row.last_error, row.failing_since, row.quirks)
    row.untold = row.untold or is_news or row.told_at is None or now - row.told_at >= _TOLD_EVERY
    # Not all of the row: a person may have asked for a probe meanwhile.
    row.save(update_fields=[*_OF_POLLS, "untold"])


@transaction.atomic
def apply_probe(command: ProbeSource) -> None:
    """Try a PACS out because a person asked for it (command "foreign.probe").

    Raises: PermanentError("unknown-source").
    """
    if command.source not in {source.name for source in gateway_queries.configuration().foreign}:
        raise PermanentError("unknown-source", f"this node knows no PACS {command.source}")
    ForeignPacs.objects.update_or_create(
        name=command.source,
        defaults={"probe_asked_at": command.asked_at},
        create_defaults={"probe_asked_at": command.asked_at, "next_poll_at": timezone.now()},
    )


@transaction.atomic
def record_probe(name: str, probe: Probe) -> None:
    """Keep what came of a probe; the next poll is due at once."""
    row = ForeignPacs.objects.select_for_update().filter(name=name).first()
    if row is None:
        return
    if row.probe_asked_at == probe.asked_at:
        row.probe_asked_at = None
    row.probe, row.next_poll_at, row.untold = probe.model_dump(mode="json"), timezone.now(), True
    row.save(update_fields=["probe_asked_at", "probe", "next_poll_at", "untold"])


@transaction.atomic
def retire(names: Iterable[str], *, now: datetime) -> None:
    """The region has no other sources than these: what was seen at others is gone, and nothing is fetched there."""
    left = ForeignPacs.objects.filter(retired_at=None).exclude(name__in=list(names))
    for row in left:
        log.info("foreign-source-retired", source=row.name)
        ForeignStudy.objects.filter(source=row.name, gone_at=None).update(gone_at=now, untold=True)
        Retrieval.objects.filter(source=row.name, status=Retrieval.Status.WAITING).update(
            status=Retrieval.Status.FAILED, last_error=_SOURCE_REMOVED, untold=True
        )
        row.retired_at, row.untold = now, True
        row.save()


@transaction.atomic
def apply_fetch(command: FetchStudy) -> None:
    """Fetch a study because a person asked for it (command "study.fetch"); one that failed gets another try.

    Raises: PermanentError "unknown-source", "not-to-be-fetched".
    """
    names = {source.name for source in gateway_queries.configuration().foreign}
    if command.source not in names:
        raise PermanentError("unknown-source", f"this node knows no PACS {command.source}")
    study = ForeignStudy.objects.filter(source=command.source, study_instance_uid=command.study_instance_uid).first()
    if study is not None and not study.may_fetch:
        raise PermanentError("not-to-be-fetched", f"a rule of {command.source} lists this study only")
    Retrieval.objects.update_or_create(
        source=command.source,
        study_instance_uid=command.study_instance_uid,
        defaults={
            "priority": command.priority,
            "by_person": True,
            "at_night": False,
            "status": Retrieval.Status.WAITING,
            "attempts": 0,
            "next_attempt_at": timezone.now(),
            "last_error": "",
            "done_at": None,
            "untold": True,
        },
    )


@transaction.atomic
def record_attempt(
    job: Retrieval,
    *,
    expected: list[FoundInstance] | None,
    held: set[str],
    before: int,
    complaint: str = "",
    error: RegisError | None = None,
) -> Retrieval.Status:
    """Keep what came of a try: done when nothing is missing, else another try after a longer pause, named.

    ``before``: how many were here when it began; while a try brings something, the tries are not counted.
    """
    row = Retrieval.objects.select_for_update().get(pk=job.pk)
    missing: list[str] = []
    unlisted = 0
    if expected is not None:
        listed = {one.sop_instance_uid for one in expected}
        missing = sorted(listed - held)
        unlisted = len(held - listed)
        row.expected = len(listed)
    row.held, row.missing, row.missing_count, row.unlisted_count = len(held), missing[:_NAMED], len(missing), unlisted
    row.untold = True
    whole = error is None and not missing and not complaint
    if whole:
        row.status, row.done_at, row.last_error = Retrieval.Status.DONE, timezone.now(), ""
        row.attempts += 1
    elif error is not None and error.code == "gave-way":
        row.next_attempt_at, row.last_error = timezone.now() + timedelta(seconds=_FIRST_PAUSE_SECONDS), ""
    else:
        row.attempts = 1 if len(held) > before else row.attempts + 1
        named = str(error) if error is not None else complaint
        if missing:
            named = f"{len(missing)} of {row.expected} did not come" + (f": {named}" if named else "")
        row.last_error = named[:255]
        is_away = error is not None and error.code in _AWAY  # says nothing of the study: it waits
        given_up = not is_away and (isinstance(error, PermanentError) or row.attempts >= MOST_ATTEMPTS)
        row.status = Retrieval.Status.FAILED if given_up else Retrieval.Status.WAITING
        row.next_attempt_at = timezone.now() + timedelta(
            seconds=pause(row.attempts, first=_FIRST_PAUSE_SECONDS, longest=_LONGEST_PAUSE_SECONDS)
        )
    row.save()
    return Retrieval.Status(row.status)


@transaction.atomic
def tell() -> int:
    """Put what the centre was not told yet on the outbox; how many events. Before a join nothing is told."""
    state = JoinState.objects.first()
    if state is None:
        return 0
    for name in ForeignPacs.objects.exclude(told_epoch=state.epoch).values_list("name", flat=True):
        ForeignStudy.objects.filter(source=name, gone_at=None).update(untold=True)
        Retrieval.objects.filter(source=name).update(untold=True)
        ForeignPacs.objects.filter(name=name).update(told_epoch=state.epoch, untold=True)
    entries: list[OutboxEntry] = []
    studies = list(ForeignStudy.objects.filter(untold=True).order_by("pk")[:_AT_ONCE])
    entries += [OutboxEntry(kind="foreign.study", body=_seen(row)) for row in studies]
    ForeignStudy.objects.filter(pk__in=[row.pk for row in studies]).update(untold=False)
    # After the studies, so that the centre knows what is fetched.
    jobs = list(Retrieval.objects.filter(untold=True).order_by("pk")[:_AT_ONCE]) if len(studies) < _AT_ONCE else []
    entries += [OutboxEntry(kind="foreign.retrieval", body=_retrieval(row)) for row in jobs]
    Retrieval.objects.filter(pk__in=[row.pk for row in jobs]).update(untold=False)
    for pacs in ForeignPacs.objects.filter(untold=True):
        entries.append(OutboxEntry(kind="foreign.source", body=_state(pacs)))
        ForeignPacs.objects.filter(pk=pacs.pk).update(untold=False, told_at=timezone.now())
    OutboxEntry.objects.bulk_create(entries)
    return len(entries)


def _seen(row: ForeignStudy) -> dict[str, Any]:
    event = ForeignStudySeen.model_validate(
        {
            **row.described,
            "series_count": row.series_count,
            "instance_count": row.instance_count,
            "may_fetch": row.may_fetch,
            "gone": row.gone_at is not None,
        }
    )
    return event.model_dump(mode="json")


def _retrieval(row: Retrieval) -> dict[str, Any]:
    study = ForeignStudy.objects.filter(source=row.source, study_instance_uid=row.study_instance_uid).first()
    event = ForeignRetrieval.model_validate(
        {
            "source": row.source,
            "study_instance_uid": row.study_instance_uid,
            "patient_id": study.described["patient"]["patient_id"] if study else "",
            "status": row.status,
            "expected": row.expected,
            "held": row.held,
            "missing_count": row.missing_count,
            "missing": row.missing[:20],
            "unlisted_count": row.unlisted_count,
            "attempts": row.attempts,
            "next_attempt_at": row.next_attempt_at if row.status == Retrieval.Status.WAITING else None,
            "last_error": row.last_error,
        }
    )
    return event.model_dump(mode="json")


def _state(row: ForeignPacs) -> dict[str, Any]:
    return ForeignSourceState(
        source=row.name,
        polled_at=row.polled_at,
        failing_since=row.failing_since,
        last_error=row.last_error,
        studies=ForeignStudy.objects.filter(source=row.name, gone_at=None).count(),
        quirks=row.quirks,
        retired=row.retired_at is not None,
        probe=Probe.model_validate(row.probe) if row.probe else None,
    ).model_dump(mode="json")

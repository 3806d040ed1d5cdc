"""Verify as a job of the gateway process: a little at a time, at a set pace, on from where it was after a restart."""

import threading
import time
from datetime import datetime
from typing import Final

from django.db.models import F
from django.utils import timezone

from gateway.registry import every
from pacs_node.config import config
from pacs_node.storage.models import VerifyRound
from pacs_node.study_index.verifying import Step, Steps, verify

_SLICE_SECONDS: Final = 1.0
_REST_SECONDS: Final = 1.0
_BETWEEN_ROUNDS_SECONDS: Final = 6 * 3600


class Pace:
    """Holds a reader to so many bytes a second; 0 is as fast as it goes."""

    def __init__(self, megabytes_per_second: float) -> None:
        self._rate = megabytes_per_second * 1e6
        self._since = time.monotonic()
        self._size = 0

    def ahead(self, size: int) -> float:
        """Count ``size`` bytes; seconds by which the reader is ahead of its pace."""
        self._size += size
        if not self._rate:
            return 0.0
        return max(0.0, self._since + self._size / self._rate - time.monotonic())

    def keep(self, size: int) -> None:
        """Count ``size`` bytes and wait until they are due."""
        time.sleep(self.ahead(size))


def note(round_: VerifyRound, steps: list[Step]) -> None:
    """Add what was walked to the round, and how far it is."""
    studies = [step.study for step in steps if step.study]
    VerifyRound.objects.filter(pk=round_.pk).update(
        files=F("files") + sum(step.files for step in steps),
        size=F("size") + sum(step.size for step in steps),
        **({"after": studies[-1]} if studies else {}),
    )


def current_round() -> VerifyRound:
    """The one row that says how far the walk is."""
    return VerifyRound.objects.get_or_create(pk=1)[0]


def begin_round() -> VerifyRound:
    """Start from the first study."""
    round_ = current_round()
    VerifyRound.objects.filter(pk=round_.pk).update(after="", files=0, size=0, started_at=timezone.now())
    return current_round()


def end_round(round_: VerifyRound) -> None:
    """All is walked."""
    VerifyRound.objects.filter(pk=round_.pk).update(after="", finished_at=timezone.now())


class BackgroundVerify:
    """Walks for a second, rests until that is paid for, and keeps its place in the database."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps: Steps | None = None
        self._round: VerifyRound | None = None
        self._due = 0.0

    def run(self) -> None:
        """One slice, if one is due."""
        pace = config().verify_pace
        if not pace or time.monotonic() < self._due:
            return
        with self._lock:
            size = self._slice(pace)
        self._due = time.monotonic() + size / (pace * 1e6)

    def _slice(self, pace: float) -> int:
        if self._steps is None or self._round is None:
            self._round = current_round()
            if not _is_due(self._round, timezone.now()):
                return 0
            if not self._round.after:
                self._round = begin_round()
            self._steps = verify(self._round.after)
        taken, size, ends = list[Step](), 0, time.monotonic() + _SLICE_SECONDS
        try:
            for step in self._steps:
                taken.append(step)
                size += step.size
                if size >= pace * 1e6 or time.monotonic() >= ends:
                    break
            else:
                self._steps = None
        except BaseException:
            self._steps = None  # the next slice goes on after the last whole study
            raise
        note(self._round, taken)
        if self._steps is None:
            end_round(self._round)
        return size


def _is_due(round_: VerifyRound, now: datetime) -> bool:
    if round_.after or round_.finished_at is None:
        return True
    rested = (now - round_.finished_at).total_seconds()
    return not 0 <= rested < _BETWEEN_ROUNDS_SECONDS  # less than none: the clock was ahead when the last one ended


def register() -> None:
    """Called once, when the app is ready."""
    every(_REST_SECONDS, BackgroundVerify().run)

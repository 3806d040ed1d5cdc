"""How fast bytes leave the node: a token bucket over everything it sends, and meters of what went."""

import fcntl
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from gateway.paying import Paying

log = structlog.get_logger(__name__)

PIECE: Final = 1 << 16
"""Bytes that are asked for at once; what is capped flows evenly at this grain."""
_SHARED: Final = "rate.now"
"""The file in the folder of a node's data by which its processes keep one cap."""
_BURST_SECONDS: Final = 0.5
_METER_SECONDS: Final = 30.0
_SHORTEST_WAIT, _LONGEST_WAIT = 0.001, 1.0


@dataclass
class _Bucket:
    """What may go now and what went before it might. All zero: no cap."""

    rate: float = 0.0
    credit: float = 0.0
    owed_urgent: float = 0.0
    owed: float = 0.0
    at: float = 0.0


_FORM: Final = struct.Struct("<5d")


class Throttle:
    """A token bucket. ``bytes_per_second`` None: no cap. A change counts at once.

    What somebody waits for is paid first: while it takes all of the cap, the rest waits.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._bucket = _Bucket(at=clock())
        self._file: int | None = None
        self._thread = threading.local()

    def share(self, data_dir: Path) -> None:
        """Have one bucket with all processes of the node that keeps its data there; call it before they take of it.

        ``clock`` must be that of the machine, as the monotonic one is.
        """
        with self._lock, self._or_alone():
            self._file = os.open(data_dir / _SHARED, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with self._held() as bucket:  # what a killed process owed never went
            bucket.credit = bucket.owed_urgent = bucket.owed = 0.0

    @contextmanager
    def _held(self) -> Iterator[_Bucket]:
        """The bucket, refilled, for as long as nobody else changes it."""
        with self._lock, self._fetched():
            self._refill(self._bucket)
            yield self._bucket

    @contextmanager
    def _fetched(self) -> Iterator[None]:
        """What the other processes left in the bucket; they find in it what this one leaves."""
        with self._or_alone() as file:
            if file is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
                if len(said := os.pread(file, _FORM.size, 0)) == _FORM.size:
                    self._bucket = _Bucket(*_FORM.unpack(said))
        try:
            yield
        finally:
            with self._or_alone() as file:
                if file is not None:
                    os.pwrite(file, _FORM.pack(*astuple(self._bucket)), 0)
                    fcntl.flock(file, fcntl.LOCK_UN)

    @contextmanager
    def _or_alone(self) -> Iterator[int | None]:
        """The file that is shared. Where the disk cannot do it each process keeps the cap by itself, and images go."""
        try:
            yield self._file
        except OSError as error:
            log.warning("cap-not-shared", error=str(error))
            if (file := self._file) is not None:
                self._file = None
                os.close(file)  # and with it goes the lock

    def _refill(self, bucket: _Bucket) -> None:
        now = self._clock()
        came = max(0.0, now - bucket.at) * bucket.rate  # the clock begins anew with the machine
        bucket.at = now
        for debt in ("owed_urgent", "owed"):
            paid = min(came, getattr(bucket, debt))
            setattr(bucket, debt, getattr(bucket, debt) - paid)
            came -= paid
        bucket.credit = min(bucket.credit + came, bucket.rate * _BURST_SECONDS)

    @property
    def bytes_per_second(self) -> float | None:
        """The cap now."""
        with self._held() as bucket:
            return bucket.rate or None

    def set(self, bytes_per_second: float | None) -> None:
        """Change the cap."""
        with self._held() as bucket:
            if (bytes_per_second or 0.0) != bucket.rate:
                bucket.rate = bytes_per_second or 0.0
                bucket.credit = bucket.owed_urgent = bucket.owed = 0.0

    def carry(self, *, urgent: bool) -> None:
        """Whether somebody waits for what this thread takes from now on."""
        self._thread.urgent = urgent

    def take(self, count: int) -> None:
        """Wait until ``count`` bytes may go."""
        urgent = getattr(self._thread, "urgent", False)
        with self._held() as bucket:
            if not bucket.rate:
                return
            spent = min(count, bucket.credit)
            bucket.credit -= spent
            if urgent:  # a debt that later ones wait for as well, so all threads together keep the cap
                bucket.owed_urgent += count - spent
            else:
                bucket.owed += count - spent
        while (wait := self._debt_seconds(urgent=urgent)) > 0:
            self._sleep(min(max(wait, _SHORTEST_WAIT), _LONGEST_WAIT))

    def _debt_seconds(self, *, urgent: bool) -> float:
        with self._held() as bucket:
            if not bucket.rate:
                return 0.0
            return (bucket.owed_urgent + (0.0 if urgent else bucket.owed)) / bucket.rate

    def pieces(self, body: bytes | memoryview, size: int = PIECE) -> Iterator[bytes]:
        """A body in pieces of ``size``, each when it may go."""
        view = memoryview(body)
        for start in range(0, len(view), size):
            piece = view[start : start + size]
            self.take(len(piece))
            yield bytes(piece)


throttle = Throttle()
"""The one of this node (``share``): whatever carries images over the line takes from it."""


class Meter:
    """Bytes per second over the last half minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seconds: deque[tuple[int, int]] = deque()

    def add(self, count: int) -> None:
        """So many bytes went just now."""
        with self._lock:
            second = int(self._clock())
            before = self._seconds.pop()[1] if self._seconds and self._seconds[-1][0] == second else 0
            self._seconds.append((second, before + count))
            self._forget(second)

    def _forget(self, second: int) -> None:
        while self._seconds and self._seconds[0][0] <= second - _METER_SECONDS:
            self._seconds.popleft()

    def rate(self) -> int:
        """Bytes per second; 0 when nothing went for half a minute."""
        with self._lock:
            now = self._clock()
            self._forget(int(now))
            if not self._seconds:
                return 0
            return int(sum(count for _, count in self._seconds) / max(1.0, now - self._seconds[0][0]))


class Flow:
    """What goes to one destination now: bytes of files and of the wire, what went in part, and what is wrong there."""

    def __init__(self) -> None:
        self.files, self.wire = Meter(), Meter()
        self.paying = Paying(os.cpu_count() or 1)
        self.trouble = ""
        self.trouble_since: datetime | None = None
        self._parts: dict[int, tuple[str, int]] = {}

    def went(self, count: int, wire: int) -> None:
        """``count`` bytes of files arrived, for which ``wire`` bytes were sent."""
        self.files.add(count)
        self.wire.add(wire)

    def set_part(self, delivery: int, study_instance_uid: str, count: int | None) -> None:
        """So many bytes of a large instance are there; None: it is there, or begins anew."""
        if count is None:
            self._parts.pop(delivery, None)
        else:
            self._parts[delivery] = (study_instance_uid, count)

    def under_way(self, study_instance_uid: str = "") -> int:
        """Bytes of files that went in part, of a study or of all."""
        parts = list(self._parts.values())
        return sum(count for study, count in parts if study_instance_uid in ("", study))

    def set_trouble(self, text: str) -> None:
        """Why nothing goes there, "" when it does."""
        if bool(text) != bool(self.trouble):
            self.trouble_since = datetime.now(UTC) if text else None
        self.trouble = text

    def seconds(self, count: int) -> int | None:
        """How long ``count`` bytes of files take at the rate of the last half minute."""
        rate = self.files.rate()
        return None if not rate else max(0, count) // rate


class Traffic:
    """The flows of this process, by destination."""

    def __init__(self) -> None:
        self._flows: dict[str, Flow] = {}
        self._lock = threading.Lock()

    def of(self, destination: str) -> Flow:
        """The flow to a destination."""
        with self._lock:
            return self._flows.setdefault(destination, Flow())


traffic = Traffic()
"""That of this process."""

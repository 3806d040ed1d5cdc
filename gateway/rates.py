"""How fast bytes leave the node: a token bucket over everything it sends, and meters of what went."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Final

from gateway.paying import Paying

PIECE: Final = 1 << 16
"""Bytes that are asked for at once; what is capped flows evenly at this grain."""
_BURST_SECONDS: Final = 0.5
_METER_SECONDS: Final = 30.0
_SHORTEST_WAIT, _LONGEST_WAIT = 0.001, 1.0


class Throttle:
    """A token bucket. ``bytes_per_second`` None: no cap. A change counts at once."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._rate: float | None = None
        self._tokens = 0.0
        self._at = clock()

    @property
    def bytes_per_second(self) -> float | None:
        """The cap now."""
        return self._rate

    def set(self, bytes_per_second: float | None) -> None:
        """Change the cap."""
        with self._lock:
            if bytes_per_second != self._rate:
                self._rate, self._tokens, self._at = bytes_per_second, 0.0, self._clock()

    def take(self, count: int) -> None:
        """Wait until ``count`` bytes may go."""
        with self._lock:
            if not self._rate:
                return
            self._refill()
            self._tokens -= count  # a debt that later ones wait for as well, so all threads together keep the cap
        while (wait := self._debt_seconds()) > 0:
            self._sleep(min(max(wait, _SHORTEST_WAIT), _LONGEST_WAIT))

    def _debt_seconds(self) -> float:
        with self._lock:
            if not self._rate:
                return 0.0
            self._refill()
            return -self._tokens / self._rate

    def _refill(self) -> None:
        now, rate = self._clock(), self._rate or 0.0
        self._tokens = min(self._tokens + (now - self._at) * rate, rate * _BURST_SECONDS)
        self._at = now

    def pieces(self, body: bytes | memoryview) -> Iterator[bytes]:
        """A body in pieces, each when it may go."""
        view = memoryview(body)
        for start in range(0, len(view), PIECE):
            piece = view[start : start + PIECE]
            self.take(len(piece))
            yield bytes(piece)


throttle = Throttle()
"""The one of this process: whatever carries images takes from it."""


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

"""Never more load on a foreign PACS than was allowed: requests a minute, and the hours of the day."""

import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime

_MINUTE = 60.0


class Pace:
    """At most ``per_minute`` requests within any minute, whoever asks. Call it before each."""

    def __init__(
        self,
        per_minute: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.per_minute = per_minute
        self._clock, self._sleep = clock, sleep
        self._asked: deque[float] = deque()
        self._turn = threading.Lock()

    def __call__(self) -> None:
        """Wait until one more request may go."""
        with self._turn:
            while (rest := self._rest()) > 0:
                self._sleep(rest)
            self._asked.append(self._clock())

    def _rest(self) -> float:
        now = self._clock()
        while self._asked and self._asked[0] <= now - _MINUTE:
            self._asked.popleft()
        if len(self._asked) < self.per_minute:
            return 0.0
        return self._asked[len(self._asked) - self.per_minute] + _MINUTE - now


def is_within(hours: list[str], moment: datetime) -> bool:
    """Whether ``moment`` (local) lies in one of the spans ``HH:MM-HH:MM``; no spans: always. A span may go over
    midnight; its end is not part of it."""
    if not hours:
        return True
    now = f"{moment:%H:%M}"
    for span in hours:
        since, _, until = span.partition("-")
        if (since <= now < until) if since <= until else (now >= since or now < until):
            return True
    return False

"""How busy this process is, and how long nodes are asked to gather events because of that.

What a node tells in one request costs little more than what it tells in a tenth of one: a process that nears the one
processor it can use becomes cheaper by hearing less often, and the lag stays in seconds where it would grow.
"""

import threading
import time
from typing import Final

SPAN_SECONDS: Final = 3.0
CALM, FULL = 0.5, 0.9
"""Shares of a processor: up to the first nobody waits, from the second on everybody the longest."""
LONGEST_SECONDS: Final = 4.0


class Pressure:
    """The share of a processor that this process used of late, as seconds to pause."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at, self._used, self._pause = time.monotonic(), time.process_time(), 0.0

    def pause(self) -> float:
        """How long a node is to gather events before it comes again; half of what it was changes each span."""
        with self._lock:
            now = time.monotonic()
            if now - self._at >= SPAN_SECONDS:
                used = time.process_time()
                share = (used - self._used) / (now - self._at)
                wanted = LONGEST_SECONDS * min(1.0, max(0.0, (share - CALM) / (FULL - CALM)))
                self._at, self._used, self._pause = now, used, (self._pause + wanted) / 2
            return round(self._pause, 2) if self._pause > 0.1 else 0.0


pressure = Pressure()

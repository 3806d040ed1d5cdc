"""Threads that do one thing over and over, survive every failure with backoff, and end when asked."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

import structlog
from django.db import close_old_connections, connections

from gateway.deliveries import pause
from standards.errors import TransientError

log = structlog.get_logger(__name__)

LONGEST_PAUSE_SECONDS = 5.0


class Loop(threading.Thread):
    """Calls ``step()`` until ``stopping`` is set; ``step`` gives the seconds to rest before the next call.

    A failure is logged once per kind in a row and retried with backoff: a loop of a node never gives up.
    ``on_trouble(error)`` hears of every failure.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], float],
        stopping: threading.Event,
        on_trouble: Callable[[Exception], None] | None = None,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._step = step
        self._stopping = stopping
        self._on_trouble = on_trouble

    def run(self) -> None:
        """Loop; the thread's database connection is closed at the end."""
        failures, last = 0, ""
        while not self._stopping.is_set():
            try:
                close_old_connections()
                rest = self._step()
                if failures:
                    log.info("loop-recovered", loop=self.name, failures=failures)
                failures, last = 0, ""
            except Exception as error:  # the boundary of the thread: named, logged, retried
                failures += 1
                rest = pause(failures, longest=LONGEST_PAUSE_SECONDS)
                if (text := f"{type(error).__name__}: {error}") != last:
                    log.warning(
                        "loop-failed", loop=self.name, error=text, exc_info=not isinstance(error, TransientError)
                    )
                last = text
                self._tell(error)
            self._stopping.wait(rest)
        connections.close_all()

    def _tell(self, error: Exception) -> None:
        if self._on_trouble is None:
            return
        try:
            self._on_trouble(error)
        except Exception:  # telling of a failure must not end the loop
            log.exception("trouble-not-noted", loop=self.name)


def join_all(threads: list[Loop], seconds: float) -> list[str]:
    """Wait up to ``seconds`` for all to end; names of those that did not."""
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [thread.name for thread in threads if thread.is_alive()]


def set_on_signal(stopping: threading.Event) -> None:
    """Have SIGTERM and SIGINT set ``stopping``. Call it in the main thread."""

    def stop(number: int, frame: FrameType | None) -> None:
        # Not set here: the main thread may hold the event's own lock at this moment, and would wait for itself.
        threading.Thread(target=stopping.set).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)

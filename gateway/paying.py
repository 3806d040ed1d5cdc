"""Whether encoding pays on the way to one destination: measured both ways, decided from that, tried anew now and then.

What a stretch costs is its share of the time in which anything was on its way there, so that a slow encoder, a slow
line and a receiver that is slow at decoding all count, whatever goes in parallel, and idle time does not. How long the
encoder alone takes is known as well: while it keeps up easily, the line is most likely what everything waits for, and
a short trial now and then is enough to find out where that is not so.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

from gateway.envelope.joining import LineEncoding

Setting = Literal["auto", "always", "never"]
Why = Literal["setting", "measuring", "line", "faster", "slower"]

LEAST: Final = 1 << 16
"""What is shorter says more of the round trip than of the line; it is encoded anyway, which costs next to nothing."""
FIRST_TRY_SECONDS, TRY_SECONDS = 10.0, 600.0
_TRY_BYTES: Final = 16 << 20
_TRY_COST_SECONDS, _LONGEST_TRY_SECONDS = 1.0, 4.0
"""A trial of the other way takes about so long, longer where it would not say enough, or one stretch."""
_REMEMBERED_BYTES: Final = 64 << 20
_REMEMBERED_SECONDS: Final = 10.0
"""After so much of either a measurement counts half."""
_ENOUGH_BYTES: Final = 4 << 20
_ENOUGH_SECONDS: Final = 0.25
_EASILY: Final = 3.0
_CLEARLY: Final = 0.9
_RATES: Final = ("encoder", "encoded", "plain")


@dataclass(frozen=True)
class Measured:
    """Seconds per byte of files, None: not known. ``ratio``: bytes of the wire per byte of files, encoded.

    ``encoder`` is what the encoder takes by itself, all its processors at work.
    """

    encoder: float | None = None
    ratio: float | None = None
    encoded: float | None = None
    plain: float | None = None


@dataclass(frozen=True)
class Decision:
    """Whether to encode, and why."""

    encode: bool
    why: Why


def decide(setting: Setting, measured: Measured, *, now: bool = True) -> Decision:
    """Whether it pays. ``now``: whether it is encoded at present, which only changes for a clear gain."""
    if setting != "auto":
        return Decision(setting == "always", "setting")
    encoder, encoded, plain = measured.encoder, measured.encoded, measured.plain
    if encoder is None or encoded is None:
        return Decision(True, "measuring")
    if plain is None:
        return Decision(True, "line") if encoded > _EASILY * encoder else Decision(False, "measuring")
    # A single stretch may find an idle processor; all of them together are no faster than the encoder.
    pays = max(encoded, encoder) * (_CLEARLY if now else 1 / _CLEARLY) < plain
    return Decision(pays, "faster" if pays else "slower")


@dataclass
class _Average:
    """Seconds per byte; the longer ago, the less it counts."""

    seconds: float = 0.0
    count: float = 0.0
    is_enough: bool = False
    wanted: int = _ENOUGH_BYTES

    def add(self, seconds: float, count: int) -> None:
        fade = 0.5 ** max(count / _REMEMBERED_BYTES, seconds / _REMEMBERED_SECONDS)
        self.seconds, self.count = self.seconds * fade + seconds, self.count * fade + count
        self.is_enough |= self.count >= self.wanted or self.seconds >= _ENOUGH_SECONDS

    @property
    def value(self) -> float | None:
        return self.seconds / self.count if self.is_enough else None


@dataclass
class Stretch:
    """One body on its way. Whoever encodes it says what that took."""

    length: int
    encode: bool
    processor_seconds: float = 0.0
    wire: int = 0
    counts: bool = True
    """Whether anything can be learnt from it: not of what is compressed already."""


class Paying:
    """What was measured of one destination. Used by all threads of its lane."""

    def __init__(self, processors: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._processors, self._clock = processors, clock
        self._lock = threading.Lock()
        self._under_way, self._cost, self._at = 0, 0.0, clock()
        self.forget()

    def forget(self) -> None:
        """The line was cut: it may be another one when it is back."""
        with self._lock:
            self._ways = {True: _Average(), False: _Average()}
            self._processor_seconds, self._wire, self._encoded = 0.0, 0.0, 0.0
            self._decision, self._is_used = Decision(True, "measuring"), False
            self._try_at, self._to_try = self._clock() + FIRST_TRY_SECONDS, 0

    @property
    def measured(self) -> Measured:
        """What is known."""
        each = self._encoded or None
        return Measured(
            each and self._processor_seconds / self._processors / each,
            each and self._wire / each,
            self._ways[True].value,
            self._ways[False].value,
        )

    def told(self) -> LineEncoding | None:
        """What a person is told of it; None before anything went."""
        if not self._is_used:
            return None
        measured, decision = self.measured, self._decision
        rates = {name: int(1 / cost) if (cost := getattr(measured, name)) else None for name in _RATES}
        ratio = None if measured.ratio is None else round(measured.ratio, 3)
        return LineEncoding(encodes=decision.encode, why=decision.why, ratio=ratio, **rates)

    @contextmanager
    def stretch(self, length: int, setting: Setting, *, counts: bool = True) -> Iterator[Stretch]:
        """One body from its encoding to the answer; what fails inside is not counted."""
        with self._lock:
            encode = self._choose(length, setting) if counts and length >= LEAST else setting != "never"
            made = Stretch(length, encode, counts=counts and length >= LEAST)
            self._pass(1)
            begun = self._cost
        try:
            yield made
        except BaseException:
            with self._lock:
                self._pass(-1)
            raise
        with self._lock:
            self._pass(-1)
            if made.counts:
                self._learn(made, self._cost - begun)

    def _pass(self, change: int) -> None:
        now = self._clock()
        if self._under_way:
            self._cost += (now - self._at) / self._under_way
        self._at = now
        self._under_way += change

    def _learn(self, stretch: Stretch, cost: float) -> None:
        self._ways[stretch.encode].add(cost, stretch.length)
        if stretch.encode:
            fade = 0.5 ** (stretch.length / _REMEMBERED_BYTES)
            self._encoded = self._encoded * fade + stretch.length
            self._processor_seconds = self._processor_seconds * fade + stretch.processor_seconds
            self._wire = self._wire * fade + stretch.wire

    def _choose(self, length: int, setting: Setting) -> bool:
        self._is_used = True
        measured, now = self.measured, self._clock()
        self._decision = decide(setting, measured, now=self._decision.encode)
        if self._decision.why in ("setting", "measuring"):
            self._to_try = 0
            return self._decision.encode
        if now >= self._try_at:
            self._try_at = now + TRY_SECONDS
            here = measured.encoded if self._decision.encode else measured.plain
            self._to_try = max(length, _trial_bytes(here) if here else _TRY_BYTES)
            self._ways[not self._decision.encode].wanted = min(_ENOUGH_BYTES, self._to_try // 2)
        if self._to_try <= 0:
            return self._decision.encode
        self._to_try -= length
        return not self._decision.encode


def _trial_bytes(cost: float) -> int:
    enough = min(_ENOUGH_BYTES, int(_LONGEST_TRY_SECONDS / cost))
    return min(_TRY_BYTES, max(enough, int(_TRY_COST_SECONDS / cost)))

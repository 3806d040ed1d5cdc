"""A date and a time that are one moment: combined matching, and matching in the asker's time zone.

Source: PS3.4 C.2.2.2.5
"""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from standards.errors import PermanentError
from standards.matching import Range, normal_form

FIRST, LAST = "000000.000000", "235959.999999"
_OFFSET: Final = re.compile(r"([+-])(\d\d)([0-5]\d)", re.ASCII)
_FORMAT: Final = "%Y%m%d%H%M%S.%f"
_ANY_DAY: Final = "20000102"


def offset_minutes(text: str) -> int:
    """Minutes east of UTC of a Timezone Offset From UTC such as ``+0300``.

    Raises: PermanentError("invalid-offset"). Source: PS3.3 C.12.1.1.8
    """
    found = _OFFSET.fullmatch(text.strip())
    minutes = int(found[2]) * 60 + int(found[3]) if found else 0
    if found and found[1] == "-":
        minutes = -minutes
    if not found or not -12 * 60 <= minutes <= 14 * 60:
        raise PermanentError("invalid-offset", f"{text[:20]!r} is no offset from UTC")
    return minutes


def moved(moment: str, minutes: int) -> str:
    """A moment YYYYMMDDHHMMSS.FFFFFF that many minutes later; as it is where the calendar does not know it."""
    try:
        later = datetime.strptime(moment, _FORMAT) + timedelta(minutes=minutes)
    except (ValueError, OverflowError):
        return moment
    return f"{later.year:04}{later:%m%d%H%M%S.%f}"


def shifted(date: str, time: str, minutes: int) -> tuple[str, str]:
    """A DA and a TM that many minutes later; what has no time stays as it is, what has no date stays in its day."""
    day, instant = normal_form(date, "DA"), normal_form(time, "TM")
    if not minutes or not instant:
        return date, time
    later = moved((day or _ANY_DAY) + instant, minutes)
    return later[:8] if day else date, later[8:].removesuffix(".000000")


@dataclass(frozen=True)
class Period:
    """What a date key and a time key ask for together.

    ``combined``: from the first moment to the last one; otherwise any day of ``dates`` at a time within ``times``.
    ``zone``: minutes east of UTC that the keys are given in; None means the zone of what is matched.
    """

    dates: Range
    times: Range
    combined: bool = False
    zone: int | None = None

    @property
    def moments(self) -> Range | None:
        """The first and last moment, where the period is one stretch of time."""
        if not (self.combined and any(self.dates) and any(self.times)):
            return None
        first = self.dates[0] + (self.times[0] or FIRST) if self.dates[0] else None
        last = self.dates[1] + (self.times[1] or LAST) if self.dates[1] else None
        return first, last

    def matches(self, date: str, time: str, offset: int = 0) -> bool:
        """Whether a DA and a TM, given ``offset`` minutes east of UTC, lie in the period.

        A date without a time is not moved, and fits a combined period by its day alone.
        """
        if self.zone is not None:
            date, time = shifted(date, time, self.zone - offset)
        day, instant = normal_form(date, "DA"), normal_form(time, "TM")
        moments = self.moments
        if moments and day and instant:
            return _within(day + instant, moments)
        if any(self.dates) and not (day and _within(day, self.dates)):
            return False
        return not any(self.times) or (bool(moments) and not instant) or bool(instant and _within(instant, self.times))


def _within(value: str, bounds: Range) -> bool:
    low, high = bounds
    return (low is None or value >= low) and (high is None or value <= high)


def offset_text(minutes: int) -> str:
    """A Timezone Offset From UTC such as ``+0300``."""
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}{abs(minutes) % 60:02}"

"""What a matcher of ``standards.matching`` asks for, as conditions that an index can answer, exactly.

Prefixes become ranges in code point order: SQLite compares so, and PostgreSQL's text columns here have the C collation.
"""

import re
from collections.abc import Callable, Iterable
from functools import reduce
from operator import or_
from typing import Any, Final

from django.db.models import CharField, Func, Lookup, Q

from pacs_node.study_index.keys import Attribute
from standards.matching import (
    AnyOf,
    Empty,
    Matcher,
    NameMatch,
    Number,
    Range,
    RangeMatch,
    SingleValue,
    UidList,
    Wildcard,
)
from standards.periods import FIRST, LAST, Period, moved

NOTHING: Final = Q(pk__in=[])
FOLDS: Final = {
    "patient_name": ("patient_name_fold", "patient_name_ideographic_fold", "patient_name_phonetic_fold"),
    "referring_physician_name": ("referring_physician_name_fold",),
}
LATIN: Final = {"patient_name": "patient_name_latin", "referring_physician_name": "referring_physician_name_latin"}
INDEXED: Final = frozenset(
    {
        "patient_id", "patient_name", "patient_birth_date", "accession_number", "study_date", "modality",
        "study_instance_uid", "series_instance_uid", "sop_instance_uid",
    }
)  # fmt: skip
_WILD: Final = re.compile(r"[*?]")
_DAY_MINUTES: Final = 24 * 60
_OFFSETS: Final = {
    f"{sign}{hour:02}{minute:02}": (hour * 60 + minute) * (1 if sign == "+" else -1)
    for sign in "+-"
    for hour in range(15)
    for minute in (0, 30, 45)
    if -12 * 60 <= (hour * 60 + minute) * (1 if sign == "+" else -1) <= 14 * 60
}
Path = Callable[[str], str]
"""From a column to its path from the rows that are searched."""


@CharField.register_lookup
class WildcardLookup(Lookup):
    """``*`` any run of characters, ``?`` one of them; the case counts, on both databases."""

    lookup_name = "wildcard"

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, tuple[Any, ...]]:
        r"""``LIKE`` with ``\`` as its escape character."""
        column, params = self.process_lhs(compiler, connection)
        escaped = re.sub(r"([\\%_])", r"\\\1", str(self.rhs))
        return f"{column} LIKE %s ESCAPE '\\'", (*params, escaped.replace("*", "%").replace("?", "_"))

    def as_sqlite(self, compiler: Any, connection: Any) -> tuple[str, tuple[Any, ...]]:
        """``GLOB``, because SQLite's LIKE does not see the case of Latin letters."""
        column, params = self.process_lhs(compiler, connection)
        return f"{column} GLOB %s", (*params, str(self.rhs).replace("[", "[[]"))


class Unindexed(Func):
    """A column whose index SQLite shall leave aside; PostgreSQL has statistics and decides better by itself."""

    template = "%(expressions)s"

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """A plus that means nothing else."""
        return self.as_sql(compiler, connection, template="+%(expressions)s", **context)


def condition(attribute: Attribute, matcher: Matcher, path: Path) -> Q:
    """The condition that the rows whose ``attribute`` matches fulfil, and no others."""
    column = attribute.column
    if isinstance(matcher, AnyOf):
        # One list for what is plain: a thousand alternatives are more than SQLite takes.
        plain_values = [one.value for one in matcher.matchers if isinstance(one, SingleValue)]
        found = [condition(attribute, one, path) for one in matcher.matchers if not isinstance(one, SingleValue)]
        return _any([*found, Q(**{f"{path(column)}__in": plain_values})] if plain_values else found)
    if isinstance(matcher, NameMatch):
        return _name(column, matcher, path)
    plain = path(column)
    if isinstance(matcher, UidList):
        return Q(**{f"{plain}__in": matcher.uids}) if len(matcher.uids) > 1 else Q(**{plain: matcher.uids[0]})
    if isinstance(matcher, RangeMatch):
        return (
            _time(plain, (matcher.low, matcher.high))
            if matcher.vr == "TM"
            else _date(plain, (matcher.low, matcher.high))
        )
    if isinstance(matcher, Number):
        whole = matcher.value == matcher.value.to_integral_value()
        return Q(**{plain: int(matcher.value)}) if whole else NOTHING
    if isinstance(matcher, Wildcard):
        return wildcard(plain, matcher.pattern)
    if isinstance(matcher, SingleValue):
        return Q(**{plain: matcher.value})
    if isinstance(matcher, Empty):
        return Q(**{f"{plain}__isnull": True}) if attribute.vr in ("IS", "US") else Q(**{plain: ""})
    return Q()


def can_seek(attribute: Attribute, matcher: Matcher) -> bool:
    """Whether an index leads to what matches. Names are always worth it: reading an index is quicker than the table."""
    if isinstance(matcher, AnyOf):
        return all(can_seek(attribute, one) for one in matcher.matchers)
    if attribute.column not in INDEXED or isinstance(matcher, Empty):
        return False
    return not isinstance(matcher, Wildcard) or bool(_WILD.split(matcher.pattern)[0])


def can_range(matcher: NameMatch) -> bool:
    """Whether every way to the names that match begins at a place in its index."""
    return not matcher.words and all(_WILD.split(one)[0] for one in (*matcher.patterns, *matcher.latin))


def wildcard(path: str, pattern: str) -> Q:
    """Text that fits a pattern with ``*`` and ``?``: a range for what comes before them, a check for the rest."""
    start = _WILD.split(pattern, maxsplit=1)[0]
    if start == pattern:
        return Q(**{path: pattern})
    found = Q()
    if start:
        found = Q(**{f"{path}__gte": start})
        after = _after(start)
        if after is not None:
            found &= Q(**{f"{path}__lt": after})
    if pattern[len(start) :].strip("*"):
        found &= Q(**{f"{path}__wildcard": pattern})
    return found


def _after(prefix: str) -> str | None:
    """The first text in code point order after all that begin with ``prefix``."""
    for position in range(len(prefix) - 1, -1, -1):
        code = ord(prefix[position]) + 1
        if code <= 0x10FFFF:
            return prefix[:position] + chr(0xE000 if 0xD800 <= code <= 0xDFFF else code)
    return None


def _any(conditions: Iterable[Q]) -> Q:
    found = list(conditions)
    if not all(found):  # one that asks for nothing is fulfilled by all; Django would leave it out of the choice
        return Q()
    return reduce(or_, found, NOTHING)


def _name(column: str, matcher: NameMatch, path: Path) -> Q:
    return _any(_ways(column, matcher, path))


def name_ways(attribute: Attribute, matcher: NameMatch) -> list[Q]:
    """:func:`condition` in parts of which each needs one index; what any of them finds matches."""
    return _ways(attribute.column, matcher, str)


def _ways(column: str, matcher: NameMatch, path: Path) -> list[Q]:
    ways = [_spelt(path(fold), matcher.patterns) for fold in FOLDS[column] if matcher.patterns]
    latin = path(LATIN[column])
    if matcher.latin:
        ways.append(_spelt(latin, matcher.latin))
    if matcher.words:
        similar = Q(**{f"{latin}__gt": ""})
        for word in matcher.words:
            similar &= Q(**{f"{latin}__wildcard": f"*{word}*"})
        ways.append(similar)
    return ways


def _spelt(path: str, patterns: tuple[str, ...]) -> Q:
    """Text that fits one of the patterns, within the range that they share."""
    found = _any(wildcard(path, pattern) for pattern in patterns)
    if len(patterns) == 1 and _WILD.split(patterns[0], maxsplit=1)[0]:
        return found  # its own range is all there is to share; twice, each row would be compared twice
    start = _shared_start([_WILD.split(pattern, maxsplit=1)[0] for pattern in patterns])
    shared = Q(**{f"{path}__gt": ""}) if not start else Q(**{f"{path}__gte": start})
    after = _after(start)
    return shared & found if after is None else shared & Q(**{f"{path}__lt": after}) & found


def _shared_start(texts: list[str]) -> str:
    first, last = min(texts), max(texts)
    length = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    return first[:length]


# Dates and times. A stored TM may leave out what is nought: "12" and "1200" begin when "120000.000000" does, and sort
# among whole ones by their text once a bound has lost its noughts.


def _date(path: str, bounds: Range) -> Q:
    low, high = bounds
    if low is not None and low == high:
        return Q(**{path: low})
    found = Q(**{f"{path}__gte": low}) if low is not None else Q(**{f"{path}__gt": ""})
    return found & Q(**{f"{path}__lte": high}) if high is not None else found


def _from(path: str, low: str) -> Q:
    return Q(**{f"{path}__gte": low.rstrip("0.")})


def _time(path: str, bounds: Range) -> Q:
    low, high = bounds
    found = Q(**{f"{path}__gt": ""})
    if low:
        found &= _from(path, low)
    return found & Q(**{f"{path}__lte": high}) if high else found


def _moments(date: str, time: str, bounds: Range) -> Q:
    first, last = bounds
    found = Q(**{f"{date}__gt": ""})
    if first:
        found &= Q(**{f"{date}__gte": first[:8]}) & (Q(**{f"{date}__gt": first[:8]}) | _from(time, first[8:]))
    if last:
        found &= Q(**{f"{date}__lte": last[:8]}) & (Q(**{f"{date}__lt": last[:8]}) | Q(**{f"{time}__lte": last[8:]}))
    return found


def zone_offset(text: str, default: int) -> int:
    """Minutes east of UTC that a stored Timezone Offset From UTC says, ``default`` where it says nothing known."""
    return _OFFSETS.get(text, default)


def period_condition(date: str, time: str, zone: str, period: Period, default_offset: int) -> Q:
    """``Period.matches`` for the columns at these paths; ``default_offset`` holds for rows without a zone."""
    if period.zone is None:
        return _period(date, time, period, 0)
    found = ~Q(**{f"{zone}__in": list(_OFFSETS)}) & _period(date, time, period, period.zone - default_offset)
    for minutes in sorted(set(_OFFSETS.values())):
        texts = [text for text, offset in _OFFSETS.items() if offset == minutes]
        found |= Q(**{f"{zone}__in": texts}) & _period(date, time, period, period.zone - minutes)
    low, high = period.dates
    around = Q()  # two days to either side, so that the index of the date leads to what may match
    if low:
        around &= Q(**{f"{date}__gte": moved(low + FIRST, -2 * _DAY_MINUTES)[:8]})
    if high:
        around &= Q(**{f"{date}__lte": moved(high + LAST, 2 * _DAY_MINUTES)[:8]})
    return around & found


def _period(date: str, time: str, period: Period, later: int) -> Q:
    """What lies in the period once it was moved ``later`` minutes on; what has no time is not moved."""
    low, high = period.dates
    moments = period.moments
    dated = any(period.dates)
    untimed = Q(**{time: ""})
    if dated:
        untimed &= _date(date, period.dates)
    if any(period.times) and not moments:
        untimed = NOTHING
    times = Q() if moments else _clock(time, period.times, later)
    bounds = moments or (low + FIRST if low else None, high + LAST if high else None)
    first, last = (moved(bound, -later) if bound else None for bound in bounds)
    timed = Q(**{f"{time}__gt": ""}) & times
    return (timed & _moments(date, time, (first, last)) if dated else timed) | untimed


def _clock(time: str, bounds: Range, later: int) -> Q:
    if not any(bounds):
        return Q()
    low, high = (moved(f"20000102{bound}", -later)[8:] for bound in (bounds[0] or FIRST, bounds[1] or LAST))
    if low <= high:
        return _time(time, (low, high))
    return _time(time, (low, None)) | _time(time, (None, high))  # the day changes in between

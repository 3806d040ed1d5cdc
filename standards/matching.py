r"""Attribute matching of C-FIND and QIDO-RS. An index builds the same matching in SQL from the fields of the matchers.

Source: PS3.4 C.2.2.2
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from itertools import product
from typing import Final, Protocol

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from standards.errors import PermanentError
from standards.person_names import fold_pattern, folds, latin_key, latin_pattern, rough_name
from standards.uids import is_valid_uid

RANGE_VRS: Final = frozenset({"DA", "TM", "DT"})
_NO_WILDCARD_VRS: Final = frozenset({"AS", "AT", "DA", "DS", "DT", "FD", "FL", "IS", "SL", "SS", "SV", "TM", "UI", "UL", "US", "UV"})  # fmt: skip # noqa: E501
_NUMBER_VRS: Final = frozenset({"DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"})
_DECIMAL: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,2})?", re.ASCII)
_LEAST_ROUGH_LETTERS: Final = 3
_MOST_PARTED: Final = 4
_NOT_KEYS: Final = frozenset({0x00080005, 0x00080052, 0x00080054, 0x00080056, 0x00080201})
_DATE = re.compile(r"\d{8}", re.ASCII)
_TIME = re.compile(r"(\d\d)(?:(\d\d)(?:(\d\d)(?:\.(\d{1,6}))?)?)?", re.ASCII)
_DATETIME = re.compile(r"(\d{4,14})(?:\.(\d{1,6}))?([+-]\d{4})?", re.ASCII)

Range = tuple[str | None, str | None]


class Matcher(Protocol):
    """Whether one value of a candidate (its text; "" for an empty or absent one) matches."""

    def matches(self, value: str) -> bool: ...


@dataclass(frozen=True)
class Universal:
    """An empty key: everything matches."""

    def matches(self, value: str) -> bool:
        return True


@dataclass(frozen=True)
class Empty:
    """The key ``""`` of Empty Value Matching: what has no value (PS3.4 C.2.2.2.7)."""

    def matches(self, value: str) -> bool:
        return not value.strip()


@dataclass(frozen=True)
class SingleValue:
    """Equal after trimming."""

    value: str

    def matches(self, value: str) -> bool:
        return value.strip() == self.value


@dataclass(frozen=True)
class Number:
    """Equal as a number: ``1``, ``01`` and ``1.0`` are one."""

    value: Decimal

    def matches(self, value: str) -> bool:
        try:
            return number(value) == self.value
        except PermanentError:
            return False


@dataclass(frozen=True)
class UidList:
    """One of the listed UIDs."""

    uids: tuple[str, ...]

    def matches(self, value: str) -> bool:
        return value in self.uids


@dataclass(frozen=True)
class Wildcard:
    """``*`` for any run of characters, ``?`` for one."""

    pattern: str

    def matches(self, value: str) -> bool:
        return wildcard_match(self.pattern, value.strip())


@dataclass(frozen=True)
class NameMatch:
    """One of the writings of a name fits one of ``patterns`` (under ``fold``), or the name one of the rough ``latin``
    ones, since a device without Cyrillic was shown it that way. ``words``: fuzzy matching finds names that hold each.
    """

    patterns: tuple[str, ...]
    latin: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    def matches(self, value: str) -> bool:
        writings = [writing for writing in folds(value) if writing]
        if any(wildcard_match(pattern, writing) for pattern in self.patterns for writing in writings):
            return True
        rough = rough_name(value)
        if any(wildcard_match(pattern, rough) for pattern in self.latin):
            return bool(rough)
        return bool(self.words) and all(word in rough for word in self.words)


@dataclass(frozen=True)
class RangeMatch:
    """Between two bounds, both included; None is open. A value that leaves parts of a time out is its first instant."""

    vr: str
    low: str | None
    high: str | None

    def matches(self, value: str) -> bool:
        instant = normal_form(value, self.vr)
        if not instant:
            return False
        return (self.low is None or instant >= self.low) and (self.high is None or instant <= self.high)


@dataclass(frozen=True)
class AnyOf:
    """Multiple value matching: one of several keys."""

    matchers: tuple[Matcher, ...]

    def matches(self, value: str) -> bool:
        return any(matcher.matches(value) for matcher in self.matchers)


def matcher_for(vr: str, key: str, *, fuzzy: bool = False, empty: bool = False) -> Matcher:
    """The matcher a key asks for, by its VR; several values in ``key`` are parted by backslashes.

    ``fuzzy`` lets names match by sound, ``empty`` gives the key of two quotation marks its meaning.

    Raises: PermanentError "invalid-uid", "invalid-range", "invalid-number".
    """
    key = key.strip(" \0")
    if key in ("", "*") or (vr == "PN" and not key.strip(" *^=\\")):
        return Universal()
    if empty and key == '""':
        return Empty()
    if vr == "UI":
        return UidList(tuple(uid_list(key)))
    if "\\" in key and vr not in ("LT", "ST", "UT"):
        parts = (matcher_for(vr, part, fuzzy=fuzzy, empty=empty) for part in key.split("\\"))
        chosen = tuple(part for part in parts if not isinstance(part, Universal))
        return AnyOf(chosen) if chosen else Universal()
    if vr in RANGE_VRS:
        return RangeMatch(vr, *_range(key, vr))
    if vr == "PN":
        return _name_matcher(key, fuzzy=fuzzy)
    if vr in _NUMBER_VRS:
        return Number(number(key))
    if vr not in _NO_WILDCARD_VRS and ("*" in key or "?" in key):
        return Wildcard(key)
    return SingleValue(key)


def number(text: str) -> Decimal:
    """A number as DICOM writes it. Raises: PermanentError("invalid-number")."""
    if not _DECIMAL.fullmatch(text.strip()):
        raise PermanentError("invalid-number", f"{text[:40]!r} is not a number")
    return Decimal(text.strip())


def matches(query: Dataset, candidate: Dataset) -> bool:
    """Whether ``candidate`` (a worklist item, a study) matches every key of ``query``, sequences included.

    Keys that are empty match everything. A key for which the candidate has no value matches only if it is universal.

    Raises: PermanentError "invalid-uid", "invalid-range" for a key that cannot be understood.
    """
    return all(_element_matches(key, candidate) for key in query if _is_key(key))


def _is_key(element: DataElement) -> bool:
    return element.tag not in _NOT_KEYS and element.tag.element != 0


def _element_matches(key: DataElement, candidate: Dataset) -> bool:
    element = candidate.get(key.tag)
    if key.VR == "SQ":
        return _sequence_matches(key, element)
    matcher = matcher_for(key.VR, _text(key))
    if isinstance(matcher, Universal):
        return True
    values = _values(element) if element is not None else [""]
    return any(matcher.matches(value) for value in values)


def _sequence_matches(key: DataElement, element: DataElement | None) -> bool:
    if not key.value:
        return True
    wanted: Dataset = key.value[0]
    items = list(element.value) if element is not None and element.VR == "SQ" else []
    if not items:
        return matches(wanted, Dataset())
    return any(matches(wanted, item) for item in items)


def _text(element: DataElement) -> str:
    return "\\".join(_values(element))


def _values(element: DataElement) -> list[str]:
    value = element.value
    if value is None:
        return [""]
    if isinstance(value, MultiValue | list | tuple):
        return [str(item) for item in value] or [""]
    return [str(value).rstrip(" \0")]


# Pieces for SQL


def like_pattern(text: str) -> str:
    r"""A DICOM wildcard key as an SQL LIKE pattern with ``\`` as its escape character.

    ``*`` becomes ``%`` and ``?`` becomes ``_``; ``%``, ``_`` and ``\`` of the key stand for themselves.
    """
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%").replace("?", "_")


def uid_list(text: str) -> list[str]:
    """The UIDs of a key, in order.

    Raises: PermanentError("invalid-uid").
    """
    uids = [part.strip(" \0") for part in text.split("\\")]
    for uid in uids:
        if not is_valid_uid(uid):
            raise PermanentError("invalid-uid", f"{uid[:80]!r} in a key")
    return uids


def date_range(text: str) -> Range:
    """(first, last) day as YYYYMMDD, both included, None where open: ``20260101-``, ``-20260131``, ``20260115``.

    The retired forms with dots (``2026.01.15``) are understood. An empty key is (None, None).

    Raises: PermanentError("invalid-range").
    """
    return _range(text, "DA")


def time_range(text: str) -> Range:
    """(first, last) instant as HHMMSS.FFFFFF, both included; ``10`` alone is the whole hour.

    Raises: PermanentError("invalid-range").
    """
    return _range(text, "TM")


def datetime_range(text: str) -> Range:
    """(first, last) instant as YYYYMMDDHHMMSS.FFFFFF without its offset from UTC; ``2026`` alone is the whole year.

    Raises: PermanentError("invalid-range").
    """
    return _range(text, "DT")


def normal_form(value: str, vr: str) -> str:
    """A DA as YYYYMMDD, a TM as HHMMSS.FFFFFF, a DT as both, in its first instant; "" for what is none."""
    try:
        return _range(value, vr, as_value=True)[0] or ""
    except PermanentError:
        return ""


def _range(text: str, vr: str, *, as_value: bool = False) -> Range:
    stripped = text.strip(" \0")
    if not stripped:
        return None, None
    if vr == "DA":
        stripped = stripped.replace(".", "")
    if vr == "TM":
        stripped = stripped.replace(":", "")
    span = _SPANS[vr]
    if as_value or "-" not in stripped:
        return span(stripped)
    low, high = _split_range(stripped, vr)
    first = span(low)[0] if low else None
    last = span(high)[1] if high else None
    if first is None and last is None:
        raise PermanentError("invalid-range", text[:40])
    return first, last


def _split_range(text: str, vr: str) -> tuple[str, str]:
    if vr != "DT":
        low, _, high = text.partition("-")
        return low.strip(), high.strip()
    # A hyphen before four digits may be the offset of a single DT; it is one if both sides still parse as a whole.
    if _DATETIME.fullmatch(text) and not re.fullmatch(r"\d{4}-\d{4}", text):
        return text, text
    for found in re.finditer("-", text):
        low, high = text[: found.start()], text[found.end() :]
        if all(not part or _DATETIME.fullmatch(part) for part in (low, high)):
            return low, high
    raise PermanentError("invalid-range", text[:60])


def _date_span(text: str) -> tuple[str, str]:
    if not _DATE.fullmatch(text):
        raise PermanentError("invalid-range", f"{text[:40]!r} is not a date")
    return text, text


def _time_span(text: str) -> tuple[str, str]:
    found = _TIME.fullmatch(text)
    if not found:
        raise PermanentError("invalid-range", f"{text[:40]!r} is not a time")
    hour, minute, second, fraction = found.groups()
    low = f"{hour}{minute or '00'}{second or '00'}.{(fraction or '').ljust(6, '0')}"
    high = f"{hour}{minute or '59'}{second or '59'}.{(fraction or '').ljust(6, '9' if not fraction else '0')}"
    return low, high


def _datetime_span(text: str) -> tuple[str, str]:
    found = _DATETIME.fullmatch(text)
    if not found or len(found[1]) % 2:
        raise PermanentError("invalid-range", f"{text[:60]!r} is not a date and time")
    digits, fraction = found[1], found[2] or ""
    low = digits + "00000101000000"[len(digits) :] + "." + fraction.ljust(6, "0")
    high = digits + "99991231235959"[len(digits) :] + "." + (fraction.ljust(6, "0") if fraction else "999999")
    return low, high


_SPANS: Final = {"DA": _date_span, "TM": _time_span, "DT": _datetime_span}


# Names and wildcards


def _name_matcher(key: str, *, fuzzy: bool) -> NameMatch:
    """Carets count as spaces. A key without wildcards finds names that go on after it, as ``Щёголев`` finds «Щёголев
    Пётр» and never «Щёголева»; ``Щёголев^*`` asks for the whole family name, with or without more.
    """
    patterns: list[str] = []
    latin: list[str] = []
    words: list[str] = []
    for group in key.split("="):
        pattern = fold_pattern(group)
        if not pattern.strip("* "):
            continue
        whole = re.sub(r"( [*])+$", "", pattern)
        ends = [pattern] if whole == pattern and re.search("[*?]", pattern) else [whole, f"{whole} *"]
        own = [spelt for end in ends for spelt in _with_and_without(end)]
        patterns += own
        if group.isascii():
            # Shch* and S* share the rough key s*: too short a piece would find half of all names.
            latin += [
                rough for rough in map(latin_pattern, own) if len(re.sub("[*? ]", "", rough)) >= _LEAST_ROUGH_LETTERS
            ]
        words += [word for word in map(latin_key, re.split("[*? ]+", pattern)) if word and fuzzy]
    return NameMatch(tuple(patterns), tuple(latin), tuple(words))


def _with_and_without(pattern: str) -> list[str]:
    """A component that is one star may be empty, and then no space parts its neighbours."""
    pieces = re.split(r"(?:^|(?<= ))(?:[*] )+", pattern)
    choices = [pieces[:1], *(["* " + piece, piece] for piece in pieces[1:])]
    return ["".join(chosen) for chosen in product(*choices)] if len(pieces) <= _MOST_PARTED else ["* ".join(pieces)]


def wildcard_match(pattern: str, text: str) -> bool:
    """``*`` for any run of characters, ``?`` for one; linear in time however many stars a hostile key has."""
    at_pattern = at_text = 0
    star, resume = -1, 0
    while at_text < len(text):
        here = pattern[at_pattern] if at_pattern < len(pattern) else ""
        if here == "*":
            star, resume = at_pattern, at_text
            at_pattern += 1
        elif here and here in ("?", text[at_text]):
            at_pattern += 1
            at_text += 1
        elif star >= 0:
            resume += 1
            at_pattern, at_text = star + 1, resume
        else:
            return False
    return not pattern[at_pattern:].strip("*")

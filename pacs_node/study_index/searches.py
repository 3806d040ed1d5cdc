"""What a query asks for: its keys understood, before anything is read.

Source: PS3.4 C.2.2.2, C.4.1.1.3
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from pacs_node.study_index import keys as k
from pacs_node.study_index.keys import BY_TAG, Attribute, Level
from standards.errors import PermanentError
from standards.json_matching import Keys
from standards.matching import AnyOf, Matcher, SingleValue, Universal, date_range, matcher_for, time_range
from standards.periods import Period, offset_minutes

Tree = dict[str, "str | Tree"]
"""Tag → the text of a key, or the keys of the item of a sequence."""

_MOST_PATTERNS: Final = 200
"""In one key; SQLite takes expressions of a thousand alternatives, and a name is several."""


@dataclass
class Search:
    """What is asked, understood. ``ignored``: tags of the keys that have a value and cannot be matched here."""

    level: Level
    conditions: list[tuple[Attribute, Matcher]] = field(default_factory=list)
    periods: list[tuple[Attribute, Attribute, Period]] = field(default_factory=list)
    modalities: Matcher = field(default_factory=Universal)
    sop_classes: Matcher = field(default_factory=Universal)
    kept: dict[Level, Keys] = field(default_factory=dict)
    zone: int | None = None
    studies: frozenset[str] | None = None
    ignored: list[str] = field(default_factory=list)


def search(
    level: Level,
    tree: Tree,
    *,
    fuzzy: bool = False,
    combined: bool = False,
    empty: bool = False,
    studies: frozenset[str] | None = None,
) -> Search:
    """Understand the keys of a query; ``studies`` are the only ones within reach, None means all.

    Keys that the level does not know are optional ones and are not matched on (PS3.4 C.2.2.1.3).

    Raises: PermanentError "invalid-uid", "invalid-range", "invalid-number", "invalid-offset", "too-many-elements".
    """
    asked = Search(level, studies=studies)
    tables = k.tables_of(level)
    zone = tree.get(k.TIMEZONE, "")
    if isinstance(zone, str) and zone.strip():
        asked.zone = offset_minutes(zone)
    paired = _periods(asked, tree, tables, combined=combined)
    for tag, value in tree.items():
        if tag in paired or tag == k.TIMEZONE:
            continue
        attribute = BY_TAG.get(tag)
        at = attribute.level if attribute else k.KEPT.get(tag)
        vr = k.vr_of(tag)
        if isinstance(value, str) and tag in (k.MODALITIES_IN_STUDY, k.SOP_CLASSES_IN_STUDY):
            matcher = _matcher(vr, value, empty=empty)
            if tag == k.MODALITIES_IN_STUDY:
                asked.modalities = matcher
            else:
                asked.sop_classes = matcher
        elif at not in tables or tag == k.INSTANCES_OF_SERIES or (attribute and not isinstance(value, str)):
            if not _is_universal(value):
                asked.ignored.append(tag)
        elif attribute is not None:
            matcher = _matcher(attribute.vr, str(value), fuzzy=fuzzy, empty=empty)
            if not isinstance(matcher, Universal):
                asked.conditions.append((attribute, matcher))
        elif not _is_universal(value):
            asked.kept.setdefault(at, {})[tag] = _kept_key(vr, value, fuzzy=fuzzy, empty=empty)
    return asked


def _periods(asked: Search, tree: Tree, tables: Sequence[Level], *, combined: bool) -> set[str]:
    """Take out the dates and times that are matched together; the tags of those taken."""
    taken: set[str] = set()
    for date, time in k.PERIODS:
        texts = tree.get(date.tag, ""), tree.get(time.tag, "")
        if date.level not in tables or not all(isinstance(text, str) and "\\" not in text for text in texts):
            continue
        universal = [_is_universal(text) for text in texts]
        if all(universal) or (asked.zone is None and not (combined and not any(universal))):
            continue
        dates = date_range("" if universal[0] else str(texts[0]))
        times = time_range("" if universal[1] else str(texts[1]))
        asked.periods.append((date, time, Period(dates, times, combined, asked.zone)))
        taken |= {date.tag, time.tag}
    return taken


def _matcher(vr: str, text: str, *, fuzzy: bool = False, empty: bool = False) -> Matcher:
    matcher = matcher_for(vr, text, fuzzy=fuzzy, empty=empty)
    if (
        isinstance(matcher, AnyOf)
        and sum(not isinstance(one, SingleValue) for one in matcher.matchers) > _MOST_PATTERNS
    ):
        raise PermanentError("too-many-elements", f"a key of over {_MOST_PATTERNS} patterns, ranges or names")
    return matcher


def _is_universal(value: "str | Tree") -> bool:
    if isinstance(value, str):
        return value.strip(" \0") in ("", "*")
    return all(_is_universal(inner) for inner in value.values())


def _kept_key(vr: str, value: "str | Tree", *, fuzzy: bool, empty: bool) -> "Matcher | Keys":
    if isinstance(value, str):
        return _matcher(vr, value, fuzzy=fuzzy, empty=empty)
    return {
        tag: _kept_key(k.vr_of(tag), inner, fuzzy=fuzzy, empty=empty)
        for tag, inner in value.items()
        if not _is_universal(inner)
    }

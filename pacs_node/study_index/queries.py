"""Finding rows of the index by DICOM keys, a page at a time, for C-FIND and QIDO-RS alike.

SQL decides on what has a column, exactly as ``standards.matching`` would. What few rows an index leads to are sorted
here; what is asked more widely is read in the order of an index, so that a page costs a page whatever is held.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final
from zoneinfo import ZoneInfo

from django.db.models import Exists, F, Model, OuterRef, Q, QuerySet

from pacs_node.config import config
from pacs_node.study_index import keys as k
from pacs_node.study_index.conditions import Unindexed, can_seek, condition, period_condition
from pacs_node.study_index.keys import BY_TAG, Attribute, Level
from pacs_node.study_index.models import Instance, Series, Study
from standards.json_matching import Keys, matches
from standards.matching import Matcher, UidList, Universal, date_range, matcher_for, time_range
from standards.periods import Period, offset_minutes

HELD: Final = Q(released_at__isnull=True, is_variant=False)
FEW: Final = 5000
"""So many rows are sorted after an index found them; more are read in the order of another index."""
_PAGE: Final = 500
_MODEL: Final[dict[Level, type[Model]]] = {"PATIENT": Study, "STUDY": Study, "SERIES": Series, "IMAGE": Instance}
_PREFIX: Final[dict[Level, dict[Level, str]]] = {
    "PATIENT": {"STUDY": ""},
    "STUDY": {"STUDY": ""},
    "SERIES": {"STUDY": "study__", "SERIES": ""},
    "IMAGE": {"STUDY": "series__study__", "SERIES": "series__", "IMAGE": ""},
}
_STUDY_KEY: Final[dict[Level, str]] = {
    "PATIENT": "pk",
    "STUDY": "pk",
    "SERIES": "study_id",
    "IMAGE": "series__study_id",
}
_ORDER: Final[dict[Level, tuple[str, ...]]] = {
    "PATIENT": ("patient_id", "issuer_of_patient_id", "pk"),
    "STUDY": ("-study_date", "-study_time", "-pk"),
    "SERIES": ("pk",),
    "IMAGE": ("pk",),
}
"""The order in which everything can be read by an index."""
_ORDER_INSIDE: Final[dict[Level, tuple[str, ...]]] = {
    **_ORDER,
    "SERIES": ("study_id", "series_number", "pk"),
    "IMAGE": ("series__study_id", "series__series_number", "series_id", "instance_number", "pk"),
}
"""The order of what a few studies hold."""
_UNIQUE: Final = frozenset({"study_instance_uid", "series_instance_uid", "sop_instance_uid"})

Tree = dict[str, "str | Tree"]
"""Tag → the text of a key, or the keys of the item of a sequence."""


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


@dataclass(frozen=True, slots=True)
class Row:
    """One entity that was found: its key, that of its study, and what its columns say, in the order of ``columns``."""

    key: int
    study_key: int
    values: tuple[Any, ...]
    kept: tuple[dict[str, Any], ...] = ()
    """What is kept as DICOM JSON at the levels that were asked for, outermost first."""


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

    Raises: PermanentError "invalid-uid", "invalid-range", "invalid-number", "invalid-offset".
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
            matcher = matcher_for(vr, value, empty=empty)
            if tag == k.MODALITIES_IN_STUDY:
                asked.modalities = matcher
            else:
                asked.sop_classes = matcher
        elif at not in tables or tag == k.INSTANCES_OF_SERIES or (attribute and not isinstance(value, str)):
            if not _is_universal(value):
                asked.ignored.append(tag)
        elif attribute is not None:
            matcher = matcher_for(attribute.vr, str(value), fuzzy=fuzzy, empty=empty)
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


def _is_universal(value: "str | Tree") -> bool:
    if isinstance(value, str):
        return value.strip(" \0") in ("", "*")
    return all(_is_universal(inner) for inner in value.values())


def _kept_key(vr: str, value: "str | Tree", *, fuzzy: bool, empty: bool) -> "Matcher | Keys":
    if isinstance(value, str):
        return matcher_for(vr, value, fuzzy=fuzzy, empty=empty)
    return {
        tag: _kept_key(k.vr_of(tag), inner, fuzzy=fuzzy, empty=empty)
        for tag, inner in value.items()
        if not _is_universal(inner)
    }


def page(asked: Search, wanted: Sequence[str], offset: int, limit: int) -> list[Row]:
    """At most ``limit`` rows after the first ``offset`` ones, with what ``wanted`` tags have in columns or kept."""
    if asked.kept:
        return list(islice(every(asked, wanted), offset, offset + limit))
    read = _Reader(asked, wanted)
    if _is_inside(asked):
        return read.rows(read.queryset().order_by(*_ORDER_INSIDE[asked.level])[offset : offset + limit])
    few = read.few()
    if few is not None:
        return read.by_key(few[offset : offset + limit])
    return read.rows(read.queryset(free=True).order_by(*_ORDER[asked.level])[offset : offset + limit])


def every(asked: Search, wanted: Sequence[str]) -> Iterator[Row]:
    """All rows, one after another, in short reads: nothing in the database waits for who takes them."""
    read = _Reader(asked, wanted)
    for row in _all_rows(asked, read):
        if read.fits(row):
            yield row


def _all_rows(asked: Search, read: "_Reader") -> Iterator[Row]:
    if _is_inside(asked):
        yield from read.rows(read.queryset().order_by(*_ORDER_INSIDE[asked.level]))
        return
    few = read.few()
    if few is not None:
        for start in range(0, len(few), _PAGE):
            yield from read.by_key(few[start : start + _PAGE])
        return
    rows = read.queryset(free=True).order_by(*_ORDER[asked.level])
    after = Q()
    while True:
        found = read.rows(rows.filter(after)[:_PAGE])
        yield from found
        if len(found) < _PAGE:
            return
        after = read.after(found[-1])


def _is_inside(asked: Search) -> bool:
    """Whether a unique key leads to so little that it needs no plan."""
    return any(attribute.column in _UNIQUE and isinstance(one, UidList) for attribute, one in asked.conditions)


def columns(level: Level, wanted: Iterable[str]) -> tuple[str, ...]:
    """Those of the wanted tags that have a column at ``level`` or above, in the order of ``Row.values``."""
    levels = k.tables_of(level)
    return tuple(tag for tag in dict.fromkeys(wanted) if tag in BY_TAG and BY_TAG[tag].level in levels)


class _Reader:
    """The queries of one search. ``wanted`` tags become the columns that are read, no others are."""

    def __init__(self, asked: Search, wanted: Sequence[str]) -> None:
        self.asked, self.level = asked, asked.level
        self.prefixes = _PREFIX[asked.level]
        self.order = _ORDER[asked.level]
        self.kept_levels = [
            level for level in self.prefixes if level in asked.kept or any(k.KEPT.get(tag) == level for tag in wanted)
        ]
        attributes = [BY_TAG[tag] for tag in columns(asked.level, wanted)]
        self.kept_from = 2 + len(attributes)
        self.order_from = self.kept_from + len(self.kept_levels)
        self.paths = [
            "pk",
            _STUDY_KEY[asked.level],
            *(self.prefixes[one.level] + one.column for one in attributes),
            *(f"{self.prefixes[level]}attributes" for level in self.kept_levels),
            *(path.lstrip("-") for path in self.order if len(self.order) > 1),
        ]
        self.last: tuple[Any, ...] = ()

    def queryset(self, *, free: bool = False) -> QuerySet[Any]:
        """What matches. ``free`` keeps SQLite from an index that would have to be sorted."""
        free_paths: dict[str, str] = {}

        def path_at(level: Level, column: str) -> str:
            path = self.prefixes[level] + column
            if not free or path in self.order or f"-{path}" in self.order:
                return path
            free_paths[f"free_{column}"] = path
            return f"free_{column}"

        found = self._held()
        for attribute, matcher in self.asked.conditions:
            found &= condition(attribute, matcher, lambda column, at=attribute.level: path_at(at, column))  # type: ignore[misc]
        for date, time, period in self.asked.periods:
            zone = path_at("STUDY", "timezone_offset_from_utc")
            columns = path_at(date.level, date.column), path_at(time.level, time.column)
            found &= period_condition(*columns, zone, period, zone_of_the_node())
        if self.asked.studies is not None:
            found &= Q(**{path_at("STUDY", "study_instance_uid") + "__in": sorted(self.asked.studies)})
        found &= self._of_study()
        rows = _MODEL[self.level]._default_manager.all()
        if free_paths:
            rows = rows.alias(**{name: Unindexed(F(path)) for name, path in free_paths.items()})
        return rows.filter(found)

    def _held(self) -> Q:
        if self.level == "IMAGE":
            return HELD
        if self.level == "SERIES":
            return Q(instances_count__gt=0)
        return Q(Exists(Series.objects.filter(study=OuterRef("pk"), instances_count__gt=0)))

    def _of_study(self) -> Q:
        found, study = Q(), OuterRef(_STUDY_KEY[self.level])
        if not isinstance(self.asked.modalities, Universal):
            fits = condition(k.BY_KEYWORD["Modality"], self.asked.modalities, str)
            found &= Q(Exists(Series.objects.filter(fits, study=study, instances_count__gt=0)))
        if not isinstance(self.asked.sop_classes, Universal):
            fits = condition(k.BY_KEYWORD["SOPClassUID"], self.asked.sop_classes, str)
            found &= Q(Exists(Instance.objects.filter(HELD, fits, series__study=study)))
        return found

    def few(self) -> list[int] | None:
        """The keys of all that matches, in order, when an index leads to few of them; else None."""
        indexed = any(
            can_seek(attribute, matcher)
            for attribute, matcher in self.asked.conditions
            if attribute.column not in self.order and f"-{attribute.column}" not in self.order
        )
        if not indexed and (self.asked.studies is None or len(self.asked.studies) > FEW):
            return None
        order = [path for path in self.order if path not in ("pk", "-pk")]
        found = list(self.queryset().values_list(*(path.lstrip("-") for path in order), "pk")[: FEW + 1])
        if len(found) > FEW:
            return None
        found.sort(reverse=self.order[0].startswith("-"))
        return [row[-1] for row in found]

    def by_key(self, keys: Sequence[int]) -> list[Row]:
        """These rows, in this order."""
        if not keys:
            return []
        found = {row.key: row for row in self.rows(_MODEL[self.level]._default_manager.filter(pk__in=keys))}
        return [found[key] for key in keys if key in found]

    def rows(self, queryset: QuerySet[Any]) -> list[Row]:
        """The rows of a query, with the columns that were asked for."""
        read = list(queryset.values_list(*self.paths))
        if read:
            self.last = read[-1][self.order_from :]
        first, second = self.kept_from, self.order_from
        return [Row(values[0], values[1], values[2:first], values[first:second]) for values in read]

    def fits(self, row: Row) -> bool:
        """Whether what is kept beside the columns matches."""
        kept = dict(zip(self.kept_levels, row.kept, strict=True))
        return all(matches(keys, kept[level]) for level, keys in self.asked.kept.items())

    def after(self, last: Row) -> Q:
        """The condition on what comes after the last row that was read."""
        if self.level in ("SERIES", "IMAGE"):
            return Q(pk__gt=last.key)
        descending = self.order[0].startswith("-")
        beyond = "lt" if descending else "gt"
        names = [path.lstrip("-") for path in self.order]
        found, same = Q(), Q()
        for name, value in zip(names, self.last, strict=True):
            found |= same & Q(**{f"{name}__{beyond}": value})
            same &= Q(**{name: value})
        return Q(**{f"{names[0]}__{beyond}e": self.last[0]}) & found


@dataclass
class Counts:
    """What a study holds here, all in all."""

    modalities: list[str] = field(default_factory=list)
    series: int = 0
    instances: int = 0
    sop_classes: list[str] = field(default_factory=list)


def counts_of(studies: Iterable[int], *, sop_classes: bool = False) -> dict[int, Counts]:
    """Counts by study key, by one query (one more for the SOP classes), whatever the number of studies."""
    found = {study: Counts() for study in studies}
    series = Series.objects.filter(study__in=list(found), instances_count__gt=0).order_by("modality")
    for study, modality, instances in series.values_list("study_id", "modality", "instances_count"):
        counts = found[study]
        counts.series += 1
        counts.instances += instances
        if modality and modality not in counts.modalities:
            counts.modalities.append(modality)
    if sop_classes:
        classes = Instance.objects.filter(HELD, series__study__in=list(found)).order_by("sop_class_uid")
        for study, sop_class in classes.values_list("series__study_id", "sop_class_uid").distinct():
            found[study].sop_classes.append(sop_class)
    return found


def zone_of_the_node() -> int:
    """Minutes east of UTC of the node's own time zone today."""
    offset = datetime.now(UTC).astimezone(ZoneInfo(config().time_zone)).utcoffset()
    return int(offset.total_seconds() // 60) if offset else 0

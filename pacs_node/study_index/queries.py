"""Finding rows of the index by DICOM keys, a page at a time, for C-FIND and QIDO-RS alike.

SQL decides on what has a column, exactly as ``standards.matching`` would. What few rows an index leads to are sorted
here; what is asked more widely is read in the order of an index, so that a page costs a page whatever is held.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import chain, islice
from typing import Any, Final
from zoneinfo import ZoneInfo

from django.core.exceptions import EmptyResultSet, FullResultSet
from django.db import connection
from django.db.models import BooleanField, Exists, F, Func, Model, OuterRef, Q, QuerySet

from pacs_node.config import config
from pacs_node.study_index import keys as k
from pacs_node.study_index.conditions import Unindexed, can_range, can_seek, condition, name_ways, period_condition
from pacs_node.study_index.keys import BY_TAG, Level
from pacs_node.study_index.models import Instance, Series, Study
from pacs_node.study_index.searches import Search
from standards.json_matching import matches
from standards.matching import NameMatch, SingleValue, UidList, Universal

HELD: Final = Q(released_at__isnull=True, is_variant=False)
FEW: Final = 5000
MANY: Final = 50_000
"""So many rows are sorted after an index found them (``MANY`` when that index has all that sorting needs); more are
read in the order of another index, until the page is full."""
_PAGE: Final = 1000
"""So many rows are read at once; a day of a whole region is one reading, as each has a price of its own."""
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
_STUDY_ORDER: Final = ("study_date", "study_time", "id")
"""The columns of that of studies."""
_ORDER_INSIDE: Final[dict[Level, tuple[str, ...]]] = {
    **_ORDER,
    "SERIES": ("study_id", "series_number", "pk"),
    "IMAGE": ("series__study_id", "series__series_number", "series_id", "instance_number", "pk"),
}
"""The order of what a few studies hold."""
_HELD_STUDY: Final = Func(
    F("pk"),
    template="EXISTS(SELECT 1 FROM study_index_series s WHERE s.study_id = %(expressions)s AND s.instances_count > 0)",
    output_field=BooleanField(),
)
"""By hand: to have the ORM write this costs each search more than its rows cost the database."""
_UNIQUE: Final = frozenset({"study_instance_uid", "series_instance_uid", "sop_instance_uid"})
_NEARLY_UNIQUE: Final = frozenset({"patient_id", "accession_number"})


@dataclass(frozen=True, slots=True)
class Row:
    """One entity that was found: its key, that of its study, and what its columns say, in the order of ``columns``."""

    key: int
    study_key: int
    values: tuple[Any, ...]
    kept: tuple[dict[str, Any], ...] = ()
    """What is kept as DICOM JSON at the levels that were asked for, outermost first."""


def page(asked: Search, wanted: Sequence[str], offset: int, limit: int) -> list[Row]:
    """At most ``limit`` rows after the first ``offset`` ones, with what ``wanted`` tags have in columns or kept."""
    if asked.kept:
        return list(islice(every(asked, wanted), offset, offset + limit))
    read = _Reader(asked, wanted)
    if _is_inside(asked):
        return read.rows(read.queryset().order_by(*_ORDER_INSIDE[asked.level])[offset : offset + limit])
    wish = offset + limit
    while (few := read.few(wish)) is not None:
        found = [row for start in range(0, len(few), _PAGE) for row in read.by_key(few[start : start + _PAGE])]
        if len(found) >= offset + limit or len(few) < wish:
            return found[offset : offset + limit]
        wish *= 2  # some of them are not held here any more
    return read.rows(read.queryset(free=True).order_by(*_ORDER[asked.level])[offset : offset + limit])


def every(asked: Search, wanted: Sequence[str]) -> Iterator[Row]:
    """All rows, one after another, in short reads: nothing in the database waits for who takes them."""
    read = _Reader(asked, wanted)
    found = _all_rows(asked, read)
    yield from filter(read.fits, found) if asked.kept else found


def _all_rows(asked: Search, read: "_Reader") -> Iterator[Row]:
    if _is_inside(asked):
        yield from read.rows(read.queryset().order_by(*_ORDER_INSIDE[asked.level]))
        return
    few = read.few(MANY)
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
    """Whether a key leads to so little, always, that it needs no plan: a UID, a whole id, a whole number."""
    return any(
        isinstance(matcher, UidList if attribute.column in _UNIQUE else SingleValue)
        for attribute, matcher in asked.conditions
        if attribute.column in _UNIQUE or attribute.column in _NEARLY_UNIQUE
    )


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
        self.order_columns = tuple(path.lstrip("-") for path in self.order)
        self.rare: bool | None = None
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
        ]
        self.paths += [path for path in self.order_columns if path not in self.paths]
        self.order_places = [self.paths.index(path) for path in self.order_columns]
        self.last: tuple[Any, ...] = ()

    def queryset(self, *, free: bool = False) -> QuerySet[Any]:
        """What matches and is held. ``free`` keeps SQLite from an index that would have to be sorted."""
        return self._matching(free=free).filter(self._held())

    def _matching(self, *, free: bool = False, without: NameMatch | None = None) -> QuerySet[Any]:
        free_paths: dict[str, str] = {}

        def path_at(level: Level, column: str) -> str:
            path = self.prefixes[level] + column
            if not free or path in self.order or f"-{path}" in self.order:
                return path
            free_paths[f"free_{column}"] = path
            return f"free_{column}"

        found = Q()
        for attribute, matcher in self.asked.conditions:
            if matcher is not without:
                found &= condition(attribute, matcher, partial(path_at, attribute.level))
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
        return Q(_HELD_STUDY)

    def _of_study(self) -> Q:
        found, study = Q(), OuterRef(_STUDY_KEY[self.level])
        if not isinstance(self.asked.modalities, Universal):
            fits = condition(k.BY_KEYWORD["Modality"], self.asked.modalities, str)
            series = Series.objects.filter(fits, instances_count__gt=0)
            if self._is_rare(series):
                found &= Q(**{f"{_STUDY_KEY[self.level]}__in": series.values("study")})
            else:
                found &= Q(Exists(series.filter(study=study)))
        if not isinstance(self.asked.sop_classes, Universal):
            fits = condition(k.BY_KEYWORD["SOPClassUID"], self.asked.sop_classes, str)
            found &= Q(Exists(Instance.objects.filter(HELD, fits, series__study=study)))
        return found

    def _is_rare(self, series: QuerySet[Series]) -> bool:
        """Whether so few series have the modality that they lead to the studies, where nothing else does."""
        if self.rare is None:
            alone = not self.asked.conditions and not self.asked.periods
            self.rare = alone and series[: FEW + 1].count() <= FEW
        return self.rare

    def few(self, most: int) -> list[int] | None:
        """The keys of the first ``most`` that an index leads to, in order, when it leads to few; else None.

        Of studies some may not be held any more.
        """
        indexed = [
            matcher
            for attribute, matcher in self.asked.conditions
            if can_seek(attribute, matcher) and attribute.column not in self.order_columns
        ]
        if not indexed and not self._of_few_studies():
            return None
        if self.level == "STUDY":
            return self._few_studies(most)
        found = list(self.queryset().values_list(*self.order_columns)[: FEW + 1])
        return None if len(found) > FEW else [row[-1] for row in sorted(found)]

    def _of_few_studies(self) -> bool:
        if self.asked.studies is not None and len(self.asked.studies) <= FEW:
            return True
        if isinstance(self.asked.modalities, Universal):
            return False
        self._of_study()
        return bool(self.rare)

    def _few_studies(self, most: int) -> list[int] | None:
        asked = self.asked
        alone = len(asked.conditions) == 1 and not asked.periods and asked.studies is None
        alone = alone and isinstance(asked.modalities, Universal) and isinstance(asked.sop_classes, Universal)
        limit = MANY if alone else FEW
        named = ((one, matcher) for one, matcher in asked.conditions if isinstance(matcher, NameMatch))
        attribute, name = next((pair for pair in named if pair[0].column == "patient_name"), (None, None))
        rows = self._matching(without=name)
        ways = [rows]
        if attribute is not None and name is not None:
            # Each writing of a name has an index of its own, which has all that is needed if it is read by itself.
            ways = [rows.filter(part) for part in name_ways(attribute, name)]
            if not can_range(name):  # each way is read from end to end: once, then
                found = [row for way in ways for row in way.values_list(*self.order_columns)[: FEW + 1]]
                keys = sorted(set(found), reverse=True)
                return None if len(found) > FEW else [row[-1] for row in keys[:most]]
        return _first(ways, most, limit)

    def by_key(self, keys: Sequence[int]) -> list[Row]:
        """These rows, in this order."""
        if not keys:
            return []
        found = {
            row.key: row for row in self.rows(_MODEL[self.level]._default_manager.filter(self._held(), pk__in=keys))
        }
        return [found[key] for key in keys if key in found]

    def rows(self, queryset: QuerySet[Any]) -> list[Row]:
        """The rows of a query, with the columns that were asked for."""
        read = list(queryset.values_list(*self.paths))
        if read:
            self.last = tuple(read[-1][place] for place in self.order_places)
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
        names = self.order_columns
        found, same = Q(), Q()
        for name, value in zip(names, self.last, strict=True):
            found |= same & Q(**{f"{name}__{beyond}": value})
            same &= Q(**{name: value})
        return Q(**{f"{names[0]}__{beyond}e": self.last[0]}) & found


def _first(ways: list[QuerySet[Any]], most: int, limit: int) -> list[int] | None:
    """The keys of the first ``most`` studies that these ways find; None when all of them find more than ``limit``.

    By hand: each way is compiled once for both questions, and whether there are too many is one probe of the indexes.
    """
    wheres: list[str] = []
    values: list[list[Any]] = []
    for way in ways:
        try:
            where, params = way.query.get_compiler(connection=connection).compile(way.query.where)
        except EmptyResultSet:
            continue
        except FullResultSet:
            return None
        wheres.append(where)
        values.append(list(params))
    if not wheres:
        return []
    table, free = Study._meta.db_table, "+" if connection.vendor == "sqlite" else ""  # as Unindexed
    columns, order = ", ".join(_STUDY_ORDER), ", ".join(f"{free}{column} DESC" for column in _STUDY_ORDER)
    probe = " UNION ALL ".join(f"SELECT 1 FROM {table} WHERE {where}" for where in wheres)  # noqa: S608  our own model
    pages = " UNION ALL ".join(
        f"SELECT * FROM (SELECT {columns} FROM {table} WHERE {where} ORDER BY {order} LIMIT %s) AS way"  # noqa: S608
        for where in wheres
    )
    with connection.cursor() as cursor:
        cursor.execute(f"{probe} LIMIT 1 OFFSET %s", [*chain(*values), limit])
        if cursor.fetchone():
            return None
        cursor.execute(pages, [value for params in values for value in (*params, most)])
        return [row[-1] for row in sorted(set(cursor.fetchall()), reverse=True)[:most]]


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
    for study, modality, instances in _series_of(list(found)):
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


def _series_of(studies: list[int]) -> list[tuple[int, str, int]]:
    """Study, modality and instances of their series; by hand, because the ORM looks at each key several times."""
    table, keys = connection.ops.quote_name(Series._meta.db_table), ", ".join(["%s"] * len(studies))
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT study_id, modality, instances_count FROM {table} "  # noqa: S608  the name of our own model
            f"WHERE study_id IN ({keys or 'NULL'}) AND instances_count > 0 ORDER BY study_id, modality",
            studies,
        )
        return list(cursor.fetchall())


def zone_of_the_node() -> int:
    """Minutes east of UTC of the node's own time zone today."""
    offset = datetime.now(UTC).astimezone(ZoneInfo(config().time_zone)).utcoffset()
    return int(offset.total_seconds() // 60) if offset else 0

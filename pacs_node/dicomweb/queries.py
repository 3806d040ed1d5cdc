"""QIDO-RS over the index: a fixed handful of queries an answer, whatever the number of rows.

Source: PS3.18 10.6, PS3.4 C.2.2.2
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from django.db.models import CharField, Count, Exists, Lookup, Model, OuterRef, Q, QuerySet
from django.http import QueryDict

from pacs_node.dicomweb.attributes import BY_TAG, LEVELS, Attribute, Level, column_elements, element, tag_of
from pacs_node.dicomweb.permissions import Reach, study_filter
from pacs_node.study_index.models import Instance, Series, Study
from standards.errors import PermanentError
from standards.matching import date_range, like_pattern, time_range, uid_list
from standards.person_names import fold_pattern, latin_key, latin_pattern

MOST_RESULTS: Final = 1000
_CONTROL: Final = frozenset({"limit", "offset", "includefield", "fuzzymatching", "emptyvaluematching"})
_MODALITIES_IN_STUDY: Final = "00080061"
_SERIES_COUNT, _INSTANCE_COUNT_OF_STUDY, _INSTANCE_COUNT_OF_SERIES = "00201206", "00201208", "00201209"
_PATH: Final = {
    "study": {"study": ""},
    "series": {"study": "study__", "series": ""},
    "instance": {"study": "series__study__", "series": "series__", "instance": ""},
}


@CharField.register_lookup
class Wildcard(Lookup):
    """DICOM wildcard matching in SQL, case-sensitive on both databases: ``*`` any run, ``?`` one character."""

    lookup_name = "wildcard"

    def get_prep_lookup(self) -> str:
        """The key as it came."""
        return str(self.rhs)

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, tuple[Any, ...]]:
        """``LIKE`` with an escape character."""
        column, params = self.process_lhs(compiler, connection)
        return f"{column} LIKE %s ESCAPE '\\'", (*params, like_pattern(self.rhs))

    def as_sqlite(self, compiler: Any, connection: Any) -> tuple[str, tuple[Any, ...]]:
        """``GLOB``, because SQLite's LIKE does not see the case of Latin letters."""
        column, params = self.process_lhs(compiler, connection)
        return f"{column} GLOB %s", (*params, self.rhs.replace("[", "[[]"))


@dataclass
class Search:
    """A search as asked: conditions on the level's rows, what to return, which page, and what could not be matched."""

    level: Level
    condition: Q = field(default_factory=Q)
    wanted: frozenset[str] | None = frozenset()
    limit: int = MOST_RESULTS
    offset: int = 0
    ignored: list[str] = field(default_factory=list)


def parse(level: Level, query: QueryDict) -> Search:
    """Read the parameters of a search.

    Raises: PermanentError "invalid-parameter", "unknown-attribute", "invalid-uid", "invalid-range".
    """
    search = Search(level)
    search.limit = min(_count(query, "limit", MOST_RESULTS), MOST_RESULTS)
    search.offset = _count(query, "offset", 0)
    fuzzy = query.get("fuzzymatching", "false").lower()
    if fuzzy not in ("true", "false"):
        raise PermanentError("invalid-parameter", "fuzzymatching is true or false.")
    names = [name.strip() for value in query.getlist("includefield") for name in value.split(",") if name.strip()]
    search.wanted = None if "all" in names else frozenset(tag_of(name.rsplit(".", 1)[-1]) for name in names)
    for name, values in query.lists():
        if name in _CONTROL:
            continue
        if "." in name:  # an attribute inside a sequence
            [tag_of(part) for part in name.split(".")]
            search.ignored.append(name)
            continue
        tag = tag_of(name)
        for value in values:
            condition = _condition(level, tag, value, fuzzy=fuzzy == "true")
            if condition is None:
                search.ignored.append(name)
            else:
                search.condition &= condition
    return search


def _count(query: QueryDict, name: str, default: int) -> int:
    value = query.get(name, "")
    if not value:
        return default
    if not value.isascii() or not value.isdigit() or len(value) > 9:
        raise PermanentError("invalid-parameter", f"{name} is a whole number, not {value[:40]!r}.")
    return int(value)


def _condition(level: Level, tag: str, value: str, *, fuzzy: bool) -> Q | None:
    """The condition for one matching key; None where this level cannot match it."""
    paths = _PATH[level]
    if tag == _MODALITIES_IN_STUDY:
        if value in ("", "*"):
            return Q()
        modalities = Series.objects.filter(modality__wildcard=value, study=OuterRef(f"{paths['study']}pk"))
        return Q(Exists(modalities))
    attribute = BY_TAG.get(tag)
    if attribute is None or attribute.level not in paths:
        return None
    return match(attribute, value, paths[attribute.level], fuzzy=fuzzy)


def match(attribute: Attribute, value: str, prefix: str = "", *, fuzzy: bool = False) -> Q:
    """The condition that ``attribute`` matches ``value``: single value, UID list, range, wildcard or universal.

    Raises: PermanentError "invalid-uid", "invalid-range", "invalid-parameter".
    """
    column = f"{prefix}{attribute.column}"
    if value.strip() in ("", "*"):
        return Q()
    if attribute.vr == "UI":
        return Q(**{f"{column}__in": uid_list(value.replace(",", "\\"))})
    if attribute.vr == "DA":
        return _between(column, *date_range(value))
    if attribute.vr == "TM":
        low, high = time_range(value)
        # Stored times may be short: "12" and "1200" begin when "120000.000000" does.
        return _between(column, low.rstrip("0.") if low else low, high)
    if attribute.vr in ("IS", "US"):
        if not value.removeprefix("-").isdecimal() or len(value) > 9:
            raise PermanentError("invalid-parameter", f"{attribute.keyword} is a whole number.")
        return Q(**{column: int(value)})
    if attribute.keyword == "PatientName":
        return _name(prefix, value, fuzzy=fuzzy)
    if attribute.vr == "PN":
        return Q(**{f"{column}__wildcard": value.replace("^", " ").replace(" ", "?")})
    return Q(**{f"{column}__wildcard": value})


def _between(column: str, low: str | None, high: str | None) -> Q:
    condition = Q(**{f"{column}__gt": ""})
    if low:
        condition &= Q(**{f"{column}__gte": low})
    if high:
        condition &= Q(**{f"{column}__lte": high})
    return condition


def _name(prefix: str, value: str, *, fuzzy: bool) -> Q:
    column, pattern = f"{prefix}patient_name_fold__wildcard", re.sub(r" \*$", "*", fold_pattern(value))
    folded = Q(**{column: pattern})
    if "*" not in pattern and "?" not in pattern:  # further components and other writings of the name may follow
        folded |= Q(**{column: f"{pattern} *"})
    if pattern.isascii() and (latin := latin_pattern(value)):  # asked in Latin letters, stored perhaps in Cyrillic
        folded |= Q(**{f"{prefix}patient_name_latin__wildcard": latin})
    if not fuzzy:
        return folded
    words = [key for word in re.split(r"[*? ]+", pattern) if (key := latin_key(word))]
    similar = Q()
    for word in words:
        similar &= Q(**{f"{prefix}patient_name_latin__contains": word})
    return folded | similar if words else folded


def held(prefix: str = "") -> Q:
    """The condition on instances that this node can give: not set aside as a variant, not released."""
    return Q(**{f"{prefix}is_variant": False, f"{prefix}released_at__isnull": True})


def search_rows(search: Search, reach: Reach, within: Mapping[str, str]) -> QuerySet[Any, Any]:
    """The rows of the level that fit, within reach, below the study and series of ``within``; one page and one more."""
    paths = _PATH[search.level]
    condition = search.condition & study_filter(reach, paths["study"])
    if "study" in within:
        condition &= Q(**{f"{paths['study']}study_instance_uid": within["study"]})
    if "series" in within:
        condition &= Q(**{f"{paths['series']}series_instance_uid": within["series"]})
    rows: QuerySet[Any, Any]
    if search.level == "study":
        rows = Study.objects.filter(Exists(Instance.objects.filter(held(), series__study=OuterRef("pk"))))
        rows = rows.order_by("-study_date", "-study_time", "-pk")
    elif search.level == "series":
        rows = Series.objects.filter(Exists(Instance.objects.filter(held(), series=OuterRef("pk"))))
        rows = rows.select_related("study").order_by("study_id", "series_number", "pk")
    else:
        rows = Instance.objects.filter(held()).select_related("series__study")
        rows = rows.order_by("series__study_id", "series__series_number", "series_id", "instance_number", "pk")
    return rows.filter(condition)[search.offset : search.offset + search.limit + 1]


def results(search: Search, rows: list[Any], base: str, *, upper: bool) -> list[dict[str, Any]]:
    """The answer in DICOM JSON; ``upper`` repeats the levels above (searches that are not below a study)."""
    counted = _counts(search.level, rows)
    return [_result(search, row, counted.get(row.pk, {}), base, upper=upper) for row in rows]


def _chain(level: Level, row: Any) -> dict[Level, Model]:
    if level == "study":
        return {"study": row}
    if level == "series":
        return {"study": row.study, "series": row}
    return {"study": row.series.study, "series": row.series, "instance": row}


def _result(search: Search, row: Any, counted: dict[str, Any], base: str, *, upper: bool) -> dict[str, Any]:
    chain: dict[Level, Any] = _chain(search.level, row)
    answer: dict[str, Any] = {"00080005": element("00080005", "CS", "ISO_IR 192")}
    asked = search.wanted or frozenset()
    for level in LEVELS[: LEVELS.index(search.level)]:
        found = column_elements(chain[level], level, search.wanted)
        uid = "0020000D" if level == "study" else "0020000E"
        keep = upper or search.wanted is None
        answer |= {tag: value for tag, value in found.items() if keep or tag == uid or tag in asked}
    answer |= column_elements(row, search.level, search.wanted)
    url = f"{base}/studies/{chain['study'].study_instance_uid}"
    if "series" in chain:
        url += f"/series/{chain['series'].series_instance_uid}"
    if "instance" in chain:
        url += f"/instances/{chain['instance'].sop_instance_uid}"
        if row.rows is None:  # no image: these say nothing
            for keyword in ("Rows", "Columns", "NumberOfFrames"):
                answer.pop(tag_of(keyword), None)
    answer["00080056"] = element("00080056", "CS", "ONLINE")
    answer["00081190"] = element("00081190", "UR", url)
    return dict(sorted((answer | counted).items()))


def _counts(level: Level, rows: list[Any]) -> dict[int, dict[str, Any]]:
    """The computed attributes by row: modalities and numbers of related series and instances."""
    keys = [row.pk for row in rows]
    answer: dict[int, dict[str, Any]] = {}
    if level == "study":
        numbers = Instance.objects.filter(held(), series__study__in=keys).values_list(
            "series__study_id", "series_id", "series__modality"
        )
        modalities: dict[int, set[str]] = {key: set() for key in keys}
        series, instances = dict.fromkeys(keys, 0), dict.fromkeys(keys, 0)
        for study, _, modality, count in numbers.annotate(count=Count("pk")):
            modalities[study].add(modality)
            series[study] += 1
            instances[study] += count
        for key in keys:
            answer[key] = {
                _MODALITIES_IN_STUDY: element(_MODALITIES_IN_STUDY, "CS", sorted(modalities[key] - {""})),
                _SERIES_COUNT: element(_SERIES_COUNT, "IS", series[key]),
                _INSTANCE_COUNT_OF_STUDY: element(_INSTANCE_COUNT_OF_STUDY, "IS", instances[key]),
            }
    elif level == "series":
        counts = Instance.objects.filter(held(), series__in=keys).values_list("series_id").annotate(count=Count("pk"))
        for key, count in counts:
            answer[key] = {_INSTANCE_COUNT_OF_SERIES: element(_INSTANCE_COUNT_OF_SERIES, "IS", count)}
    return answer

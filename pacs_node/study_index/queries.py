"""Finding rows of the index by DICOM keys: SQL narrows, ``standards.matching`` decides.

Fold columns and a rough Latin key make names match whatever the case, ё or script; no collation is relied on.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from django.db.models import Count, Exists, OuterRef, Q, QuerySet

from pacs_node.study_index.models import Instance, Series, Study
from standards.matching import AnyOf, Matcher, RangeMatch, SingleValue, UidList, Universal, Wildcard, matcher_for
from standards.person_names import fold_pattern, latin_pattern

Level = Literal["PATIENT", "STUDY", "SERIES", "IMAGE"]

HELD: Final = Q(released_at__isnull=True, is_variant=False)
_CHUNK: Final = 200
_WILD: Final = re.compile(r"[*?]+")

STUDY_COLUMNS: Final = {
    "PatientName": ("PN", "patient_name"),
    "PatientID": ("LO", "patient_id"),
    "IssuerOfPatientID": ("LO", "issuer_of_patient_id"),
    "PatientBirthDate": ("DA", "patient_birth_date"),
    "PatientSex": ("CS", "patient_sex"),
    "StudyInstanceUID": ("UI", "study_instance_uid"),
    "StudyDate": ("DA", "study_date"),
    "StudyTime": ("TM", "study_time"),
    "TimezoneOffsetFromUTC": ("SH", "timezone_offset_from_utc"),
    "AccessionNumber": ("SH", "accession_number"),
    "StudyID": ("SH", "study_id"),
    "StudyDescription": ("LO", "study_description"),
    "ReferringPhysicianName": ("PN", "referring_physician_name"),
    "InstitutionName": ("LO", "institution_name"),
}
SERIES_COLUMNS: Final = {
    "SeriesInstanceUID": ("UI", "series_instance_uid"),
    "Modality": ("CS", "modality"),
    "SeriesNumber": ("IS", "series_number"),
    "SeriesDescription": ("LO", "series_description"),
    "SeriesDate": ("DA", "series_date"),
    "SeriesTime": ("TM", "series_time"),
    "BodyPartExamined": ("CS", "body_part_examined"),
    "StationName": ("SH", "station_name"),
}
IMAGE_COLUMNS: Final = {
    "SOPInstanceUID": ("UI", "sop_instance_uid"),
    "SOPClassUID": ("UI", "sop_class_uid"),
    "InstanceNumber": ("IS", "instance_number"),
    "NumberOfFrames": ("IS", "number_of_frames"),
    "Rows": ("US", "rows"),
    "Columns": ("US", "columns"),
}
_COLUMNS: Final = {
    "PATIENT": STUDY_COLUMNS,
    "STUDY": STUDY_COLUMNS,
    "SERIES": STUDY_COLUMNS | SERIES_COLUMNS,
    "IMAGE": STUDY_COLUMNS | SERIES_COLUMNS | IMAGE_COLUMNS,
}


@dataclass
class Found:
    """One answer: the rows of its level and those above, and the counts that were asked for."""

    study: Study
    series: Series | None = None
    instance: Instance | None = None
    modalities: list[str] = field(default_factory=list)
    sop_classes: list[str] = field(default_factory=list)
    studies_count: int = 0
    series_count: int = 0
    instances_count: int = 0

    def value(self, keyword: str) -> Any:
        """The column value of an attribute, "" where it has none, None where the index does not know it."""
        for columns, row in (
            (STUDY_COLUMNS, self.study),
            (SERIES_COLUMNS, self.series),
            (IMAGE_COLUMNS, self.instance),
        ):
            if row is not None and keyword in columns:
                value = getattr(row, columns[keyword][1])
                return "" if value is None else value
        return None

    def attribute(self, tag: str) -> dict[str, Any] | None:
        """The DICOM JSON of an attribute kept beside the columns."""
        for row in (self.instance, self.series, self.study):
            if row is not None and tag in row.attributes:
                return dict(row.attributes[tag])
        return None


def find(level: Level, keys: dict[str, str]) -> Iterator[Found]:
    """Everything held that matches ``keys`` (keyword → key text; empty keys match all), newest study first.

    Keys that the level does not know are optional ones and are not matched on (PS3.4 C.2.2.1.3).

    Raises: PermanentError "invalid-uid", "invalid-range".
    """
    columns = _COLUMNS[level]
    matchers = {keyword: matcher_for(columns[keyword][0], text) for keyword, text in keys.items() if keyword in columns}
    matchers = {keyword: matcher for keyword, matcher in matchers.items() if not isinstance(matcher, Universal)}
    modalities = matcher_for("CS", keys.get("ModalitiesInStudy", "")) if level in ("PATIENT", "STUDY") else Universal()
    rows = _rows(level, matchers, keys)
    if not isinstance(modalities, Universal):
        wanted = _plain_values(modalities)
        series = Series.objects.filter(study=OuterRef("pk"))
        rows = rows.filter(Exists(series.filter(modality__in=wanted) if wanted else series))
    for chunk in _chunks(rows.iterator(chunk_size=_CHUNK)):
        found = [item for item in map(_found, chunk) if _matches(item, matchers)]
        _add_counts(level, found)
        for item in found:
            if isinstance(modalities, Universal) or any(modalities.matches(value) for value in item.modalities):
                yield item


def instances(level: Level, keys: dict[str, str]) -> QuerySet[Instance]:
    """The held instances that the unique keys of a retrieve request name; lists of UIDs are allowed.

    Raises: PermanentError("invalid-uid").
    """
    chosen = Instance.objects.filter(HELD).select_related("series__study")
    if level == "PATIENT":
        chosen = chosen.filter(series__study__patient_id=keys.get("PatientID", "").strip())
    for keyword, path in (
        ("StudyInstanceUID", "series__study__study_instance_uid"),
        ("SeriesInstanceUID", "series__series_instance_uid"),
        ("SOPInstanceUID", "sop_instance_uid"),
    ):
        matcher = matcher_for("UI", keys.get(keyword, ""))
        if isinstance(matcher, UidList):
            chosen = chosen.filter(**{f"{path}__in": matcher.uids})
    return chosen.order_by("series__study_id", "series__series_number", "series_id", "instance_number", "pk")


def _rows(level: Level, matchers: dict[str, Matcher], keys: dict[str, str]) -> QuerySet[Any]:
    held = Instance.objects.filter(HELD)
    if level == "IMAGE":
        rows: QuerySet[Any] = held.select_related("series__study").order_by("series_id", "instance_number", "pk")
        prefixes = ("series__study__", "series__", "")
    elif level == "SERIES":
        rows = Series.objects.filter(Exists(held.filter(series=OuterRef("pk")))).select_related("study")
        rows = rows.order_by("study_id", "series_number", "pk")
        prefixes = ("study__", "", "")
    else:
        rows = Study.objects.filter(Exists(held.filter(series__study=OuterRef("pk"))))
        rows = rows.order_by("-study_date", "-study_time", "-pk")
        prefixes = ("", "", "")
    for keyword, matcher in matchers.items():
        for columns, prefix in zip((STUDY_COLUMNS, SERIES_COLUMNS, IMAGE_COLUMNS), prefixes, strict=True):
            if keyword in columns:
                rows = rows.filter(_narrowing(prefix + columns[keyword][1], keyword, matcher, keys[keyword]))
    return rows


def _narrowing(path: str, keyword: str, matcher: Matcher, key: str) -> Q:
    """A condition that every match fulfils; it may let more through."""
    if keyword == "PatientName":
        asked = next((group for group in key.split("=") if group.strip()), "")
        condition = _contains(f"{path}_fold", fold_pattern(asked))
        return condition | _contains(f"{path}_latin", latin_pattern(asked)) if asked.isascii() else condition
    if isinstance(matcher, UidList):
        return Q(**{f"{path}__in": matcher.uids})
    if isinstance(matcher, SingleValue) and not matcher.folded:
        return Q(**{path: matcher.value.strip()}) if not path.endswith(_NUMBERS) else Q()
    if isinstance(matcher, RangeMatch) and matcher.vr == "DA":
        condition = ~Q(**{path: ""})
        if matcher.low is not None:
            condition &= Q(**{f"{path}__gte": matcher.low})
        if matcher.high is not None:
            condition &= Q(**{f"{path}__lte": matcher.high})
        return condition
    if isinstance(matcher, Wildcard) and not matcher.folded:
        return _contains(path, matcher.pattern)
    return Q()


_NUMBERS: Final = ("_number", "_of_frames", "rows", "columns")


def _contains(path: str, pattern: str) -> Q:
    condition = Q()
    for chunk in _WILD.split(pattern):
        if chunk.strip():
            condition &= Q(**{f"{path}__contains": chunk.strip()})
    return condition


def _matches(item: Found, matchers: dict[str, Matcher]) -> bool:
    return all(matcher.matches(str(item.value(keyword))) for keyword, matcher in matchers.items())


def _plain_values(matcher: Matcher) -> list[str]:
    if isinstance(matcher, SingleValue):
        return [matcher.value.strip()]
    if isinstance(matcher, AnyOf) and all(isinstance(one, SingleValue) for one in matcher.matchers):
        return [one.value.strip() for one in matcher.matchers if isinstance(one, SingleValue)]
    return []


def _found(row: Study | Series | Instance) -> Found:
    if isinstance(row, Instance):
        return Found(row.series.study, row.series, row)
    if isinstance(row, Series):
        return Found(row.study, row)
    return Found(row)


def _chunks(rows: Iterator[Any]) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _add_counts(level: Level, found: list[Found]) -> None:
    """Counts and modalities for a chunk of answers, by one query whatever its length."""
    if not found or level == "IMAGE":
        return
    held = Instance.objects.filter(HELD)
    if level == "SERIES":
        counts = dict(
            held.filter(series__in=[item.series.pk for item in found if item.series])
            .values_list("series_id")
            .annotate(Count("pk"))
        )
        for item in found:
            item.instances_count = counts.get(item.series.pk, 0) if item.series else 0
        return
    studies = {item.study.pk: item for item in found}
    rows = (
        held.filter(series__study__in=list(studies))
        .values_list("series__study_id", "series_id", "series__modality", "sop_class_uid")
        .annotate(Count("pk"))
        .order_by("series_id")
    )
    _sum_up(studies, rows)


def _sum_up(studies: dict[int, Found], rows: Iterable[tuple[int, int, str, str, int]]) -> None:
    seen: set[int] = set()
    for study, series, modality, sop_class, count in rows:
        item = studies[study]
        item.instances_count += count
        if series not in seen:
            seen.add(series)
            item.series_count += 1
        if modality and modality not in item.modalities:
            item.modalities.append(modality)
        if sop_class not in item.sop_classes:
            item.sop_classes.append(sop_class)

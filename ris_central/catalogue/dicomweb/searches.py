"""QIDO-RS for studies and series, answered from the catalogue through ``visible_to``.

Source: PS3.18 8.3.4 (query parameters), PS3.4 C.2.2.2 (matching)
"""

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.db.models import Count, Exists, OuterRef, Q, QuerySet, Subquery
from django.http import HttpRequest, HttpResponseBase, JsonResponse, QueryDict

from ris_central.accounts.models import User
from ris_central.catalogue import queries
from ris_central.catalogue.dicomweb.access import for_people
from ris_central.catalogue.dicomweb.attributes import of_holders, of_series, of_study
from ris_central.catalogue.dicomweb.holding import holders_of, holders_of_series
from ris_central.catalogue.models import ForeignHolding, Series, SeriesHolder, Study
from ris_central.patients.models import PatientIdentifier
from standards.errors import PermanentError
from standards.person_names import fold, fold_pattern, latin_key

KEYWORDS = {
    "StudyDate": "00080020",
    "SeriesDate": "00080021",
    "StudyTime": "00080030",
    "RetrieveAETitle": "00080054",
    "InstitutionName": "00080080",
    "ReferringPhysicianName": "00080090",
    "PatientBirthDate": "00100030",
    "PatientSex": "00100040",
    "BodyPartExamined": "00180015",
    "PerformedProcedureStepStartDate": "00400244",
    "AccessionNumber": "00080050",
    "Modality": "00080060",
    "ModalitiesInStudy": "00080061",
    "StudyDescription": "00081030",
    "SeriesDescription": "0008103E",
    "PatientName": "00100010",
    "PatientID": "00100020",
    "IssuerOfPatientID": "00100021",
    "StudyInstanceUID": "0020000D",
    "SeriesInstanceUID": "0020000E",
    "StudyID": "00200010",
    "SeriesNumber": "00200011",
}
_RANGE = re.compile(r"(\d{8})?(-)?(\d{8})?\Z")
_MOST = 1000


def wildcard(field: str) -> Callable[[str], Q]:
    """Matching of ``*`` and ``?``; without them single value matching."""

    def match(value: str) -> Q:
        if "*" not in value and "?" not in value:
            return Q(**{field: value})
        pattern = "".join(".*" if char == "*" else "." if char == "?" else re.escape(char) for char in value)
        return Q(**{f"{field}__regex": f"^{pattern}$"})

    return match


def uids(field: str) -> Callable[[str], Q]:
    """A list of UIDs, separated by commas or backslashes."""
    return lambda value: Q(**{f"{field}__in": re.split(r"[,\\]", value)})


def dates(field: str) -> Callable[[str], Q]:
    """A date or a range open at either end."""

    def match(value: str) -> Q:
        found = _RANGE.match(value)
        if not found or not (found[1] or found[3]):
            raise PermanentError("bad-query", f"{value!r} is not a date or a range of dates")
        if not found[2]:
            return Q(**{field: found[1]})
        condition = Q()
        if found[1]:
            condition &= Q(**{f"{field}__gte": found[1]})
        if found[3]:
            condition &= Q(**{f"{field}__lte": found[3]})
        return condition & ~Q(**{field: ""})

    return match


def patient_ids(value: str) -> Q:
    """All studies of the person behind an identifier, under whatever id a site made them: these are the priors.

    ``value^^^issuer`` (as this service writes it where a bare value names several people) narrows to one issuer.
    """
    bare, _, issuer = value.partition("^^^")
    wanted = PatientIdentifier.objects.filter(value=bare)
    if issuer:
        wanted = wanted.filter(issuer=issuer)
    return Q(patient__in=wanted.values("patient"))


def names(value: str) -> Q:
    """A name by parts: each word of it somewhere in the name, in any spelling; with wildcards, by pattern."""
    if "*" in value or "?" in value:
        pattern = fold_pattern(value.replace("^", " ").strip("*"))
        regex = "".join(".*" if char == "*" else "." if char == "?" else re.escape(char) for char in pattern)
        return Q(patient__name_fold__regex=regex)
    condition = Q()
    for word in fold(value.replace("^", " ")).split():
        condition &= Q(patient__name_fold__contains=word) | Q(patient__name_latin__contains=latin_key(word))
    return condition


def times(value: str) -> Q:
    """A time or a range of times, as precise as it was written: ``0930`` matches every second of that minute."""
    since, dash, until = value.replace(":", "").partition("-")
    if not (since or until) or not all(re.fullmatch(r"\d{2,6}(\.\d{1,6})?", one) for one in (since, until) if one):
        raise PermanentError("bad-query", f"{value!r} is not a time or a range of times")
    if not dash:
        return Q(study_time__startswith=since)
    condition = ~Q(study_time="")
    if since:
        condition &= Q(study_time__gte=since)
    if until:
        condition &= Q(study_time__lte=until + "~")  # what begins like the end of the range belongs to it
    return condition


def birth_dates(value: str) -> Q:
    """A birth date or a range of them."""
    found = _RANGE.match(value)
    if not found or not (found[1] or found[3]):
        raise PermanentError("bad-query", f"{value!r} is not a date or a range of dates")
    try:
        since, until = (datetime.strptime(one, "%Y%m%d").date() if one else None for one in (found[1], found[3]))
    except ValueError as error:
        raise PermanentError("bad-query", f"{value!r} is not a date or a range of dates") from error
    if not found[2]:
        return Q(patient__birth_date=since)
    condition = Q(patient__birth_date__isnull=False)
    if since:
        condition &= Q(patient__birth_date__gte=since)
    if until:
        condition &= Q(patient__birth_date__lte=until)
    return condition


def physicians(value: str) -> Q:
    """A referring physician: every word somewhere in the name, whatever the case; wildcards by pattern."""
    if "*" in value or "?" in value:
        return wildcard("referring_physician_name")(value)
    condition = Q()
    for word in value.replace("^", " ").split():
        condition &= Q(referring_physician_name__icontains=word)
    return condition


def holders(value: str) -> Q:
    """Studies of which the nodes with these AE titles hold something."""
    held = SeriesHolder.objects.filter(
        series__study=OuterRef("pk"), count__gt=0, node__ae_title__in=re.split(r"[,\\]", value)
    )
    return Q(Exists(held))


STUDY_KEYS: dict[str, Callable[[str], Q]] = {
    "00080020": dates("study_date"),
    "00080030": times,
    "00080054": holders,
    "00080080": wildcard("institution_name"),
    "00080090": physicians,
    "00100030": birth_dates,
    "00100040": wildcard("patient__sex"),
    "00080050": wildcard("accession_number"),
    "00080061": lambda value: Q(modalities__overlap=re.split(r"[,\\]", value)),
    "00081030": wildcard("study_description"),
    "00100010": names,
    "00100020": patient_ids,
    "00100021": wildcard("issuer_of_patient_id"),
    "0020000D": uids("study_instance_uid"),
    "00200010": wildcard("study_id"),
}
SERIES_KEYS: dict[str, Callable[[str], Q]] = {
    "00080021": dates("series_date"),
    "00180015": wildcard("body_part_examined"),
    "00400244": dates("series_date"),
    "00080060": lambda value: Q(modality__in=re.split(r"[,\\]", value)),
    "0008103E": wildcard("series_description"),
    "0020000E": uids("series_instance_uid"),
    "00200011": lambda value: Q(series_number=int(value)) if value.isdecimal() else Q(pk=None),
}


def conditions(parameters: QueryDict, keys: dict[str, Callable[[str], Q]]) -> Q:
    """All matching keys of a query as one condition; empty ones match everything, unknown ones are ignored."""
    condition = Q()
    for name, values in parameters.lists():
        tag = KEYWORDS.get(name, name.upper())
        for value in values:
            if tag in keys and value.strip("*"):
                condition &= keys[tag](value)
    return condition


def window(parameters: QueryDict) -> tuple[int, int]:
    """``offset`` and ``limit``; at most 1000 rows an answer."""
    offset, limit = parameters.get("offset", "0"), parameters.get("limit", str(_MOST))
    if not offset.isdecimal() or not limit.isdecimal():
        raise PermanentError("bad-query", "offset and limit are whole numbers")
    return int(offset), min(int(limit), _MOST)


def root_url() -> str:
    """The absolute URL of the region's DICOMweb."""
    return f"{settings.CONFIG.url.rstrip('/')}/dicom-web"


def foreign_count() -> Subquery:
    """How many instances a PACS outside the region lists of a study."""
    listed = ForeignHolding.objects.filter(study=OuterRef("pk"), gone_at=None).order_by("pk")
    return Subquery(listed.values("instance_count")[:1])


def found_studies(user: User, parameters: QueryDict) -> tuple[list[dict[str, Any]], bool]:
    """The visible studies of all sites that match, newest first, each with its holders; and whether there are more."""
    offset, limit = window(parameters)
    same_value = PatientIdentifier.objects.filter(value=OuterRef("dicom_patient_id")).exclude(
        patient=OuterRef("patient")
    )
    rows = (
        queries.visible_to(user)
        .filter(conditions(parameters, STUDY_KEYS))
        .select_related("patient")
        .annotate(
            series_count=Count("series", distinct=True), shares_id=Exists(same_value), foreign_count=foreign_count()
        )
        .order_by("-study_date", "-study_time", "-pk")[offset : offset + limit + 1]
    )
    root = root_url()
    answer = []
    found = list(rows)
    held = holders_of(found[:limit])
    for study in found[:limit]:
        patient_id = study.dicom_patient_id
        if study.shares_id:
            patient_id = f"{patient_id}^^^{study.issuer_of_patient_id}"
        answer.append(
            of_study(study, patient_id, study.series_count, root)
            | of_holders(held[study.pk], listed_elsewhere=study.foreign_count is not None)
        )
    return answer, len(found) > limit


def found_series(user: User, parameters: QueryDict, study: str = "") -> tuple[list[dict[str, Any]], bool]:
    """The series, of one study or of all visible ones, that match, with their holders; and whether there are more."""
    offset, limit = window(parameters)
    visible: QuerySet[Study] = queries.visible_to(user)
    if study:
        visible = visible.filter(study_instance_uid=study)
        if not visible.exists():
            raise PermanentError("not-found", "There is no such study, or it is not open to you.")
    visible = visible.filter(conditions(parameters, STUDY_KEYS))
    rows = (
        Series.objects.filter(study__in=visible)
        .filter(conditions(parameters, SERIES_KEYS))
        .select_related("study")
        .order_by("study_id", "series_number", "pk")[offset : offset + limit + 1]
    )
    root = root_url()
    found = list(rows)
    held = holders_of_series(found[:limit])
    answer = [
        of_series(series, series.study.study_instance_uid, root) | of_holders(held[series.pk])
        for series in found[:limit]
    ]
    return answer, len(found) > limit


def dicom_json(rows: list[dict[str, Any]], *, has_more: bool) -> JsonResponse:
    """Rows as ``application/dicom+json``; never cached, as rights and images change.

    Source: PS3.18 8.3.4.4 (the warning of a truncated answer)
    """
    response = JsonResponse(rows, safe=False, content_type="application/dicom+json")
    response["Cache-Control"] = "no-store"
    if has_more:
        response["Warning"] = f'299 {root_url()}: "There are additional results that can be requested"'
    return response


@for_people
async def studies(request: HttpRequest, user: User) -> HttpResponseBase:
    """``GET /dicom-web/studies``."""
    rows, has_more = await sync_to_async(found_studies)(user, request.GET)
    return dicom_json(rows, has_more=has_more)


@for_people
async def series(request: HttpRequest, user: User, study: str = "") -> HttpResponseBase:
    """``GET /dicom-web/series`` and ``GET /dicom-web/studies/{study}/series``."""
    rows, has_more = await sync_to_async(found_series)(user, request.GET, study)
    return dicom_json(rows, has_more=has_more)

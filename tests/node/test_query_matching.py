"""What SQL finds is what the matching of the standard finds, for any keys and values, by each way of reading."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.db import transaction
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pacs_node.study_index import queries
from pacs_node.study_index.attributes import index_rows
from pacs_node.study_index.conditions import zone_offset
from pacs_node.study_index.keys import BY_KEYWORD, Level, tag_of_keyword
from pacs_node.study_index.models import Instance, Series, Study
from pacs_node.study_index.searches import Tree, search
from standards.errors import PermanentError
from standards.matching import date_range, matcher_for, time_range
from standards.part10 import read_header
from standards.periods import Period, offset_minutes
from standards.uids import new_uid
from tests.node.dicomweb_node import ct_slice

pytestmark = pytest.mark.django_db

LETTERS = "аАеЕёЁйщЩ зaAhsS^=-' []%_.山"
NAME = st.text(LETTERS, max_size=12)
NAME_KEY = st.text(LETTERS + "**??", max_size=8)
TEXT = st.text("aAб1 [%_^-]", max_size=6)
TEXT_KEY = st.text("aAб1 [%_^-]**??\\", max_size=6)
DATE = st.sampled_from(["20260101", "20260102", "20260103", "2026.01.02", "20251231", "", "2026", "soon"])
TIME = st.sampled_from(
    ["10", "1015", "101530", "101530.5", "101530.500000", "10:15:30", "00", "235959", "2330", "", "9"]
)
DATE_KEY = st.sampled_from(["20260102", "20260101-20260102", "20260102-", "-20260102", "", "*", "2026.01.02"])
TIME_KEY = st.sampled_from(
    ["10", "1015", "1015-1016", "101530.5", "-1015", "1015-", "2330-", "", "00-0015", "0000-2359"]
)
ZONE = st.sampled_from(["", "+0300", "-0500", "+0530", "+9900", "Z"])
ZONE_KEY = st.sampled_from(["", "+0300", "-0800", "+0000", "+1245"])
WAYS: dict[str, dict[str, object]] = {
    "by few rows": {},
    "in the order of an index": {"FEW": -1, "_first": lambda *_: None},
}
MANY_EXAMPLES = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@contextmanager
def index(*values: dict[str, str], level: Level = "STUDY") -> Iterator[list[Study]]:
    """Studies with these attributes, each with one series and instance, for a while."""
    with transaction.atomic():
        for one in values:
            header = read_header(io.BytesIO(ct_slice(new_uid(), new_uid(), **one)))  # type: ignore[arg-type]
            rows = index_rows(header)
            study = Study.objects.create(**rows.study)
            series = Series.objects.create(study=study, instances_count=1, **rows.series)
            Instance.objects.create(series=series, path=new_uid(), dataset_sha256=new_uid(), **rows.instance)
        yield list(Study.objects.order_by("pk"))
        transaction.set_rollback(True)


def found(monkeypatch: pytest.MonkeyPatch, way: str, tree: dict[str, object], **options: bool) -> set[int]:
    """The keys of the studies that a search gives; reading all and reading a page must agree."""
    with monkeypatch.context() as patch:
        for name, value in WAYS[way].items():
            patch.setattr(queries, name, value)
        asked = search("STUDY", tree, **options)  # type: ignore[arg-type]
        rows = [row.key for row in queries.page(asked, [], 0, 1000)]
        assert rows == [row.key for row in queries.every(asked, [])]
        assert len(rows) == len(set(rows))
        return set(rows)


def tag(keyword: str) -> str:
    return tag_of_keyword(keyword)


@pytest.mark.parametrize("way", WAYS)
@MANY_EXAMPLES
@given(st.lists(NAME, min_size=1, max_size=5), NAME_KEY, st.booleans())
@example(["Щёгол^А", "щегол", "Щегола", "A=Щёгол^А", "Shchegol"], "щёгол", False)
@example(["Щёгол^А", "щегол", "Щегола"], "shchegol^*", False)
@example(["а", "", "山=а"], "?", False)
def test_names(monkeypatch: pytest.MonkeyPatch, way: str, names: list[str], key: str, fuzzy: bool) -> None:
    with index(*({"name": name} for name in names)) as studies:
        matcher = matcher_for("PN", key, fuzzy=fuzzy)
        expected = {study.pk for study in studies if matcher.matches(study.patient_name)}
        assert found(monkeypatch, way, {tag("PatientName"): key}, fuzzy=fuzzy) == expected


@pytest.mark.parametrize("way", WAYS)
@MANY_EXAMPLES
@given(st.lists(TEXT, min_size=1, max_size=5), TEXT_KEY)
@example(["a", "A", "ab"], "a*")
@example(["[a]", "a", ""], "[a]*")
@example(["a", ""], "**\\")
@example(["a", ""], "*\\b")
def test_texts(monkeypatch: pytest.MonkeyPatch, way: str, values: list[str], key: str) -> None:
    with index(*({"patient_id": value, "AccessionNumber": value} for value in values)) as studies:
        for keyword, column in (("PatientID", "patient_id"), ("AccessionNumber", "accession_number")):
            matcher = matcher_for(BY_KEYWORD[keyword].vr, key)
            expected = {study.pk for study in studies if matcher.matches(getattr(study, column))}
            assert found(monkeypatch, way, {tag(keyword): key}) == expected


@pytest.mark.parametrize("way", WAYS)
@MANY_EXAMPLES
@given(st.lists(st.tuples(DATE, TIME, ZONE), min_size=1, max_size=5), DATE_KEY, TIME_KEY, ZONE_KEY, st.booleans())
@example([("20260101", "2330", ""), ("20260102", "0015", "")], "20260102", "", "+1245", False)
@example([("20260101", "2330", ""), ("20260102", "0015", "")], "20260101-20260102", "2330-0015", "", True)
def test_dates_and_times(
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    moments: list[tuple[str, str, str]],
    date_key: str,
    time_key: str,
    zone_key: str,
    combined: bool,
) -> None:
    values = [{"StudyDate": date, "StudyTime": time, "TimezoneOffsetFromUTC": zone} for date, time, zone in moments]
    try:
        dates, times = (
            ((None, None) if key in ("", "*") else read(key))
            for key, read in ((date_key, date_range), (time_key, time_range))
        )
    except PermanentError:
        return
    zone = offset_minutes(zone_key) if zone_key else None
    period = Period(dates, times, combined, zone)
    with index(*values) as studies:
        default = queries.zone_of_the_node()
        expected = {
            study.pk
            for study in studies
            if period.matches(study.study_date, study.study_time, zone_offset(study.timezone_offset_from_utc, default))
        }
        tree: dict[str, object] = {tag("StudyDate"): date_key, tag("StudyTime"): time_key}
        if zone_key:
            tree[tag("TimezoneOffsetFromUTC")] = zone_key
        assert found(monkeypatch, way, tree, combined=combined) == expected


@pytest.mark.parametrize("way", WAYS)
def test_modalities_and_kept_attributes(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    values = [
        {"Modality": modality, "PatientAge": age} for modality, age in (("CT", "045Y"), ("MR", "045Y"), ("CT", ""))
    ]
    with index(*values) as studies:
        first, second, third = (study.pk for study in studies)
        assert found(monkeypatch, way, {tag("ModalitiesInStudy"): "CT"}) == {first, third}
        assert found(monkeypatch, way, {tag("ModalitiesInStudy"): "M?\\PT"}) == {second}
        assert found(monkeypatch, way, {tag("PatientAge"): "045Y"}) == {first, second}
        assert found(monkeypatch, way, {tag("PatientAge"): "045Y", tag("ModalitiesInStudy"): "CT"}) == {first}
        assert found(monkeypatch, way, {tag("SOPClassesInStudy"): "1.2.840.10008.5.1.4.1.1.2"}) == {
            first,
            second,
            third,
        }
        assert found(monkeypatch, way, {tag("SOPClassesInStudy"): "1.2.3"}) == set()


def test_an_empty_value_is_asked_for_by_two_quotation_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    with index({"AccessionNumber": "A"}, {"AccessionNumber": ""}) as studies:
        tree: dict[str, object] = {tag("AccessionNumber"): '""'}
        assert found(monkeypatch, "by few rows", tree, empty=True) == {studies[1].pk}
        assert found(monkeypatch, "by few rows", tree) == set()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("level", ["PATIENT", "STUDY", "SERIES", "IMAGE"])
def test_everything_is_read_once_however_short_the_reads(
    monkeypatch: pytest.MonkeyPatch, way: str, level: Level
) -> None:
    monkeypatch.setattr(queries, "_PAGE", 2)
    for name, value in WAYS[way].items():
        monkeypatch.setattr(queries, name, value)
    values = [
        {"patient_id": patient, "StudyDate": date, "StudyTime": time}
        for patient in ("A", "B", "C")
        for date, time in (("20260101", "10"), ("20260101", "10"), ("20260101", ""), ("", ""), ("20260102", "1015"))
    ]
    with index(*values):
        trees: list[Tree] = [{}, {tag("PatientName"): "щег*"}, {tag("PatientAge"): ""}]
        for tree in trees:
            rows = list(queries.every(search(level, tree), [tag("PatientID"), tag("StudyDate")]))
            assert len({row.key for row in rows}) == len(rows) == len(values)
            if level == "PATIENT":
                assert [row.values[0] for row in rows] == sorted(row.values[0] for row in rows)
            if level == "STUDY":
                assert [row.values[1] for row in rows] == sorted((row.values[1] for row in rows), reverse=True)
            offsets = range(0, len(values), 4)
            pages = [row.key for offset in offsets for row in queries.page(search(level, tree), [], offset, 4)]
            assert pages == [row.key for row in rows]


def test_what_is_not_held_any_more_leaves_its_place_on_the_page_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with index(*({"StudyDate": f"202601{day:02}"} for day in range(1, 9))) as studies:
        for study in studies[3:7]:
            study.series.update(instances_count=0)
        expected = [studies[place].pk for place in (7, 2, 1, 0)]
        asked = search("STUDY", {tag("PatientName"): "щег*"})
        assert [row.key for row in queries.page(asked, [], 0, 3)] == expected[:3]
        assert [row.key for row in queries.page(asked, [], 1, 3)] == expected[1:]
        assert [row.key for row in queries.every(asked, [])] == expected


def test_a_key_of_thousands_of_values_is_answered_and_one_of_too_many_patterns_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with index({"PatientID": "Q-7"}, {"PatientID": "R-7"}) as studies:
        listed = "\\".join(f"Q-{number}" for number in range(3000))
        assert found(monkeypatch, "by few rows", {"00100020": listed}) == {studies[0].pk}
        names = "\\".join(f"Ivanov{number}^*^Petr*" for number in range(200))
        assert found(monkeypatch, "by few rows", {"00100010": names}) == set()
    with pytest.raises(PermanentError, match="too-many-elements"):
        search("STUDY", {"00100020": "\\".join(f"Q-{number}*" for number in range(201))})

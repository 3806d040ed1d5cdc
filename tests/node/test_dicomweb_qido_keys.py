"""Searches by keys of every kind, what they return, and how."""

import io
from typing import Any
from xml.etree import ElementTree

import pytest
from django.test import Client
from pydicom.dataset import Dataset

from standards.multipart import parse_related
from standards.uids import new_uid
from tests.node.dicomweb_node import Centre, ct_slice, join, take_in

pytestmark = pytest.mark.django_db

ALL = "*"
NATIVE = "{http://dicom.nema.org/PS3.19/models/NativeDICOM}"


@pytest.fixture
def centre() -> Centre:
    return join()


@pytest.fixture
def find(client: Client, centre: Centre) -> Any:
    """Ask ``/dicom-web/{path}`` and give the list."""

    def ask(path: str, **query: Any) -> Any:
        response = client.get(f"/dicom-web/{path}", query, headers=centre.bearer(ALL))
        assert response.status_code == 200, response.content
        return response.json()

    return ask


def study(**values: object) -> str:
    uid = new_uid()
    take_in(ct_slice(uid, new_uid(), **values))  # type: ignore[arg-type]
    return uid


def with_step(step: str, procedure: str = "P1") -> list[Dataset]:
    item = Dataset()
    item.ScheduledProcedureStepID, item.RequestedProcedureID = step, procedure
    return [item]


def uids(answer: list[dict[str, Any]]) -> set[str]:
    return {row["0020000D"]["Value"][0] for row in answer}


@pytest.mark.parametrize(
    "value", [["CT", "MR"], "CT,MR", "CT\\MR", "C?,M*"], ids=["repeated", "commas", "backslashes", "wildcards"]
)
def test_several_values_of_a_key_find_each(find: Any, value: Any) -> None:
    first, second = study(), study(Modality="MR", patient_id="B")
    study(Modality="US", patient_id="C")
    assert uids(find("studies", ModalitiesInStudy=value)) == {first, second}
    assert uids(find("series", Modality=value)) == {first, second}


def test_several_names_and_ids_are_parted_by_backslashes_alone(find: Any) -> None:
    first, second = study(name="Щукин^Лев"), study(name="Сом, младший^Ян", patient_id="B")
    study(name="Карпов^Ян", patient_id="C")
    assert uids(find("studies", PatientName="щукин*\\сом, мл*")) == {first, second}
    assert uids(find("studies", PatientID="B\\A-0001")) == {first, second}


def test_keys_inside_a_sequence_are_matched_in_one_item(find: Any) -> None:
    uid = new_uid()
    take_in(ct_slice(uid, new_uid(), RequestAttributesSequence=[*with_step("S1", "P1"), *with_step("S2", "P2")]))
    study(patient_id="B")
    path = "RequestAttributesSequence"
    assert uids(find("series", **{f"{path}.ScheduledProcedureStepID": "S1"})) == {uid}
    assert uids(find("series", **{"00400275.00400009": "S?", f"{path}.RequestedProcedureID": "P2"})) == {uid}
    both = {f"{path}.ScheduledProcedureStepID": "S1", f"{path}.RequestedProcedureID": "P2"}
    assert find(f"studies/{uid}/series", **both) == []


def test_an_included_attribute_of_a_sequence_is_returned_alone(find: Any) -> None:
    study(RequestAttributesSequence=with_step("S1"))
    (row,) = find("series", includefield="RequestAttributesSequence.ScheduledProcedureStepID")
    assert row["00400275"]["Value"] == [{"00400009": {"vr": "SH", "Value": ["S1"]}}]
    (row,) = find("series", includefield="00400275")
    assert row["00400275"]["Value"][0].keys() == {"00400009", "00401001"}
    (row,) = find("series", includefield=["00400275.00400009", "RequestAttributesSequence"])
    assert row["00400275"]["Value"][0].keys() == {"00400009", "00401001"}
    (row,) = find("series", includefield="PatientName")
    assert row["00400275"]["Value"][0].keys() == {"00400009", "00401001"}  # the standard has it in every answer


def test_levels_above_are_given_where_the_address_does_not_name_them(find: Any) -> None:
    uid = study(TimezoneOffsetFromUTC="+0300")
    (row,) = find("instances")
    assert {"00100010", "00080060", "00280010", "0020000E"} <= row.keys()
    (row,) = find(f"studies/{uid}/instances")
    assert "00100010" not in row
    assert {"0020000D", "0020000E", "00280010"} <= row.keys()
    (row,) = find(
        f"studies/{uid}/instances", includefield=["PatientName", "ModalitiesInStudy", "NumberOfStudyRelatedSeries"]
    )
    assert row["00100010"]["Value"]
    assert (row["00080061"]["Value"], row["00201206"]["Value"]) == (["CT"], [1])
    (row,) = find(f"studies/{uid}/series", includefield="all")
    assert {"00100010", "00080201", "00201209", "00080062"} <= row.keys()


def test_a_document_has_no_rows_and_columns(find: Any) -> None:
    study(Rows=None, Columns=None)
    (row,) = find("instances", includefield="all")
    assert not {"00280010", "00280011", "00280008"} & row.keys()


def test_a_date_and_a_time_are_one_moment(find: Any) -> None:
    late, early = (
        study(StudyDate="20260110", StudyTime="2330"),
        study(StudyDate="20260111", StudyTime="0015", patient_id="B"),
    )
    assert uids(find("studies", StudyDate="20260110-20260111", StudyTime="2300-0100")) == {late, early}
    assert uids(find("studies", StudyDate="20260110-20260111", StudyTime="2345-0100")) == {early}


def test_keys_and_answers_are_in_the_time_zone_of_the_asker(find: Any) -> None:
    uid = study(StudyDate="20260111", StudyTime="0015", TimezoneOffsetFromUTC="+0300")
    assert find("studies", StudyDate="20260110") == []
    (row,) = find("studies", StudyDate="20260110", TimezoneOffsetFromUTC="+0000")
    assert uids([row]) == {uid}
    assert (row["00080020"]["Value"], row["00080030"]["Value"]) == (["20260110"], ["211500"])
    assert row["00080201"]["Value"] == ["+0000"]


def test_empty_values_are_asked_for_by_two_quotation_marks(find: Any) -> None:
    uid = study(AccessionNumber="")
    study(patient_id="B")
    assert uids(find("studies", AccessionNumber='""', emptyvaluematching="true")) == {uid}
    assert find("studies", AccessionNumber='""') == []


def test_answers_come_in_xml_to_who_prefers_it(client: Client, centre: Centre) -> None:
    uid = study()
    headers = centre.bearer(ALL) | {"Accept": 'multipart/related; type="application/dicom+xml"'}
    response = client.get("/dicom-web/studies", headers=headers)
    assert response.status_code == 200
    (part,) = [part.read(1 << 20) for part in parse_related(_stream(response.content), response["Content-Type"])]
    model = ElementTree.fromstring(part)
    (value,) = model.findall(f".//{NATIVE}DicomAttribute[@keyword='StudyInstanceUID']/{NATIVE}Value")
    assert value.text == uid
    response = client.get("/dicom-web/studies", {"PatientID": "nobody"}, headers=headers)
    assert (response.status_code, response.content) == (204, b"")
    response = client.get("/dicom-web/studies", headers=centre.bearer(ALL) | {"Accept": "text/html"})
    assert response.status_code == 406
    response = client.get("/dicom-web/studies", headers=centre.bearer(ALL) | {"Accept": "application/json"})
    assert (response.status_code, response["Content-Type"]) == (200, "application/json")


def _stream(content: bytes) -> Any:
    return io.BytesIO(content)


@pytest.mark.parametrize(
    ("path", "query", "code"),
    [
        ("studies", {"SeriesNumber": "one"}, ""),
        ("series", {"SeriesNumber": "one"}, "invalid-number"),
        ("studies", {"TimezoneOffsetFromUTC": "noon"}, "invalid-offset"),
        ("studies", {"PatientID": "A", "00100020": "B"}, "invalid-parameter"),
        ("studies", {"includefield": "NoSuchKeyword"}, "unknown-attribute"),
        ("studies", {"emptyvaluematching": "maybe"}, "invalid-parameter"),
        ("studies", {"StudyDate": "20260101-20260131-"}, "invalid-range"),
        ("studies/1.2.3/series", {"StudyInstanceUID": "1.2.4"}, "invalid-parameter"),
        ("series", {"RequestAttributesSequence.Nonsense": "1"}, "unknown-attribute"),
    ],
)
def test_what_cannot_be_understood_is_a_named_problem(
    client: Client, centre: Centre, path: str, query: dict[str, str], code: str
) -> None:
    response = client.get(f"/dicom-web/{path}", query, headers=centre.bearer(ALL))
    if code:
        assert (response.status_code, response.json()["code"]) == (400, code)
    else:
        assert response.status_code == 200
        assert "SeriesNumber" in response["Warning"]


@pytest.mark.parametrize(
    "value", ["\0", "a\0b", "*" * 300, "[", "'", "\\", "%_", "\U0010ffff*", "\ud7ff*", "*?*?*?" * 40]
)
def test_no_value_breaks_a_search(find: Any, value: str) -> None:
    study()
    for key in ("PatientID", "PatientName", "ReferringPhysicianName", "PatientAge", "ModalitiesInStudy"):
        find("studies", **{key: value})


def test_referring_physicians_are_found_as_patients_are(find: Any) -> None:
    uid = study(ReferringPhysicianName="Щукин^Пётр")
    for key in ("щукин*", "ЩУКИН^ПЕТР", "Shchukin*", "Щукин"):
        assert uids(find("studies", ReferringPhysicianName=key)) == {uid}
    assert find("studies", ReferringPhysicianName="Щука*") == []


def test_a_token_for_one_study_finds_that_one_alone(client: Client, centre: Centre) -> None:
    mine, other = study(), study(patient_id="B")
    for query in ({}, {"PatientName": "щег*"}, {"StudyInstanceUID": f"{mine},{other}"}, {"ModalitiesInStudy": "CT"}):
        for path in ("studies", "series", "instances"):
            response = client.get(f"/dicom-web/{path}", query, headers=centre.bearer(mine))
            assert uids(response.json()) == {mine}

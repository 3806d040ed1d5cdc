"""Searching for studies, series and instances."""

from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from pydicom.dataset import Dataset

from pacs_node.study_index.actions import release
from standards.uids import new_uid
from tests.node.dicomweb_node import Centre, ct_slice, join, take_in

pytestmark = pytest.mark.django_db

ALL = "*"


@pytest.fixture
def centre() -> Centre:
    return join()


@pytest.fixture
def find(client: Client, centre: Centre) -> Any:
    """Ask ``/dicom-web/{path}`` with a token for all studies and give the list."""

    def ask(path: str, **query: str | int) -> Any:
        response = client.get(f"/dicom-web/{path}", query, headers=centre.bearer(ALL))
        assert response.status_code == 200, response.content
        assert response["Content-Type"] == "application/dicom+json"
        return response.json()

    return ask


def study(**values: object) -> str:
    uid = new_uid()
    take_in(ct_slice(uid, new_uid(), **values))  # type: ignore[arg-type]
    return uid


def uids(answer: list[dict[str, Any]], tag: str = "0020000D") -> set[str]:
    return {row[tag]["Value"][0] for row in answer}


def test_nothing_found_is_an_empty_list(find: Any) -> None:
    assert find("studies", PatientID="nobody") == []


def test_a_study_is_returned_with_what_the_standard_requires(find: Any) -> None:
    uid = study()
    (row,) = find("studies", StudyInstanceUID=uid)
    assert row["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "Щёголев^Пётр^Ёжикович"}]}
    assert row["00080061"] == {"vr": "CS", "Value": ["CT"]}
    assert row["00201206"]["Value"] == [1]
    assert row["00201208"]["Value"] == [1]
    assert row["00081190"]["Value"][0].endswith(f"/dicom-web/studies/{uid}")
    assert row["00080005"]["Value"] == ["ISO_IR 192"]
    assert row["00080090"] == {"vr": "PN"}


@pytest.mark.parametrize(
    "pattern",
    ["Щёголев^Пётр^Ёжикович", "щеголев*", "ЩЁГОЛЕВ^П*", "*ёж*", "щего?ев*", "Щёголев", "Shchegolev*", "*^*", "*", ""],
)
def test_names_match_whatever_the_case_and_the_letter_yo(find: Any, pattern: str) -> None:
    uid = study()
    assert uids(find("studies", PatientName=pattern)) == {uid}


@pytest.mark.parametrize("pattern", ["Иванов*", "Щёголев^Иван*", "щего??ев*", "голев", "Ivanov*"])
def test_other_names_do_not_match(find: Any, pattern: str) -> None:
    study()
    assert find("studies", PatientName=pattern) == []


def test_fuzzy_matching_finds_another_spelling(find: Any) -> None:
    uid = study()
    assert find("studies", PatientName="Petr Schegolev") == []
    assert uids(find("studies", PatientName="Petr Schegolev", fuzzymatching="true")) == {uid}


@pytest.mark.parametrize(
    ("key", "value", "fits"),
    [
        ("StudyDate", "20260110", True),
        ("StudyDate", "20260101-20260131", True),
        ("StudyDate", "-20260110", True),
        ("StudyDate", "20260110-", True),
        ("StudyDate", "20260111-", False),
        ("StudyTime", "10", True),
        ("StudyTime", "1000-1015", True),
        ("StudyTime", "101500-103000", True),
        ("StudyTime", "1016-", False),
        ("PatientID", "A-*", True),
        ("PatientID", "a-*", False),
        ("PatientID", "A-000?", True),
        ("PatientID", "A_0001", False),
        ("PatientID", "[A]-0001", False),
        ("ModalitiesInStudy", "CT", True),
        ("ModalitiesInStudy", "MR", False),
        ("00100030", "19700203", True),
        ("StudyDescription", "Грудная*", True),
        ("AccessionNumber", "A1", True),
        ("AccessionNumber", "%", False),
    ],
)
def test_keys_match_as_the_standard_says(find: Any, key: str, value: str, fits: bool) -> None:
    uid = study()
    assert uids(find("studies", **{key: value})) == ({uid} if fits else set())


def test_a_list_of_uids_finds_each_of_them(find: Any) -> None:
    first, second = study(), study(patient_id="B")
    study(patient_id="C")
    assert uids(find("studies", StudyInstanceUID=f"{first},{second}")) == {first, second}
    assert uids(find("studies", StudyInstanceUID=f"{first}\\{second}")) == {first, second}


def test_series_and_instances_are_returned_with_what_the_standard_requires(find: Any) -> None:
    request = Dataset()
    request.ScheduledProcedureStepID, request.RequestedProcedureID = "S1", "P1"
    started = {"PerformedProcedureStepStartDate": "20260110", "PerformedProcedureStepStartTime": "1010"}
    uid = study(RequestAttributesSequence=[request], TimezoneOffsetFromUTC="+0300", **started)
    (row,) = find(f"studies/{uid}/series")
    assert row["00400275"]["Value"][0]["00400009"]["Value"] == ["S1"]
    assert (row["00400244"]["Value"], row["00400245"]["Value"]) == (["20260110"], ["1010"])
    (row,) = find(f"studies/{uid}/instances")
    assert row["00280100"]["Value"] == [16]
    assert "00400244" not in row
    (row,) = find("instances")
    assert (row["00280100"]["Value"], row["00400244"]["Value"], row["00080201"]["Value"]) == (
        [16],
        ["20260110"],
        ["+0300"],
    )


def test_a_zone_that_is_not_known_is_told_to_who_asks_for_it(find: Any) -> None:
    study()
    assert "00080201" not in find("studies")[0]
    assert find("studies", includefield="TimezoneOffsetFromUTC")[0]["00080201"] == {"vr": "SH"}


def test_limits_and_offsets_of_any_size_are_numbers(client: Client, centre: Centre, find: Any) -> None:
    uid = study()
    assert uids(find("studies", limit=10**30)) == {uid}
    assert find("studies", offset=10**30) == []
    assert find("studies", limit=0) == []
    for wrong in ("-1", "1.5", "x", "0x10"):
        response = client.get("/dicom-web/studies", {"limit": wrong}, headers=centre.bearer(ALL))
        assert (response.status_code, response.json()["code"]) == (400, "invalid-parameter")


@pytest.mark.parametrize("group", ["0010", "0010xxxx"])
def test_a_whole_group_can_be_included(find: Any, group: str) -> None:
    study(PatientAge="056Y", ProtocolName="Head")
    (row,) = find("studies", includefield=group)
    assert row["00101010"]["Value"] == ["056Y"]
    assert "00181030" not in find("series", includefield=group)[0]
    assert find("series", includefield=f"{group},0018")[0]["00181030"]["Value"] == ["Head"]


def test_a_link_says_by_a_parameter_what_it_accepts(client: Client, centre: Centre) -> None:
    study()
    for query in ("accept=application/dicom%2Bjson", "accept=application/dicom+json&charset=utf-8"):
        response = client.get(f"/dicom-web/studies?{query}", headers={"Accept": "text/html", **centre.bearer(ALL)})
        assert (response.status_code, response["Content-Type"]) == (200, "application/dicom+json")
    wanted = 'multipart/related; type="application/dicom+xml"'
    response = client.get("/dicom-web/studies", {"accept": wanted}, headers=centre.bearer(ALL))
    assert response["Content-Type"].startswith(wanted)
    response = client.get("/dicom-web/studies", {"accept": wanted, "PatientID": "nobody"}, headers=centre.bearer(ALL))
    assert (response.status_code, response.content, response.headers.get("Content-Type")) == (204, b"", None)
    response = client.get("/dicom-web/studies", {"accept": "image/png"}, headers=centre.bearer(ALL))
    assert response.status_code == 406


def test_a_search_can_be_asked_for_its_head_alone(client: Client, centre: Centre) -> None:
    study()
    response = client.head("/dicom-web/studies", headers=centre.bearer(ALL))
    assert (response.status_code, response.content) == (200, b"")
    assert response["Content-Type"] == "application/dicom+json"


@pytest.mark.parametrize(("path", "also"), [("studies", "POST"), ("studies/1.2", "POST, DELETE")])
def test_another_method_is_told_which_there_are(client: Client, centre: Centre, path: str, also: str) -> None:
    response = client.put(f"/dicom-web/{path}", headers=centre.bearer(ALL))
    assert (response.status_code, response["Allow"]) == (405, f"GET, HEAD, {also}")


def test_limit_and_offset_page_through_without_loss_and_say_that_there_is_more(
    client: Client, centre: Centre, find: Any
) -> None:
    everything = {study(patient_id=f"P{number}") for number in range(5)}
    pages = [uids(find("studies", limit=2, offset=offset)) for offset in (0, 2, 4)]
    assert [len(page) for page in pages] == [2, 2, 1]
    assert set().union(*pages) == everything
    response = client.get("/dicom-web/studies", {"limit": 2}, headers=centre.bearer(ALL))
    assert "additional results" in response["Warning"]


def test_included_fields_come_from_columns_and_from_what_is_kept_beside(find: Any) -> None:
    study(InstitutionName="Regis test clinic", PatientAge="056Y")
    (row,) = find("studies")
    assert "00080080" not in row
    (row,) = find("studies", includefield="00080080,PatientAge")
    assert row["00080080"]["Value"] == ["Regis test clinic"]
    assert row["00101010"]["Value"] == ["056Y"]
    (row,) = find("studies", includefield="all")
    assert row["00101010"]["Value"] == ["056Y"]


def test_every_level_answers_below_a_study_and_by_itself(find: Any) -> None:
    uid, series = new_uid(), new_uid()
    for number in range(3):
        take_in(ct_slice(uid, series, number=number))
    other = study(patient_id="B")
    assert len(find(f"studies/{uid}/instances")) == 3
    assert len(find(f"studies/{uid}/series/{series}/instances")) == 3
    assert uids(find(f"studies/{uid}/series"), "0020000E") == {series}
    assert find(f"studies/{uid}/series")[0]["00201209"]["Value"] == [3]
    assert len(find("instances")) == 4
    assert uids(find("series", Modality="CT")) == {uid, other}
    assert len(find("instances", PatientID="B")) == 1
    assert [row["00200013"]["Value"][0] for row in find(f"studies/{uid}/instances")] == [0, 1, 2]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"StudyDate": "yesterday"}, "invalid-range"),
        ({"StudyInstanceUID": "1.2.x"}, "invalid-uid"),
        ({"limit": "many"}, "invalid-parameter"),
        ({"offset": "-1"}, "invalid-parameter"),
        ({"NoSuchKeyword": "1"}, "unknown-attribute"),
        ({"fuzzymatching": "perhaps"}, "invalid-parameter"),
    ],
)
def test_a_search_that_cannot_be_understood_is_a_named_problem(
    client: Client, centre: Centre, query: dict[str, str], code: str
) -> None:
    response = client.get("/dicom-web/studies", query, headers=centre.bearer(ALL))
    assert response.status_code == 400
    assert response["Content-Type"] == "application/problem+json"
    assert response.json()["code"] == code


def test_a_key_that_is_not_matched_is_said_to_be_ignored(client: Client, centre: Centre) -> None:
    study()
    response = client.get("/dicom-web/studies", {"KVP": "1"}, headers=centre.bearer(ALL))
    assert len(response.json()) == 1
    assert "KVP" in response["Warning"]


def test_the_number_of_queries_does_not_grow_with_the_rows(client: Client, centre: Centre) -> None:
    headers = centre.bearer(ALL)

    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            client.get("/dicom-web/studies", headers=headers)
        # Rights are looked at again once a second, whatever is asked.
        return len([query for query in captured if "study_index_" in query["sql"]])

    study()
    queries()
    few = queries()
    for number in range(10):
        study(patient_id=f"P{number}")
    assert queries() == few


def test_what_was_released_is_not_listed(find: Any) -> None:
    uid = new_uid()
    taken = take_in(ct_slice(uid, new_uid()))
    release([taken.instance])
    assert find("studies", StudyInstanceUID=uid) == []
    assert find(f"studies/{uid}/instances") == []


def test_the_same_answer_is_not_sent_twice(client: Client, centre: Centre) -> None:
    study()
    headers = centre.bearer(ALL)
    first = client.get("/dicom-web/studies", headers=headers)
    again = client.get("/dicom-web/studies", headers=headers | {"If-None-Match": first["ETag"]})
    assert (again.status_code, again.content) == (304, b"")

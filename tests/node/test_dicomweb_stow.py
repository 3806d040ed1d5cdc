"""Storing over HTTP."""

import gzip
from collections.abc import Sequence
from typing import Any

import pytest
from django.test import Client

from pacs_node.clinic.models import AuditEntry
from pacs_node.storage.layout import study_key
from pacs_node.storage.stores import storage
from pacs_node.study_index.models import Instance
from standards.errors import TransientError
from standards.uids import new_uid
from tests.node.dicomweb_node import CT_IMAGE, Centre, ct_slice, join

pytestmark = pytest.mark.django_db

KIND = 'multipart/related; type="application/dicom"; boundary=b0'


@pytest.fixture
def centre() -> Centre:
    return join()


def message(items: Sequence[bytes], kind: str = "application/dicom", end: bytes = b"--b0--\r\n") -> bytes:
    return b"".join(b"--b0\r\nContent-Type: " + kind.encode() + b"\r\n\r\n" + item + b"\r\n" for item in items) + end


@pytest.fixture
def post(client: Client, centre: Centre) -> Any:
    def send(body: bytes, path: str = "studies", kind: str = KIND, headers: dict[str, str] | None = None) -> Any:
        sent = centre.bearer("*", operations=("store",)) if headers is None else headers
        return client.post(f"/dicom-web/{path}", body, content_type=kind, headers=sent)

    return send


def test_what_is_stored_is_found_and_answered_for(post: Any) -> None:
    study, series, sop = new_uid(), new_uid(), new_uid()
    content = ct_slice(study, series, sop=sop)
    response = post(message([content]))
    assert response.status_code == 200
    (item,) = response.json()["00081199"]["Value"]
    assert item["00081150"]["Value"] == [CT_IMAGE]
    assert item["00081155"]["Value"] == [sop]
    assert item["00081190"]["Value"][0].endswith(f"/studies/{study}/series/{series}/instances/{sop}")
    assert storage().local_path(Instance.objects.get(sop_instance_uid=sop).path).read_bytes() == content
    assert AuditEntry.objects.filter(action="study.stored", entity=study, actor="dr-somova").exists()


def test_the_answer_names_the_study_that_all_instances_are_of(post: Any) -> None:
    first, second = new_uid(), new_uid()
    of_one = [ct_slice(first, new_uid(), number=number) for number in (1, 2)]
    assert post(message(of_one)).json()["00081190"]["Value"][0].endswith(f"/dicom-web/studies/{first}")
    of_two = post(message([*of_one, ct_slice(second, new_uid())])).json()
    assert of_two["00081190"] == post(message([b"rubbish"])).json()["00081190"] == {"vr": "UR"}


def test_a_compressed_message_is_refused_by_name(post: Any, centre: Centre) -> None:
    headers = centre.bearer("*", operations=("store",)) | {"Content-Encoding": "gzip"}
    answer = post(gzip.compress(message([ct_slice(new_uid(), new_uid())])), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported-media-type")
    assert not Instance.objects.exists()


def test_one_bad_item_does_not_stop_the_rest(post: Any) -> None:
    study, series = new_uid(), new_uid()
    good = [ct_slice(study, series, number=number) for number in (1, 2)]
    truncated = ct_slice(study, series, number=3)[:-100]
    response = post(message([good[0], truncated, b"not dicom at all", good[1]]))
    assert response.status_code == 202
    answer = response.json()
    assert len(answer["00081199"]["Value"]) == 2
    assert [item["00081197"]["Value"] for item in answer["0008119A"]["Value"]] == [[0xC002], [0xC001]]
    assert Instance.objects.count() == 2
    assert list(storage().root.glob("incoming/*")) == []


def test_nothing_stored_is_a_conflict(post: Any) -> None:
    response = post(message([b"rubbish"]))
    assert response.status_code == 409
    assert response.json()["0008119A"]["Value"][0]["00081197"]["Value"] == [0xC001]


def test_a_storage_that_fails_for_one_study_is_answered_for_and_takes_the_others(post: Any) -> None:
    blocked, sop = new_uid(), new_uid()
    in_the_way = storage().root / study_key(blocked)
    in_the_way.parent.mkdir(parents=True, exist_ok=True)
    in_the_way.write_text("a file where the folder of the study belongs")
    failing = ct_slice(blocked, new_uid(), sop=sop)
    response = post(message([failing, ct_slice(new_uid(), new_uid())]))
    assert response.status_code == 202
    (item,) = response.json()["00081198"]["Value"]
    assert (item["00081155"]["Value"], item["00081197"]["Value"]) == ([sop], [0xA700])
    assert Instance.objects.count() == 1
    assert post(message([failing])).status_code == 503
    in_the_way.unlink()
    assert post(message([failing])).status_code == 200


def test_an_item_of_another_study_than_the_address_is_refused_by_name(post: Any) -> None:
    sop = new_uid()
    response = post(message([ct_slice(new_uid(), new_uid(), sop=sop)]), f"studies/{new_uid()}")
    assert response.status_code == 409
    (item,) = response.json()["00081198"]["Value"]
    assert item["00081155"]["Value"] == [sop]
    assert not Instance.objects.exists()


def test_storing_the_same_again_changes_nothing(post: Any) -> None:
    body = message([ct_slice(new_uid(), new_uid(), sop=new_uid())])
    assert [post(body).status_code, post(body).status_code] == [200, 200]
    assert Instance.objects.count() == 1


def test_other_content_under_a_used_uid_is_kept_aside_with_a_warning(post: Any) -> None:
    study, series, sop = new_uid(), new_uid(), new_uid()
    post(message([ct_slice(study, series, sop=sop)]))
    response = post(message([ct_slice(study, series, sop=sop, number=9)]))
    assert response.status_code == 202
    assert response.json()["00081199"]["Value"][0]["00081196"]["Value"] == [0xB000]
    assert Instance.objects.filter(sop_instance_uid=sop, is_variant=True).count() == 1


def test_a_token_for_one_study_cannot_store_into_another(post: Any, centre: Centre) -> None:
    mine, other = new_uid(), new_uid()
    headers = centre.bearer(mine, operations=("store",))
    assert post(message([ct_slice(mine, new_uid())]), headers=headers).status_code == 200
    response = post(message([ct_slice(other, new_uid())]), headers=headers)
    assert response.status_code == 403
    assert response.json()["00081198"]["Value"][0]["00081197"]["Value"] == [0x0124]
    assert post(message([ct_slice(other, new_uid())]), f"studies/{other}", headers=headers).status_code == 403
    assert not Instance.objects.filter(series__study__study_instance_uid=other).exists()
    assert AuditEntry.objects.filter(action="dicomweb.study-not-granted", entity=other).exists()


def test_a_token_to_read_cannot_store(post: Any, centre: Centre) -> None:
    study = new_uid()
    response = post(message([ct_slice(study, new_uid())]), headers=centre.bearer(study, operations=("read",)))
    assert (response.status_code, response.json()["code"]) == (403, "operation-not-granted")
    assert not Instance.objects.exists()


def test_a_full_disk_is_said_so(post: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise TransientError("storage-full", "only 3 MB are free on the storage")

    monkeypatch.setattr(storage(), "check_space", full)
    response = post(message([ct_slice(new_uid(), new_uid())]))
    assert response.status_code == 507
    assert not Instance.objects.exists()


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "text/plain", 415),
        (b"x", 'multipart/related; type="application/dicom"', 400),
        (b"no boundary here", KIND, 400),
        (b"--b0--\r\n", KIND, 400),
    ],
)
def test_a_message_that_is_none_is_a_named_problem(post: Any, body: bytes, kind: str, status: int) -> None:
    response = post(body, kind=kind)
    assert response.status_code == status
    assert response["Content-Type"] == "application/problem+json"


def test_a_message_that_breaks_off_keeps_what_came_whole(post: Any) -> None:
    study, series = new_uid(), new_uid()
    whole, half = ct_slice(study, series, number=1), ct_slice(study, series, number=2)
    response = post(message([whole]).removesuffix(b"--b0--\r\n") + message([half])[: len(half) // 2])
    assert response.status_code == 202
    assert Instance.objects.count() == 1
    assert list(storage().root.glob("incoming/*")) == []


def test_a_login_session_stores_only_with_the_page_token(
    client: Client, centre: Centre, django_user_model: Any
) -> None:
    user = django_user_model.objects.create_user("anna", password="radiant-day")
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(user)
    body = message([ct_slice(new_uid(), new_uid())])
    response = strict.post("/dicom-web/studies", body, content_type=KIND)
    assert (response.status_code, response.json()["code"]) == (403, "csrf-failed")
    assert not Instance.objects.exists()
    strict.get("/state/")
    token = strict.cookies[next(name for name in strict.cookies if "csrf" in name)].value
    response = strict.post("/dicom-web/studies", body, content_type=KIND, headers={"X-CSRFToken": token})
    assert response.status_code == 200

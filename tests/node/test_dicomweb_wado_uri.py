"""One instance by the parameters of a link."""

import io
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from django.http import HttpResponse
from django.test import Client
from PIL import Image
from pydicom import dcmread

from pacs_node.clinic.models import AuditEntry
from pacs_node.study_index.models import Instance
from standards.uids import new_uid
from tests.factories.dicom import compressed, ct_instance, encapsulated_pdf, part10
from tests.node.dicomweb_node import Centre, body, ct_slice, join, take_in

pytestmark = pytest.mark.django_db


@pytest.fixture
def centre() -> Centre:
    return join()


@pytest.fixture
def get(client: Client, centre: Centre) -> Any:
    def ask(instance: Instance, address: str = "/wado", **more: str) -> Any:
        series = instance.series
        query = {
            "requestType": "WADO",
            "studyUID": series.study.study_instance_uid,
            "seriesUID": series.series_instance_uid,
            "objectUID": instance.sop_instance_uid,
        } | more
        return client.get(f"{address}?{urlencode(query)}", headers=centre.bearer(series.study.study_instance_uid))

    return ask


def picture(response: HttpResponse) -> Image.Image:
    return Image.open(io.BytesIO(body(response)))


@pytest.mark.parametrize("address", ["/wado", "/dicom-web/wado"])
def test_an_image_comes_as_a_jpeg_by_itself(get: Any, address: str) -> None:
    response = get(take_in(ct_slice(new_uid(), new_uid())).instance, address)
    assert response["Content-Type"] == "image/jpeg"
    assert (picture(response).format, picture(response).size) == ("JPEG", (16, 16))


def test_the_file_comes_in_explicit_little_endian_or_as_asked(get: Any) -> None:
    content = part10(compressed(ct_instance()))
    instance = take_in(content).instance
    plain = get(instance, contentType="application/dicom")
    assert plain["Content-Type"] == "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"
    assert dcmread(io.BytesIO(body(plain))).file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    for syntax in ("1.2.840.10008.1.2.4.80", "*"):
        assert body(get(instance, contentType="application/dicom", transferSyntax=syntax)) == content


def test_a_window_a_size_and_a_part_are_as_asked(get: Any) -> None:
    instance = take_in(ct_slice(new_uid(), new_uid())).instance
    whole = np.asarray(picture(get(instance, contentType="image/png", windowCenter="128", windowWidth="256")))
    assert (whole[0, 0], whole[15, 15]) == (1, 255)
    part = picture(get(instance, contentType="image/png", windowCenter="128", windowWidth="256", region="0.5,0,1,0.5"))
    assert (np.asarray(part) == whole[:8, 8:]).all()
    assert picture(get(instance, contentType="image/png", rows="32")).size == (32, 32)
    assert picture(get(instance, contentType="image/png", rows="32", columns="8")).size == (8, 8)


def test_one_frame_of_many_can_be_asked_for(get: Any) -> None:
    instance = take_in(ct_slice(new_uid(), new_uid(), frames=3)).instance
    window = {"windowCenter": "400", "windowWidth": "800"}
    first, last = (np.asarray(picture(get(instance, frameNumber=number, **window))).mean() for number in ("1", "3"))
    assert last > first + 100
    assert get(instance)["Content-Type"].startswith("application/dicom")
    assert get(instance, frameNumber="4").status_code == 404


def test_a_document_comes_as_itself(get: Any) -> None:
    instance = take_in(part10(encapsulated_pdf())).instance
    assert body(get(instance, contentType="application/pdf")).startswith(b"%PDF")
    assert get(instance, contentType="image/jpeg").status_code == 406
    assert get(instance)["Content-Type"].startswith("application/dicom")


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({"requestType": "GET"}, 400, "invalid-parameter"),
        ({"seriesUID": ""}, 400, "invalid-parameter"),
        ({"objectUID": "1.2.3"}, 404, "not-found"),
        ({"objectUID": "../x"}, 400, "invalid-uid"),
        ({"anonymize": "yes"}, 400, "invalid-parameter"),
        ({"windowCenter": "3"}, 400, "invalid-parameter"),
        ({"windowCenter": "3", "windowWidth": "x"}, 400, "invalid-parameter"),
        ({"region": "0,0,2,2"}, 400, "invalid-parameter"),
        ({"imageQuality": "0"}, 400, "invalid-parameter"),
        ({"rows": "-1"}, 400, "invalid-parameter"),
        ({"contentType": "video/mpeg"}, 406, "not-acceptable"),
        ({"contentType": "application/dicom", "rows": "3"}, 400, "invalid-parameter"),
        ({"contentType": "application/dicom", "transferSyntax": "1.2.840.10008.1.2.4.90"}, 406, "not-acceptable"),
    ],
)
def test_what_cannot_be_given_is_a_named_problem(get: Any, query: dict[str, str], status: int, code: str) -> None:
    response = get(take_in(ct_slice(new_uid(), new_uid())).instance, **query)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response["Content-Type"] == "application/problem+json"


def test_a_token_for_another_study_opens_nothing(client: Client, centre: Centre) -> None:
    instance = take_in(ct_slice(new_uid(), new_uid())).instance
    study = instance.series.study.study_instance_uid
    query = urlencode(
        {
            "requestType": "WADO",
            "studyUID": study,
            "seriesUID": instance.series.series_instance_uid,
            "objectUID": instance.sop_instance_uid,
        }
    )
    assert client.get(f"/wado?{query}").status_code == 401
    refused = client.get(f"/wado?{query}", headers=centre.bearer(new_uid()))
    assert (refused.status_code, refused.json()["code"]) == (403, "study-not-granted")
    assert client.get(f"/wado?{query}", headers=centre.bearer(study)).status_code == 200
    assert AuditEntry.objects.filter(action="study.viewed", entity=study).count() == 1

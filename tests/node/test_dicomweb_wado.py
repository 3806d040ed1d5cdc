"""Retrieving what a node holds."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.test import Client
from PIL import Image
from pydicom import dcmread
from pydicom.uid import UID

from pacs_node.storage.stores import storage
from pacs_node.study_index.actions import ingest
from pacs_node.study_index.models import Instance
from standards.errors import RegisError
from standards.uids import new_uid
from tests.factories.dicom import ct_instance, part10
from tests.node.dicomweb_node import Centre, body, ct_slice, join, parts, place, take_in

pytestmark = pytest.mark.django_db

AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
OHIF_FRAMES = "multipart/related; type=application/octet-stream; transfer-syntax=*"


@pytest.fixture
def centre() -> Centre:
    return join()


@pytest.fixture
def get(client: Client, centre: Centre) -> Any:
    """GET with a token for everything."""

    def ask(path: str, accept: str = "", **headers: str) -> Any:
        sent = centre.bearer("*") | ({"Accept": accept} if accept else {}) | headers
        return client.get(f"/dicom-web/{path}", headers=sent)

    return ask


def test_a_study_comes_back_byte_for_byte(get: Any) -> None:
    study, series = new_uid(), new_uid()
    sent = [ct_slice(study, series, number=number) for number in range(3)]
    for content in sent:
        take_in(content)
    response = get(f"studies/{study}", AS_STORED)
    assert response.streaming
    assert [content for _, content in parts(response)] == sent
    assert len(parts(get(f"studies/{study}/series/{series}"))) == 3


def test_one_instance_comes_as_a_part_or_by_itself(get: Any) -> None:
    content = ct_slice(new_uid(), new_uid())
    at = place(take_in(content).instance)
    assert [found for _, found in parts(get(at))] == [content]
    single = get(at, "application/dicom")
    assert single["Content-Type"].startswith("application/dicom")
    assert body(single) == content


def test_metadata_has_every_attribute_and_pixels_by_address(get: Any) -> None:
    content = ct_slice(new_uid(), new_uid())
    instance = take_in(content).instance
    response = get(f"{place(instance)}/metadata", "application/dicom+json")
    (found,) = json.loads(body(response))
    assert found["00100010"]["Value"] == [{"Alphabetic": "Щёголев^Пётр^Ёжикович"}]
    assert found["00280010"]["Value"] == [16]
    assert found["00083002"]["Value"] == [instance.transfer_syntax_uid]
    uri = found["7FE00010"]["BulkDataURI"]
    assert "InlineBinary" not in found["7FE00010"]
    (pixels,) = parts(get(uri.partition("/dicom-web/")[2]))
    assert pixels[1] == dcmread(io.BytesIO(content)).PixelData


def test_frames_come_as_stored_to_the_viewer(get: Any) -> None:
    instance = take_in(ct_slice(new_uid(), new_uid(), frames=4)).instance
    response = get(f"{place(instance)}/frames/2", OHIF_FRAMES)
    assert "immutable" in response["Cache-Control"]
    ((kind, content),) = parts(response)
    assert kind == "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1"
    assert np.array_equal(np.frombuffer(content, "<u2"), np.arange(256, 512, dtype="<u2") + 1)
    several = parts(get(f"{place(instance)}/frames/4,1", OHIF_FRAMES))
    assert [np.frombuffer(content, "<u2")[0] for _, content in several] == [769, 1]


def test_one_frame_comes_without_multipart_too(get: Any) -> None:
    instance = take_in(ct_slice(new_uid(), new_uid())).instance
    response = get(f"{place(instance)}/frames/1", "application/octet-stream")
    assert response["Content-Type"].startswith("application/octet-stream")
    assert len(body(response)) == 512


@pytest.mark.parametrize(
    ("path", "accept", "status"),
    [
        ("/frames/2", OHIF_FRAMES, 404),
        ("/frames/0", OHIF_FRAMES, 404),
        ("/frames/one", OHIF_FRAMES, 400),
        ("/frames/1", "image/jls", 406),
        ("/frames/1", "multipart/related; type=image/jp2", 406),
        ("/rendered", "application/pdf", 406),
        ("/rendered?window=1", "image/png", 400),
        ("/rendered?viewport=a,b", "image/png", 400),
        ("/rendered?quality=1000", "image/png", 400),
        ("/metadata", "text/html", 406),
        ("", "application/json", 406),
        ("/bulkdata/00100010", "*/*", 404),
        ("/bulkdata/../../x", "*/*", 404),
        ("/nothing", "*/*", 404),
    ],
)
def test_what_cannot_be_given_is_a_named_problem(get: Any, path: str, accept: str, status: int) -> None:
    instance = take_in(ct_slice(new_uid(), new_uid())).instance
    response = get(f"{place(instance)}{path}", accept)
    assert response.status_code == status, body(response)
    assert response["Content-Type"] == "application/problem+json"
    assert response.json()["status"] == status


@pytest.mark.parametrize("path", ["studies/1.2.3", "studies/1.2.3/metadata", "studies/1.2.3/rendered"])
def test_what_is_not_held_is_not_found(get: Any, path: str) -> None:
    assert get(path).status_code == 404


def test_a_variant_is_never_given_in_place_of_the_first(get: Any) -> None:
    study, series, sop = new_uid(), new_uid(), new_uid()
    first, second = ct_slice(study, series, sop=sop), ct_slice(study, series, sop=sop, number=7)
    take_in(first)
    assert take_in(second).outcome == "conflict"
    assert [content for _, content in parts(get(f"studies/{study}"))] == [first]


def test_a_lost_file_does_not_stop_the_rest_of_its_study(get: Any) -> None:
    study, series = new_uid(), new_uid()
    kept, lost = (ct_slice(study, series, number=number) for number in (1, 2))
    take_in(kept)
    storage().remove(take_in(lost).instance.path)
    assert [content for _, content in parts(get(f"studies/{study}"))] == [kept]
    assert len(json.loads(body(get(f"studies/{study}/metadata")))) == 1


def test_what_the_browser_has_is_not_sent_again(get: Any) -> None:
    instance = take_in(ct_slice(new_uid(), new_uid())).instance
    for path in ("", "/metadata", "/frames/1", "/rendered", "/thumbnail", "/bulkdata/7FE00010"):
        first = get(place(instance) + path)
        again = get(place(instance) + path, **{"If-None-Match": first["ETag"]})
        assert (again.status_code, body(again)) == (304, b""), path


def test_a_growing_series_has_another_etag(get: Any) -> None:
    study, series = new_uid(), new_uid()
    take_in(ct_slice(study, series, number=1))
    path = f"studies/{study}/series/{series}/metadata"
    first = get(path)["ETag"]
    take_in(ct_slice(study, series, number=2))
    again = get(path, **{"If-None-Match": first})
    assert again.status_code == 200
    assert len(json.loads(body(again))) == 2


def test_pictures_have_the_size_and_window_that_were_asked_for(get: Any) -> None:
    instance = take_in(ct_slice(new_uid(), new_uid())).instance
    picture = Image.open(io.BytesIO(body(get(f"{place(instance)}/rendered?viewport=8,8", "image/png"))))
    assert (picture.format, picture.size) == ("PNG", (8, 8))
    plain = np.asarray(Image.open(io.BytesIO(body(get(f"{place(instance)}/rendered", "image/png")))))
    narrow = np.asarray(Image.open(io.BytesIO(body(get(f"{place(instance)}/rendered?window=128,2", "image/png")))))
    assert 0 < plain.mean() < 255
    assert set(np.unique(narrow)) <= {0, 127, 128, 255}
    study = place(instance).split("/series")[0]
    assert Image.open(io.BytesIO(body(get(f"{study}/thumbnail")))).format == "JPEG"


@pytest.mark.parametrize(
    ("kind", "name"), [("image/gif", "GIF"), ("image/jp2", "JPEG2000"), ("image/png", "PNG"), ("image/webp", "WEBP")]
)
def test_pictures_come_in_what_the_standard_names(get: Any, kind: str, name: str) -> None:
    response = get(f"{place(take_in(ct_slice(new_uid(), new_uid())).instance)}/rendered", kind)
    assert (response["Content-Type"], Image.open(io.BytesIO(body(response))).format) == (kind, name)


def test_pictures_of_several_frames_come_as_parts(get: Any) -> None:
    study, series = new_uid(), new_uid()
    loop = take_in(ct_slice(study, series, frames=3)).instance
    single = take_in(ct_slice(study, series, number=2)).instance
    related = 'multipart/related; type="image/png"'

    def shown(response: Any) -> list[tuple[int, int]]:
        assert response["Content-Type"].startswith(related)
        pictures = [Image.open(io.BytesIO(content)) for kind, content in parts(response) if kind == "image/png"]
        return [picture.size for picture in pictures]

    assert shown(get(f"{place(loop)}/frames/3,1/rendered?viewport=4,4", related)) == [(4, 4)] * 2
    assert shown(get(f"{place(loop)}/rendered", related)) == [(16, 16)] * 3
    assert shown(get(f"{place(single)}/frames/1/rendered", related)) == [(16, 16)]
    assert len(shown(get(f"studies/{study}/rendered", related))) == 4
    several = get(f"{place(loop)}/frames/1,2/rendered")
    assert [kind for kind, _ in parts(several)] == ["image/jpeg"] * 2
    assert get(f"{place(loop)}/frames/1,2/rendered", "image/jpeg").status_code == 406
    again = get(f"{place(loop)}/frames/1,2/rendered", **{"If-None-Match": several["ETag"]})
    assert (again.status_code, body(again)) == (304, b"")


def test_what_a_picture_does_not_follow_is_said(get: Any) -> None:
    address = f"{place(take_in(ct_slice(new_uid(), new_uid())).instance)}/rendered"
    response = get(f"{address}?annotation=patient&iccprofile=srgb")
    assert response.status_code == 200
    assert response["Warning"].count("299 regis") == 2
    assert "Warning" not in get(f"{address}?iccprofile=no&quality=50").headers


def test_a_region_outside_of_the_image_is_a_wrong_parameter(get: Any) -> None:
    address = f"{place(take_in(ct_slice(new_uid(), new_uid())).instance)}/rendered"
    response = get(f"{address}?viewport=8,8,16,0,4,4")
    assert (response.status_code, response.json()["code"]) == (400, "invalid-parameter")
    assert get(f"{address}?viewport=8,8,-4,-4,8,8").status_code == 200


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"])
def test_frames_that_lie_native_are_called_explicit_little_endian(get: Any, syntax: str) -> None:
    dataset = ct_instance()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    pixels = dataset.PixelData
    address = f"{place(take_in(part10(dataset)).instance)}/frames/1"
    for accept in ("", OHIF_FRAMES, OHIF_FRAMES.partition("; transfer")[0]):
        response = get(address, accept)
        assert "transfer-syntax=1.2.840.10008.1.2.1;" in response["Content-Type"]
        ((kind, content),) = parts(response)
        assert kind == "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1"
        assert content == pixels


def _taken(folder: Path) -> list[Instance]:
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            try:
                found.append(ingest(path, source_ae_title="TESTER").instance)
            except RegisError:
                continue
    return [instance for instance in found if not instance.is_variant]


@pytest.mark.parametrize("folder", ["mr", "us_cine", "transfer_syntaxes/nema_ct1", "sr_pdf_ps"])
def test_real_objects_come_back_whole_in_every_form(sample_data: Path, get: Any, folder: str) -> None:
    instances = _taken(sample_data / folder)
    assert instances
    for instance in instances:
        at = place(instance)
        ((_, content),) = parts(get(at, AS_STORED))
        path = storage().local_path(instance.path)
        assert content == path.read_bytes()
        (metadata,) = json.loads(body(get(f"{at}/metadata")))
        assert metadata["00080018"]["Value"] == [instance.sop_instance_uid]
        if "7FE00010" in metadata:
            ((_, frame),) = parts(get(f"{at}/frames/{instance.number_of_frames}", OHIF_FRAMES))
            assert frame
            native = get(f"{at}/frames/1", "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1")
            if native.status_code == 200:
                stored = dcmread(path)
                bits = stored.Rows * stored.Columns * stored.SamplesPerPixel * stored.BitsAllocated
                assert len(body(native)) == -(-bits // 8)
            else:
                assert native.json()["code"] == "cannot-decode"


def test_a_document_comes_as_its_own_media_type(sample_data: Path, get: Any) -> None:
    instance = ingest(sample_data / "sr_pdf_ps" / "encapsulated_pdf.dcm", source_ae_title="TESTER").instance
    response = get(f"{place(instance)}/bulkdata/00420011", "application/pdf")
    assert response["Content-Type"] == "application/pdf"
    assert body(response).startswith(b"%PDF")

"""The same instance in the forms that clients ask for: transfer syntaxes, single parts, ranges, XML."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from django.test import Client
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
)

from pacs_node.dicomweb import retrieval
from pacs_node.study_index.actions import ingest
from standards.part10 import inflate
from standards.uids import new_uid
from tests.factories.dicom import compressed, ct_instance, ct_series, encapsulated_pdf, part10
from tests.node.dicomweb_node import Centre, body, ct_slice, join, parts, place, take_in

pytestmark = pytest.mark.django_db

RELATED = 'multipart/related; type="application/dicom"'
EXPLICIT, JPEG_LS = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.80"
DOCUMENT = "{http://dicom.nema.org/PS3.19/models/NativeDICOM}"


@pytest.fixture
def centre() -> Centre:
    return join()


@pytest.fixture
def get(client: Client, centre: Centre) -> Any:
    def ask(path: str, accept: str = "", **headers: str) -> Any:
        sent = centre.bearer("*") | ({"Accept": accept} if accept else {}) | headers
        return client.get(f"/dicom-web/{path}", headers=sent)

    return ask


def written(dataset: Any, syntax: str) -> bytes:
    dataset.file_meta.TransferSyntaxUID = syntax
    return part10(dataset)


@pytest.mark.parametrize("accept", ["", "*/*", RELATED, f"{RELATED}; transfer-syntax={EXPLICIT}"])
def test_who_names_no_transfer_syntax_gets_what_everybody_can_read(get: Any, accept: str) -> None:
    dataset = ct_instance()
    pixels = dataset.PixelData
    instance = take_in(part10(compressed(dataset))).instance
    response = get(place(instance), accept)
    ((kind, content),) = parts(response)
    assert kind == f"application/dicom; transfer-syntax={EXPLICIT}"
    back = dcmread(io.BytesIO(content))
    assert back.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert back.PixelData == pixels
    assert str(back.PatientName) == str(dataset.PatientName)


def test_a_star_means_as_stored(get: Any) -> None:
    content = part10(compressed(ct_instance()))
    instance = take_in(content).instance
    assert parts(get(place(instance), f"{RELATED}; transfer-syntax=*")) == [
        (f"application/dicom; transfer-syntax={JPEG_LS}", content)
    ]
    single = get(place(instance), "application/dicom; transfer-syntax=*")
    assert (single["Content-Type"], body(single)) == (f"application/dicom; transfer-syntax={JPEG_LS}", content)


def test_a_transfer_syntax_that_is_not_held_is_406(get: Any) -> None:
    instance = take_in(part10(ct_instance())).instance
    response = get(place(instance), f"{RELATED}; transfer-syntax=1.2.840.10008.1.2.4.90")
    assert (response.status_code, response.json()["code"]) == (406, "not-acceptable")


def test_a_lossy_image_is_never_sent_as_if_it_were_not(get: Any, sample_data: Path) -> None:
    path = sample_data / "us_cine" / "sonosite_turbo_30fr_jpeg.dcm"
    instance = ingest(path, source_ae_title="TESTER").instance
    ((kind, content),) = parts(get(place(instance), RELATED))
    assert (kind, content) == (f"application/dicom; transfer-syntax={instance.transfer_syntax_uid}", path.read_bytes())
    ((kind, content),) = parts(get(place(instance), f"{RELATED}; transfer-syntax={EXPLICIT}"))
    back = dcmread(io.BytesIO(content))
    assert (kind.rpartition("=")[2], back.PhotometricInterpretation) == (EXPLICIT, "YBR_FULL")
    assert (back.LossyImageCompression, len(back.PixelData)) == ("01", back.Rows * back.Columns * 3 * 30)


def test_a_series_of_several_encodings_comes_in_one(get: Any) -> None:
    first, second, third = ct_series(3)
    study, series = first.StudyInstanceUID, first.SeriesInstanceUID
    wanted = [np.array(image.pixel_array) for image in (first, second, third)]
    for content in (part10(first), part10(compressed(second)), written(third, ImplicitVRLittleEndian)):
        take_in(content)
    received = parts(get(f"studies/{study}/series/{series}"))
    assert {kind for kind, _ in received} == {f"application/dicom; transfer-syntax={EXPLICIT}"}
    shown = [dcmread(io.BytesIO(content)).pixel_array for _, content in received]
    assert all(np.array_equal(a, b) for a, b in zip(shown, wanted, strict=True))
    stored = {kind.rpartition("=")[2] for kind, _ in parts(get(f"studies/{study}", f"{RELATED}; transfer-syntax=*"))}
    assert stored == {EXPLICIT, JPEG_LS, "1.2.840.10008.1.2"}


def test_what_only_some_instances_have_is_a_partial_answer(get: Any) -> None:
    first, second = ct_series(2)
    study = first.StudyInstanceUID
    take_in(part10(first))
    take_in(part10(compressed(second)))
    response = get(f"studies/{study}", f"{RELATED}; transfer-syntax={JPEG_LS}")
    assert response.status_code == 206
    assert len(parts(response)) == 1


@pytest.mark.parametrize(
    ("asked", "status", "expected"),
    [
        ("bytes=0-99", 206, lambda whole: whole[:100]),
        ("bytes=100-", 206, lambda whole: whole[100:]),
        ("bytes=-20", 206, lambda whole: whole[-20:]),
        ("bytes=10-999999999", 206, lambda whole: whole[10:]),
        ("bytes=999999999-", 416, lambda whole: b""),
        ("bytes=-0", 416, lambda whole: b""),
        ("bytes=20-10", 200, lambda whole: whole),
        ("bytes=0-1,5-6", 200, lambda whole: whole),
        ("lines=1-2", 200, lambda whole: whole),
    ],
)
@pytest.mark.parametrize("path", ["", "/frames/1", "/bulkdata/7FE00010"])
def test_a_part_of_a_body_can_be_asked_for(
    get: Any, path: str, asked: str, status: int, expected: Callable[[bytes], bytes]
) -> None:
    at = place(take_in(ct_slice(new_uid(), new_uid())).instance) + path
    accept = "application/dicom" if not path else "application/octet-stream"
    whole = body(get(at, accept))
    response = get(at, accept, Range=asked)
    assert (response.status_code, body(response)) == (status, expected(whole))
    assert response["Accept-Ranges"] == "bytes"
    if status == 206:
        first, last = response["Content-Range"].removeprefix("bytes ").split("/")[0].split("-")
        assert whole[int(first) : int(last) + 1] == expected(whole)
        assert response["Content-Range"].endswith(f"/{len(whole)}")
    if status == 416:
        assert response["Content-Range"] == f"bytes */{len(whole)}"


def test_a_range_of_something_else_by_now_is_the_whole(get: Any) -> None:
    at = place(take_in(ct_slice(new_uid(), new_uid())).instance)
    first = get(at, "application/dicom")
    resumed = get(at, "application/dicom", **{"Range": "bytes=5-", "If-Range": first["ETag"]})
    other = get(at, "application/dicom", **{"Range": "bytes=5-", "If-Range": '"other"'})
    assert (resumed.status_code, other.status_code) == (206, 200)


def test_the_frames_of_a_deflated_object_inflate_it_once(get: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    content = written(dcmread(io.BytesIO(ct_slice(new_uid(), new_uid(), frames=8))), DeflatedExplicitVRLittleEndian)
    at = place(take_in(content).instance)
    inflated = []

    def counted(file: Any, start: int) -> Any:
        inflated.append(start)
        return inflate(file, start)

    monkeypatch.setattr(retrieval, "inflate", counted)
    for number in range(1, 9):
        frame = body(get(f"{at}/frames/{number}", "application/octet-stream; transfer-syntax=*"))
        assert np.array_equal(np.frombuffer(frame, "<u2"), np.arange(256, dtype="<u2") + 256 * (number - 1) + 1)
    assert len(inflated) == 1


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_a_long_value_within_items_has_an_address_too(get: Any, syntax: str) -> None:
    inner, dataset = Dataset(), ct_instance()
    inner.ICCProfile = b"regis" * 500_000
    dataset.IconImageSequence = [Dataset(), inner]
    address = f"{place(take_in(written(dataset, syntax)).instance)}/bulkdata/00880200/1/00282000"
    (model,) = get(address.partition("/bulkdata")[0] + "/metadata").json()
    (_, item) = model["00880200"]["Value"]
    assert item["00282000"]["BulkDataURI"].endswith(f"/dicom-web/{address}")
    assert body(get(address, "application/octet-stream")) == inner.ICCProfile
    part = get(address, "application/octet-stream", Range="bytes=5-9")
    assert (part.status_code, body(part)) == (206, b"regis")


def test_a_number_that_json_has_not_leaves_those_beside_it(get: Any) -> None:
    dataset = ct_instance()
    dataset.DiffusionGradientOrientation = [0.5, float("nan"), float("inf")]
    (model,) = get(f"{place(take_in(part10(dataset)).instance)}/metadata").json()
    assert model["00189089"] == {"vr": "FD", "Value": [0.5, None, None]}


def test_metadata_come_as_xml_documents(get: Any) -> None:
    study, series = new_uid(), new_uid()
    for number in (1, 2):
        take_in(ct_slice(study, series, number=number))
    received = parts(get(f"studies/{study}/metadata", 'multipart/related; type="application/dicom+xml"'))
    assert [kind for kind, _ in received] == ["application/dicom+xml"] * 2
    for number, (_, document) in enumerate(received, 1):
        found = {item.get("keyword"): item for item in ElementTree.fromstring(document)}
        name = found["PatientName"].find(f"{DOCUMENT}PersonName/{DOCUMENT}Alphabetic")
        assert name is not None
        assert [part.text for part in name] == ["Щёголев", "Пётр", "Ёжикович"]
        assert found["InstanceNumber"].findtext(f"{DOCUMENT}Value") == str(number)
        bulk = found["PixelData"].find(f"{DOCUMENT}BulkData")
        assert bulk is not None
        assert "/bulkdata/7FE00010" in bulk.get("uri", "")


def test_an_address_may_say_what_it_accepts(get: Any) -> None:
    instance = take_in(ct_slice(new_uid(), new_uid())).instance
    response = get(f"{place(instance)}?accept=application/dicom", "text/html")
    assert response["Content-Type"].startswith("application/dicom;")
    assert len(json.loads(body(get(f"{place(instance)}/metadata?accept=application/dicom%2Bjson", "text/html")))) == 1


def test_a_document_of_a_stranger_runs_in_a_sandbox(get: Any) -> None:
    dataset = encapsulated_pdf(b"<script>")
    dataset.MIMETypeOfEncapsulatedDocument = "text/html"
    response = get(f"{place(take_in(part10(dataset)).instance)}/bulkdata/00420011", "text/html")
    assert (response["Content-Type"], response["Content-Security-Policy"]) == ("text/html", "sandbox")


def test_compressed_frames_come_in_their_own_media_type(get: Any) -> None:
    at = place(take_in(part10(compressed(ct_instance()))).instance)
    for accept, kind in (
        ("image/jls", f"image/jls; transfer-syntax={JPEG_LS}"),
        ("image/*", f"image/jls; transfer-syntax={JPEG_LS}"),
        ("application/octet-stream", f"application/octet-stream; transfer-syntax={EXPLICIT}"),
    ):
        assert get(f"{at}/frames/1", accept)["Content-Type"] == kind
    assert get(f"{at}/frames/1", "image/jp2").status_code == 406
    assert JPEGLSLossless == JPEG_LS


def test_frames_that_cannot_be_told_apart_are_no_fault_of_who_asks(get: Any) -> None:
    dataset = compressed(ct_instance())
    dataset.NumberOfFrames = 3
    address = place(take_in(part10(dataset)).instance)
    for path in ("frames/1", "rendered"):
        answer = get(f"{address}/{path}")
        assert (answer.status_code, answer.json()["code"]) == (406, "ambiguous-fragments")


def test_a_video_comes_as_the_stream_it_is(get: Any) -> None:
    stream = bytes(range(256)) * 40
    dataset = ct_instance()
    dataset.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.77.1.1.1")
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.NumberOfFrames, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 25, 3, "YBR_PARTIAL_420"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PlanarConfiguration = 7, 0
    dataset.PixelData = encapsulate([stream[:6000], stream[6000:]], has_bot=False)
    dataset["PixelData"].VR = "OB"
    content = written(dataset, "1.2.840.10008.1.2.4.102")
    at = place(take_in(content).instance)
    for path, accept in (("/frames/1", "video/mp4"), ("/rendered", "*/*"), ("/bulkdata/7FE00010", "video/mp4")):
        whole = get(f"{at}{path}", accept)
        assert (whole["Content-Type"].partition(";")[0], body(whole)) == ("video/mp4", stream), path
        part = get(f"{at}{path}", accept, Range="bytes=5990-6009")
        assert (part.status_code, body(part)) == (206, stream[5990:6010]), path
    ((kind, sent),) = parts(get(at))
    assert (kind, sent) == ("application/dicom; transfer-syntax=1.2.840.10008.1.2.4.102", content)
    assert get(f"{at}/rendered", "image/jpeg").status_code == 406
    assert get(f"{at}/frames/1", "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1").status_code == 406


def test_a_pdf_is_rendered_as_itself(get: Any) -> None:
    response = get(f"{place(take_in(part10(encapsulated_pdf(b'%PDF-1.4 x'))).instance)}/rendered")
    assert (response["Content-Type"], body(response)) == ("application/pdf", b"%PDF-1.4 x")

"""What can be stored over HTTP besides multipart messages of files."""

import io
import json
from typing import Any
from xml.etree import ElementTree

import pytest
from django.test import Client
from pydicom import dcmread

from pacs_node.storage.stores import storage
from pacs_node.study_index.models import Instance
from standards.dicom_json import to_json
from standards.dicom_xml import to_xml
from standards.frames import read_frame
from standards.multipart import OutgoingPart, encode_related
from standards.part10 import read_header
from standards.pixels import decode_frame
from standards.uids import new_uid
from tests.factories.dicom import compressed, ct_instance, part10
from tests.node.dicomweb_node import Centre, ct_slice, join

pytestmark = pytest.mark.django_db

PIXELS = "urn:pixels:1"


@pytest.fixture
def centre() -> Centre:
    return join()


@pytest.fixture
def post(client: Client, centre: Centre) -> Any:
    def send(body: bytes, kind: str, path: str = "studies", accept: str = "application/dicom+json") -> Any:
        headers = centre.bearer("*", operations=("store",)) | {"Accept": accept}
        return client.post(f"/dicom-web/{path}", body, content_type=kind, headers=headers)

    return send


def described(kind: str, *parts: tuple[dict[str, str], bytes]) -> tuple[bytes, str]:
    message = encode_related([OutgoingPart(headers, body) for headers, body in parts], "b0")
    return b"".join(message), f'multipart/related; type="{kind}"; boundary=b0'


def model_of(dataset: Any) -> dict[str, Any]:
    model = to_json(dataset)
    model["7FE00010"] = {"vr": "OW", "BulkDataURI": PIXELS}
    return model


def stored(sop: str) -> Any:
    return dcmread(storage().local_path(Instance.objects.get(sop_instance_uid=sop).path))


def test_one_file_by_itself_is_stored(post: Any) -> None:
    study, sop = new_uid(), new_uid()
    content = ct_slice(study, new_uid(), sop=sop)
    response = post(content, "application/dicom", f"studies/{study}")
    assert response.status_code == 200
    assert response.json()["00081199"]["Value"][0]["00081155"]["Value"] == [sop]
    assert dcmread(io.BytesIO(content)).PixelData == stored(sop).PixelData
    for rubbish in (b"rubbish", content[:200]):
        answer = post(rubbish, "application/dicom")
        assert (answer.status_code, len(answer.json()["0008119A"]["Value"])) == (409, 1)


def test_a_file_without_its_preamble_gets_one(post: Any) -> None:
    content = ct_slice(new_uid(), new_uid())
    assert content[128:136] == b"DICM\x02\0\0\0"
    assert post(content[132:], "application/dicom").status_code == 200
    assert storage().local_path(Instance.objects.get().path).read_bytes() == content


def test_the_answer_comes_in_xml_to_who_wants_it(post: Any) -> None:
    response = post(ct_slice(new_uid(), new_uid()), "application/dicom", accept="application/dicom+xml")
    assert (response.status_code, response["Content-Type"]) == (200, "application/dicom+xml")
    keywords = {item.get("keyword") for item in ElementTree.fromstring(response.content)}
    assert "ReferencedSOPSequence" in keywords


@pytest.mark.parametrize("kind", ["application/dicom+json", "application/dicom+xml"])
def test_metadata_and_bulk_data_become_an_instance(post: Any, kind: str) -> None:
    dataset = ct_instance()
    model = model_of(dataset)
    document = to_xml(model) if kind.endswith("xml") else json.dumps([model]).encode()
    message, message_kind = described(
        kind,
        ({"Content-Type": kind}, document),
        ({"Content-Type": "application/octet-stream", "Content-Location": PIXELS}, dataset.PixelData),
    )
    response = post(message, message_kind)
    assert (response.status_code, "00081198" in response.json()) == (200, False)
    back = stored(dataset.SOPInstanceUID)
    assert (str(back.PatientName), back.PixelData) == (str(dataset.PatientName), dataset.PixelData)
    assert [float(part) for part in back.ImagePositionPatient] == [float(p) for p in dataset.ImagePositionPatient]
    assert back.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"


def test_metadata_alone_are_an_instance_without_bulk_data(post: Any) -> None:
    dataset = ct_instance()
    model = to_json(dataset)
    del model["7FE00010"]
    assert post(json.dumps(model).encode(), "application/dicom+json").status_code == 200
    assert "PixelData" not in stored(dataset.SOPInstanceUID)


def test_compressed_bulk_data_stay_compressed(post: Any) -> None:
    dataset = ct_instance()
    pixels = dataset.pixel_array.copy()
    file = io.BytesIO(part10(compressed(dataset)))
    header = read_header(file)
    codestream = read_frame(file, header, 0)
    kind = "application/dicom+json"
    message, message_kind = described(
        kind,
        ({"Content-Type": kind}, json.dumps([model_of(header.dataset)]).encode()),
        (
            {"Content-Type": "image/jls; transfer-syntax=1.2.840.10008.1.2.4.80", "Content-Location": PIXELS},
            codestream,
        ),
    )
    assert post(message, message_kind).status_code == 200
    path = storage().local_path(Instance.objects.get().path)
    with path.open("rb") as again:
        found = read_header(again)
        assert found.transfer_syntax == "1.2.840.10008.1.2.4.80"
        assert (decode_frame(again, found, 0) == pixels).all()


def test_a_described_instance_without_its_bulk_data_fails_by_name(post: Any) -> None:
    good, bad = ct_instance(), ct_instance()
    kind = "application/dicom+json"
    models = [model_of(good), model_of(bad) | {"7FE00010": {"vr": "OW", "BulkDataURI": "urn:elsewhere"}}]
    message, message_kind = described(
        kind,
        ({"Content-Type": kind}, json.dumps(models).encode()),
        ({"Content-Type": "application/octet-stream", "Content-Location": PIXELS}, good.PixelData),
    )
    response = post(message, message_kind)
    assert response.status_code == 202
    (failed,) = response.json()["00081198"]["Value"]
    assert failed["00081155"]["Value"] == [bad.SOPInstanceUID]
    assert Instance.objects.count() == 1
    assert list(storage().root.glob("incoming/*")) == []


@pytest.mark.parametrize("document", [b"", b"{", b"[1]", b'{"0010": {"vr": "PN"}}', b'[{"00080018": 5}]'])
def test_metadata_that_are_none_store_nothing(post: Any, document: bytes) -> None:
    kind = "application/dicom+json"
    message, message_kind = described(kind, ({"Content-Type": kind}, document))
    assert post(message, message_kind).status_code in (400, 409)
    assert not Instance.objects.exists()


def test_metadata_without_end_are_413(post: Any) -> None:
    kind = "application/dicom+json"
    message, message_kind = described(kind, ({"Content-Type": kind}, b" " * (65 << 20)))
    response = post(message, message_kind)
    assert (response.status_code, response.json()["code"]) == (413, "payload-too-large")

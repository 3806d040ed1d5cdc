"""A node in its own process, spoken to over real sockets by clients that are not ours."""

import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from dicomweb_client.api import DICOMwebClient
from pydicom import dcmread
from requests import Session

from deploy.processes import wait_until
from standards.tokens import generate_key, public_key_to_text
from standards.uids import new_uid
from tests.node.conftest import ROOT, NodeProcess
from tests.node.dicomweb_node import Centre, ct_slice

pytestmark = pytest.mark.django_db

JOIN = """
from gateway.models import JoinState
JoinState.objects.all().delete()
JoinState.objects.create(name="clinic-a", centre_url="https://centre.example", epoch="e1", directory={
    "peers": [], "mirror_to": [], "token_keys": {"k1": "%s"}})
"""


@pytest.fixture
def centre() -> Centre:
    return Centre(generate_key())


def joined(node: NodeProcess, key: Ed25519PrivateKey) -> str:
    node.python(JOIN % public_key_to_text(key.public_key()))
    return f"http://127.0.0.1:{node.http_port}"


def client_of(address: str, token: str) -> DICOMwebClient:
    session = Session()
    session.headers["Authorization"] = f"Bearer {token}"
    return DICOMwebClient(url=f"{address}/dicom-web", session=session)


def test_an_independent_client_stores_finds_and_retrieves(node_process: NodeProcess, centre: Centre) -> None:
    address = joined(node_process, centre.key)
    study, series = new_uid(), new_uid()
    client = client_of(address, centre.token(study, operations=("read", "store")))
    sent = [dcmread(io.BytesIO(ct_slice(study, series, number=number))) for number in (1, 2, 3)]
    answer = client.store_instances(datasets=sent)
    assert len(answer.ReferencedSOPSequence) == 3
    (found,) = client.search_for_studies(search_filters={"PatientName": "щеголев*"}, fuzzymatching=False)
    assert found["0020000D"]["Value"] == [study]
    assert len(client.search_for_instances(study)) == 3
    metadata = client.retrieve_series_metadata(study, series)
    assert [item["00200013"]["Value"] for item in metadata] == [[1], [2], [3]]
    back = client.retrieve_series(study, series)
    assert {item.SOPInstanceUID for item in back} == {item.SOPInstanceUID for item in sent}
    assert str(back[0].PatientName) == "Щёголев^Пётр^Ёжикович"
    first = sent[0].SOPInstanceUID
    assert client.retrieve_instance(study, series, first).PixelData == sent[0].PixelData
    (frame,) = client.retrieve_instance_frames(study, series, first, [1])
    assert frame == sent[0].PixelData
    assert client.retrieve_bulkdata(metadata[0]["7FE00010"]["BulkDataURI"])[0] == sent[0].PixelData
    picture = client.retrieve_instance_rendered(study, series, first, media_types=("image/png",))
    assert picture.startswith(b"\x89PNG")


def test_no_body_at_all_is_a_bad_request(node_process: NodeProcess, centre: Centre) -> None:
    address = joined(node_process, centre.key)
    headers = centre.bearer("*", operations=("store",)) | {"Content-Type": "application/dicom"}
    answer = httpx.post(f"{address}/dicom-web/studies", content=b"", headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["code"]) == (400, "empty-payload")


def test_a_stream_without_a_length_is_stored(node_process: NodeProcess, centre: Centre) -> None:
    address = joined(node_process, centre.key)
    study, series = new_uid(), new_uid()

    def message() -> Iterator[bytes]:
        for number in range(5):
            yield b"--b0\r\nContent-Type: application/dicom\r\n\r\n"
            content = ct_slice(study, series, number=number, frames=100)
            for start in range(0, len(content), 10_000):
                yield content[start : start + 10_000]
            yield b"\r\n"
        yield b"--b0--\r\n"

    headers = centre.bearer(study, operations=("store", "read"))
    kind = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b0'}
    response = httpx.post(f"{address}/dicom-web/studies", content=message(), headers=headers | kind, timeout=60)
    assert response.status_code == 200
    assert len(response.json()["00081199"]["Value"]) == 5


def test_a_sender_that_disappears_leaves_nothing_half(node_process: NodeProcess, centre: Centre) -> None:
    address = joined(node_process, centre.key)
    study, series = new_uid(), new_uid()

    def message() -> Iterator[bytes]:
        yield b"--b0\r\nContent-Type: application/dicom\r\n\r\n" + ct_slice(study, series) + b"\r\n"
        yield b"--b0\r\nContent-Type: application/dicom\r\n\r\n" + ct_slice(study, series, number=2)[:300]
        raise ConnectionAbortedError("the sender is gone")

    headers = centre.bearer(study, operations=("store", "read"))
    kind = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b0'}
    with pytest.raises(ConnectionAbortedError):
        httpx.post(f"{address}/dicom-web/studies", content=message(), headers=headers | kind, timeout=60)
    path = f"{address}/dicom-web/studies/{study}/instances"
    wait_until(lambda: not list((node_process.storage / "incoming").glob("*")), 60, "the half one is gone")
    found = httpx.get(path, headers=headers, timeout=60).json()
    assert [row["00200013"]["Value"] for row in found] in ([], [[1]])  # never the half one; nothing was answered


def test_a_long_series_is_described_in_good_time_and_streamed(node_process: NodeProcess, centre: Centre) -> None:
    address = joined(node_process, centre.key)
    study, series = new_uid(), new_uid()
    client = client_of(address, centre.token(study, operations=("read", "store")))
    for start in range(0, 300, 100):
        items = [dcmread(io.BytesIO(ct_slice(study, series, number=start + number))) for number in range(100)]
        client.store_instances(datasets=items)
    path = f"{address}/dicom-web/studies/{study}/series/{series}/metadata"
    began = time.monotonic()
    with httpx.stream("GET", path, headers=centre.bearer(study), timeout=60) as response:
        chunks = response.iter_raw()
        body = [next(chunks)]
        first = time.monotonic() - began
        body += chunks
    whole = time.monotonic() - began
    assert len(json.loads(b"".join(body))) == 300
    assert first < whole
    assert whole < 30


def test_many_readers_at_once_get_whole_answers(node_process: NodeProcess, centre: Centre) -> None:
    address = joined(node_process, centre.key)
    study, series, sop = new_uid(), new_uid(), new_uid()
    content = ct_slice(study, series, sop=sop, frames=40)
    client_of(address, centre.token(study, operations=("store",))).store_instances(
        datasets=[dcmread(io.BytesIO(content))]
    )
    path = f"{address}/dicom-web/studies/{study}/series/{series}/instances/{sop}"
    headers = centre.bearer(study) | {"Accept": "application/octet-stream"}
    wrong: list[str] = []

    def read(start: int) -> None:
        with httpx.Client(headers=headers, timeout=60) as reader:
            for frame in range(start, 41, 4):
                response = reader.get(f"{path}/frames/{frame}")
                if response.status_code != 200 or len(response.content) != 512:
                    wrong.append(f"{frame}: {response.status_code}")

    readers = [threading.Thread(target=read, args=(start,)) for start in (1, 2, 3, 4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert wrong == []


def test_the_viewers_files_come_whole_over_the_wire(node_process: NodeProcess) -> None:
    vendor = Path(node_process.environment.get("REGIS_NODE_VENDOR_DIR", ROOT / "var" / "vendor"))
    largest = max((vendor / "ohif").glob("*.js"), key=lambda path: path.stat().st_size, default=None)
    if largest is None:
        pytest.skip("the viewer is not installed")
    address = f"http://127.0.0.1:{node_process.http_port}/viewer/{largest.name}"
    assert httpx.get(address, headers={"Accept-Encoding": "identity"}, timeout=60).content == largest.read_bytes()


def test_a_frame_asked_for_again_is_checked_again(node_process: NodeProcess, centre: Centre) -> None:
    address = joined(node_process, centre.key)
    study, series, sop = new_uid(), new_uid(), new_uid()
    content = ct_slice(study, series, sop=sop, frames=3)
    client_of(address, centre.token(study, operations=("store",))).store_instances(
        datasets=[dcmread(io.BytesIO(content))]
    )
    path = f"{address}/dicom-web/studies/{study}/series/{series}/instances/{sop}/frames/2"
    accept = {"Accept": "multipart/related; type=application/octet-stream; transfer-syntax=*"}
    with httpx.Client(timeout=60) as reader:
        mine, stranger = centre.bearer(study) | accept, centre.bearer(new_uid()) | accept
        slow = reader.get(path, headers=mine | {"X-Look": "Django, please"})
        for _ in range(3):
            quick = reader.get(path, headers=mine)
            assert quick.status_code == 200
            body, fields = quick.content, quick.headers
            assert fields["Date"].endswith("GMT")
            assert body.partition(b"\r\n\r\n")[2][:512] == dcmread(io.BytesIO(content)).PixelData[512:1024]
            assert {name: fields[name] for name in ("ETag", "Cache-Control", "X-Content-Type-Options")} == {
                name: slow.headers[name] for name in ("ETag", "Cache-Control", "X-Content-Type-Options")
            }
        assert reader.get(path, headers=stranger).status_code == 403
        assert reader.get(path, headers=accept).status_code == 401
        assert reader.get(path, headers=centre.bearer(study, operations=("store",)) | accept).status_code == 403
        assert reader.get(path, headers=centre.bearer(study, ttl=-100) | accept).status_code == 401
        assert reader.get(path, headers=mine | {"Range": "bytes=0-9"}).status_code in (200, 206)
        assert reader.get(path, headers=mine | {"If-None-Match": quick.headers["ETag"]}).status_code == 304
        assert reader.get(path.replace(study, new_uid()), headers=mine).status_code == 403
        (held,) = node_process.files(study)
        held.unlink()
        assert reader.get(path, headers=mine).status_code == 410


def test_a_key_that_is_taken_away_opens_nothing_any_more(node_process: NodeProcess, centre: Centre) -> None:
    address = joined(node_process, centre.key)
    study, series, sop = new_uid(), new_uid(), new_uid()
    client_of(address, centre.token(study, operations=("store",))).store_instances(
        datasets=[dcmread(io.BytesIO(ct_slice(study, series, sop=sop)))]
    )
    path = f"{address}/dicom-web/studies/{study}/series/{series}/instances/{sop}/frames/1"
    headers = centre.bearer(study) | {"Accept": "application/octet-stream"}
    assert httpx.get(path, headers=headers, timeout=60).status_code == 200
    joined(node_process, generate_key())
    wait_until(lambda: httpx.get(path, headers=headers, timeout=60).status_code == 401, 120, "the token is refused")


def test_a_whole_series_goes_out_by_the_kernel_and_in_ranges(node_process: NodeProcess, centre: Centre) -> None:
    address = joined(node_process, centre.key)
    study, series = new_uid(), new_uid()
    sent = [ct_slice(study, series, number=number, frames=200) for number in range(5)]
    client = client_of(address, centre.token(study, operations=("store", "read")))
    client.store_instances(datasets=[dcmread(io.BytesIO(content)) for content in sent])
    back = client.retrieve_series(study, series, media_types=(("application/dicom", "*"),))
    assert [item.PixelData for item in back] == [dcmread(io.BytesIO(content)).PixelData for content in sent]
    one = f"{address}/dicom-web/studies/{study}/series/{series}/instances/{back[0].SOPInstanceUID}"
    headers = centre.bearer(study) | {"Accept": "application/dicom"}
    whole = httpx.get(one, headers=headers, timeout=60).content
    with httpx.Client(timeout=60) as reader:
        head = reader.head(one, headers=headers)
        assert (head.status_code, head.headers["Content-Length"], head.content) == (200, str(len(whole)), b"")
        part = reader.get(one, headers=headers | {"Range": "bytes=1000-50000"})
    assert (part.status_code, part.content) == (206, whole[1000:50001])

"""Copies reach destinations that take other encodings, decoded and never compressed anew, in flat memory."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from pydicom.filereader import dcmread
from pydicom.uid import JPEGLSLossless

from deploy.processes import wait_until
from gateway.proxy import journal
from standards import upper_layer
from standards.deidentification import pseudonym_uid
from tests.factories.dicom import ct_series, part10
from tests.node.proxied import COPY_ALL, Orthanc, Proxy, Store, dcmtk

pytest_plugins = ["tests.node.old_pacs"]

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
MEGABYTE = 1 << 20


@pytest.fixture(params=[((), EXPLICIT), (("+xi",), IMPLICIT)], ids=["explicit", "implicit only"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Store, str]]:
    options, syntax = request.param
    one = Store(tmp_path / "store", options)
    one.start()
    yield one, syntax
    one.stop()


def compressed(path: Path) -> tuple[FileDataset, np.ndarray]:
    """A JPEG-LS file at ``path``, and its pixels."""
    (dataset,) = ct_series(1)
    pixels = np.random.default_rng(7).integers(0, 4000, (64, 64), dtype=np.uint16)
    dataset.PixelData, dataset.PixelRepresentation = pixels.tobytes(), 0
    dataset.compress(JPEGLSLossless, generate_instance_uid=False)
    path.write_bytes(part10(dataset))
    return dataset, pixels


def test_a_destination_that_refuses_the_encoding_gets_copies_decoded(
    proxy: Proxy, store: tuple[Store, str], tmp_path: Path
) -> None:
    there, syntax = store
    proxy.rules = there.named("VIEWER") + COPY_ALL + '[[rule]]\ncopy = "VIEWER"\n'
    proxy.start()
    dataset, pixels = compressed(tmp_path / "1.dcm")
    sent = dcmtk("storescu", proxy.port, "-xt", tmp_path / "1.dcm")
    assert sent.returncode == 0, sent.stderr
    wait_until(lambda: proxy.counts().get("forwarded:VIEWER") == 1, 60, "it is forwarded")
    (received,) = there.received()
    assert str(received.file_meta.TransferSyntaxUID) == syntax
    assert received.SOPInstanceUID == dataset.SOPInstanceUID
    assert received.PatientName == dataset.PatientName
    assert (received.pixel_array == pixels).all()
    assert proxy.counts()["transcoded"] == 1
    assert f"decoded from {JPEGLSLossless} to {syntax}" in proxy.log.read_text()
    wait_until(lambda: len(proxy.waiting()) == 1, 60, "the node has its copy")
    assert dcmread(proxy.waiting()[0]).file_meta.TransferSyntaxUID == JPEGLSLossless


def test_what_the_destination_takes_as_it_is_stays_as_it_is(proxy: Proxy, tmp_path: Path) -> None:
    there = Store(tmp_path / "store", ("+xt",))
    there.start()
    try:
        proxy.rules = there.named("VIEWER") + '[[rule]]\ncopy = "VIEWER"\n'
        proxy.start()
        dataset, _ = compressed(tmp_path / "1.dcm")
        assert dcmtk("storescu", proxy.port, "-xt", tmp_path / "1.dcm").returncode == 0
        wait_until(lambda: proxy.counts().get("forwarded:VIEWER") == 1, 60, "it is forwarded")
        (received,) = there.received()
        assert received.file_meta.TransferSyntaxUID == JPEGLSLossless
        assert received.PixelData == dataset.PixelData
        assert "transcoded" not in proxy.counts()
    finally:
        there.stop()


def test_a_route_is_decoded_too_and_says_so(
    proxy: Proxy, pacs: Orthanc, store: tuple[Store, str], tmp_path: Path
) -> None:
    there, syntax = store
    proxy.rules = there.named("VIEWER") + '[[rule]]\nroute = "VIEWER"\nset = { InstitutionName = "Hospital" }\n'
    proxy.start()
    dataset, pixels = compressed(tmp_path / "1.dcm")
    sent = dcmtk("storescu", proxy.port, "-xt", tmp_path / "1.dcm")
    assert sent.returncode == 0, sent.stderr
    (received,) = there.received()
    assert (str(received.file_meta.TransferSyntaxUID), received.InstitutionName) == (syntax, "Hospital")
    assert (received.pixel_array == pixels).all()
    assert str(dataset.SOPInstanceUID) not in pacs.files()
    wait_until(lambda: proxy.counts().get("transcoded") == 1, 60, "it is counted")


def test_what_cannot_be_decoded_is_kept_aside_with_the_reason(proxy: Proxy, tmp_path: Path) -> None:
    there = Store(tmp_path / "store")
    there.start()
    try:
        proxy.rules = there.named("VIEWER") + '[[rule]]\ncopy = "VIEWER"\n'
        proxy.start()
        whole = tmp_path / "1.dcm"
        dataset, _ = compressed(whole)
        broken = whole.read_bytes()
        start = broken.index(b"\xff\xd8\xff\xf7")  # JPEG-LS: start of image, of frame
        whole.write_bytes(broken[: start + 2] + b"\0" * 40 + broken[start + 42 :])
        assert dcmtk("storescu", proxy.port, "-xt", whole).returncode == 0
        wait_until(lambda: proxy.counts().get("failure:copy-refused") == 1, 60, "it is refused")
        (told,) = [line for line in proxy.events() if line["event"] == "copy-refused"]
        assert "cannot-decode" in told["error"]
        assert told["sop_instance_uid"] == str(dataset.SOPInstanceUID)
        assert len(list((proxy.state_folder / "spool" / "failed" / "VIEWER").iterdir())) == 1
        assert there.received() == []
    finally:
        there.stop()


def test_destinations_that_hang_or_refuse_and_files_that_are_spoilt_hold_up_nobody(
    proxy: Proxy, tmp_path: Path
) -> None:
    there = Store(tmp_path / "store")
    there.start()
    with socket.create_server(("127.0.0.1", 0)) as hangs, socket.create_server(("127.0.0.1", 0)) as refuses:
        threading.Thread(target=_refuse_all, args=(refuses,), daemon=True).start()
        proxy.rules = there.named("VIEWER") + '[[rule]]\ncopy = ["A_HANGS", "A_REFUSES", "VIEWER"]\n'
        for name, listener in (("A_HANGS", hangs), ("A_REFUSES", refuses)):
            proxy.rules += f'[destinations.{name}]\nhost = "127.0.0.1"\nport = {listener.getsockname()[1]}\n'
        spoilt = proxy.state_folder / "spool" / "to" / "VIEWER"
        spoilt.mkdir(parents=True)
        (spoilt / "0-1-2-aa.dcm").write_bytes(bytes(300))
        proxy.start()
        path = tmp_path / "1.dcm"
        path.write_bytes(part10(ct_series(1)[0]))
        try:
            assert dcmtk("storescu", proxy.port, path).returncode == 0
            wait_until(lambda: proxy.counts().get("forwarded:VIEWER") == 1, 120, "who takes it has it")
            assert len(there.received()) == 1
            assert [one.name for one in (spoilt.parents[1] / "failed" / "VIEWER").iterdir()] == ["0-1-2-aa.dcm"]
            wait_until(lambda: "association-rejected" in _why(proxy, "A_REFUSES"), 60, "it is said why it waits")
            wait_until(lambda: _why(proxy, "A_HANGS") != "", 90, "and that the other does not answer")
            assert [len(proxy.waiting(name)) for name in ("A_HANGS", "A_REFUSES", "VIEWER")] == [1, 1, 0]
        finally:
            there.stop()


def _why(proxy: Proxy, destination: str) -> str:
    """Why copies for a destination wait, as the page shows it."""
    return str(journal.read_state(proxy.state_folder).get("destinations", {}).get(destination, ""))


def _refuse_all(listener: socket.socket) -> None:
    """Rejects every association for good: the calling AE title is not recognized."""
    while True:
        try:
            peer, _ = listener.accept()
        except OSError:
            return
        with peer:
            upper_layer.read_pdu(peer, 1 << 20, time.monotonic() + 30)
            peer.sendall(bytes([3, 0, 0, 0, 0, 4, 0, 1, 1, 3]))


RULES = {
    "copied": COPY_ALL,
    "coerced": COPY_ALL + '[[rule]]\nset = { InstitutionName = "Hospital" }\n',
    "coerced in fragments": COPY_ALL + '[[rule]]\nset = { InstitutionName = "Hospital" }\n',
    "for research": '[[rule]]\ncopy = "VIEWER"\ndeidentify = true\n',
}


@pytest.mark.parametrize("how", RULES)
def test_memory_stays_flat_whatever_the_size(tmp_path: Path, how: str) -> None:
    """200 MB through a worker of which at most the queue of the tap, 64 MB, and as little again is held."""
    in_fragments = how == "coerced in fragments"
    old, there = Store(tmp_path / "old", ("+xt",) if in_fragments else ()), Store(tmp_path / "store")
    old.start()
    there.start()
    one = Proxy(tmp_path / "proxy", old.port, rules=there.named("VIEWER") + RULES[how])
    (dataset,) = ct_series(1, size=512)
    dataset.NumberOfFrames, dataset.PixelData = 400, os.urandom(MEGABYTE) * 200
    if in_fragments:  # as a slide of tiles: thousands of small pieces all over the file
        dataset.PixelData = encapsulate([os.urandom(20_000)] * 10_000, has_bot=False)
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
    uid, path = str(dataset.SOPInstanceUID), tmp_path / "1.dcm"
    path.write_bytes(part10(dataset))
    try:
        one.start()
        before = memory(one)
        sent = dcmtk("storescu", one.port, *(["-xt"] if in_fragments else []), path)
        assert sent.returncode == 0, sent.stderr
        if how == "for research":
            wait_until(lambda: one.counts().get("forwarded:VIEWER") == 1, 120, "it is forwarded")
            assert there.received()[0].SOPInstanceUID == pseudonym_uid(uid, b"a secret of the tests")
        else:
            wait_until(lambda: len(one.waiting()) == 1, 120, "it is copied")
        assert memory(one) - before < 110 * MEGABYTE
        (received,) = old.received()
        assert received.PixelData == dataset.PixelData
        assert (received.get("InstitutionName") == "Hospital") is how.startswith("coerced")
    finally:
        for each in (one, old, there):
            each.stop()


def memory(proxy: Proxy) -> int:
    """The most that the worker ever had, in bytes."""
    status = Path(f"/proc/{proxy.worker_pids()[-1]}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10

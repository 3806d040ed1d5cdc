"""What goes over by C-MOVE: transcoded where it must be, in many contexts, and very large."""

import io
import os
import struct
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLSLossless,
)
from pynetdicom import AllStoragePresentationContexts, evt
from pynetdicom.dsutils import encode
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.sop_class import (
    CTImageStorage,
    SecondaryCaptureImageStorage,
)

from deploy.processes import free_port, port_is_free, wait_until
from pacs_node.dimse.destination import proposals
from pacs_node.dimse.negotiation import SyntaxRules
from standards.sop_classes import STORAGE_SOP_CLASSES
from standards.transfer_syntaxes import STORAGE_TRANSFER_SYNTAXES
from tests.factories.dicom import compressed, ct_series
from tests.node.conftest import NodeProcess, need
from tests.node.raw_association import CT, DEFLATED, RawAssociation
from tests.node.retrieving import (
    MOVE,
    UNCOMPRESSED,
    Receiver,
    counts,
    keys,
    move,
    open_association,
    receivers,
    store,
)


@pytest.fixture
def receiver(node_process: NodeProcess) -> Iterator[Callable[..., Receiver]]:
    """Make receivers that the shared node knows."""
    with receivers(node_process) as make:
        yield make


def as_stored(sets: Sequence[Dataset], syntax: UID) -> Sequence[Dataset]:
    for dataset in sets:
        dataset.file_meta.TransferSyntaxUID = syntax
    return sets


def colour_jpeg() -> tuple[FileDataset, np.ndarray]:
    """A JPEG baseline image of 64×48 in YBR, and its RGB pixels as encoded from."""
    pil = pytest.importorskip("PIL.Image")
    rows, columns = np.mgrid[0:48, 0:64]
    rgb = np.stack((rows * 5, columns * 4, 255 - rows * 5), axis=-1).astype(np.uint8)
    stream = io.BytesIO()
    pil.fromarray(rgb).save(stream, "JPEG", quality=95, subsampling=0)
    (dataset,) = ct_series(1)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PlanarConfiguration = 48, 64, 3, 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PhotometricInterpretation = "YBR_FULL_422"
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dataset, rgb


@pytest.mark.parametrize("target", UNCOMPRESSED)
def test_a_peer_that_refuses_the_stored_syntax_gets_the_same_pixels_uncompressed(
    node_process: NodeProcess, receiver: Callable[..., Receiver], target: UID
) -> None:
    one = receiver(f"OLD{target[-1]}", [(CTImageStorage, [target])])
    plain = ct_series(1)[0]
    study = str(plain.StudyInstanceUID)
    expected = {str(plain.SOPInstanceUID): plain.PixelData}
    jpeg_ls = ct_series(1)[0]
    jpeg_ls.StudyInstanceUID, jpeg_ls.SeriesInstanceUID = study, plain.SeriesInstanceUID
    expected[str(jpeg_ls.SOPInstanceUID)] = jpeg_ls.PixelData
    deflated = ct_series(1)[0]
    deflated.StudyInstanceUID, deflated.SeriesInstanceUID = study, plain.SeriesInstanceUID
    expected[str(deflated.SOPInstanceUID)] = deflated.PixelData
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "T-D1100", "SRT", "голова"
    for dataset in (plain, jpeg_ls, deflated):
        dataset.AnatomicRegionSequence = [item]
    store(node_process, [plain, compressed(jpeg_ls), *as_stored([deflated], DeflatedExplicitVRLittleEndian)])
    status, _ = move(node_process, keys(StudyInstanceUID=study), one.ae_title)[-1]
    assert (status.Status, status.NumberOfCompletedSuboperations) == (0, 3)
    assert {str(dataset.SOPInstanceUID): dataset.PixelData for dataset in one.sets} == expected
    for received in one.sets:
        assert received.file_meta.TransferSyntaxUID == target
        assert received.AnatomicRegionSequence[0].CodeMeaning == "голова"
        assert str(received.PatientName) == str(plain.PatientName)
        assert "LossyImageCompression" not in received
    log = node_process.log.read_text()
    assert f"decoded from {JPEGLSLossless} to {target}" in log
    rows = node_process.sql("SELECT detail FROM clinic_auditentry WHERE action = 'study.sent' AND entity = ?", study)
    assert "decoded from" in str(rows)


@pytest.mark.parametrize(
    ("columns", "syntax"),
    [
        ({"quirks": ["uncompressed-only"]}, ExplicitVRLittleEndian),
        ({"forbidden_transfer_syntaxes": f"{JPEGLSLossless},{ExplicitVRLittleEndian}"}, ImplicitVRLittleEndian),
        ({}, JPEGLSLossless),
    ],
)
def test_the_registry_says_what_a_destination_is_offered(
    node_process: NodeProcess, receiver: Callable[..., Receiver], columns: dict[str, Any], syntax: UID
) -> None:
    one = receiver(f"SAID{syntax[-2:].strip('.')}", [(CTImageStorage, [*UNCOMPRESSED, JPEGLSLossless])])
    node_process.admit(one.ae_title, **columns)
    dataset = ct_series(1)[0]
    pixels = dataset.PixelData
    store(node_process, [compressed(dataset)])
    status, _ = move(node_process, keys(StudyInstanceUID=dataset.StudyInstanceUID), one.ae_title)[-1]
    assert status.Status == 0
    assert one.sets[0].file_meta.TransferSyntaxUID == syntax
    assert one.sets[0].PixelData == (dataset.PixelData if syntax == JPEGLSLossless else pixels)


def test_big_endian_pixels_are_turned_for_a_peer_that_cannot(
    node_process: NodeProcess, receiver: Callable[..., Receiver]
) -> None:
    one = receiver("LITTLE", [(CTImageStorage, [ImplicitVRLittleEndian])])
    dataset = ct_series(1)[0]
    little = dataset.PixelData
    dataset.PixelData = np.frombuffer(little, "<u2").astype(">u2").tobytes()
    dataset.set_original_encoding(is_implicit_vr=False, is_little_endian=False)
    store(node_process, as_stored([dataset], ExplicitVRBigEndian))
    status, _ = move(node_process, keys(StudyInstanceUID=dataset.StudyInstanceUID), "LITTLE")[-1]
    assert status.Status == 0
    assert one.sets[0].PixelData == little
    assert one.sets[0].Rows == dataset.Rows


@pytest.mark.parametrize("max_pdu", [16382, 0], ids=["in copies", "from the file"])
def test_a_data_set_of_odd_length_goes_over_in_fragments_of_even_length(
    node_process: NodeProcess, receiver: Callable[..., Receiver], max_pdu: int
) -> None:
    one = receiver(f"ODD{max_pdu}", [(CTImageStorage, [DeflatedExplicitVRLittleEndian])], max_pdu=max_pdu)
    image = ct_series(1)[0]
    for number in range(1000):
        image.ImageComments = "x" * number
        deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        stored = deflate.compress(encode(image, is_implicit_vr=False, is_little_endian=True) or b"") + deflate.flush()
        if len(stored) % 2:
            break
    with RawAssociation(node_process, [(CT, DEFLATED)]) as association:
        assert association.store(CT, image.SOPInstanceUID, stored)["Status"] == 0
    status, _ = move(node_process, keys(StudyInstanceUID=image.StudyInstanceUID), one.ae_title)[-1]
    assert status.Status == 0
    assert one.requests[0].DataSet.getvalue() == stored + b"\0"
    assert one.sets[0].PixelData == image.PixelData


def test_a_lossy_image_that_is_decoded_stays_marked_as_lossy_and_its_colours_are_right(
    node_process: NodeProcess, receiver: Callable[..., Receiver]
) -> None:
    one = receiver("COLOUR", [(SecondaryCaptureImageStorage, UNCOMPRESSED)])
    dataset, rgb = colour_jpeg()
    store(node_process, [dataset])
    status, _ = move(node_process, keys(StudyInstanceUID=dataset.StudyInstanceUID), "COLOUR")[-1]
    assert status.Status == 0
    assert "lossy before" in node_process.log.read_text()
    received = one.sets[0]
    assert received.LossyImageCompression == "01"
    assert received.PlanarConfiguration == 0
    assert received.PhotometricInterpretation in ("RGB", "YBR_FULL")
    shown = received.pixel_array  # in RGB, as pydicom converts YBR_FULL
    assert np.abs(shown.astype(int) - rgb.astype(int)).max() < 16


def test_a_video_is_never_decoded_by_surprise(node_process: NodeProcess, receiver: Callable[..., Receiver]) -> None:
    receiver("NOVIDEO", [(SecondaryCaptureImageStorage, UNCOMPRESSED)])
    dataset, _ = colour_jpeg()
    dataset.file_meta.TransferSyntaxUID = MPEG2MPML
    store(node_process, [dataset])
    status, identifier = move(node_process, keys(StudyInstanceUID=dataset.StudyInstanceUID), "NOVIDEO")[-1]
    assert status.Status == 0xA702
    assert identifier.FailedSOPInstanceUIDList == dataset.SOPInstanceUID
    assert "cannot-transcode" in status.ErrorComment


def test_more_than_128_contexts_are_proposed_by_several_associations() -> None:
    rules = SyntaxRules(frozenset(STORAGE_TRANSFER_SYNTAXES))
    pairs = [
        (uid, syntax) for uid in STORAGE_SOP_CLASSES[:70] for syntax in (str(JPEGLSLossless), "1.2.840.10008.1.2.1")
    ]
    parts = proposals(pairs, rules)
    assert [sum(len(contexts) for contexts in part.values()) for part in parts] == [126, 84]
    assert {uid for part in parts for uid in part} == set(STORAGE_SOP_CLASSES[:70])
    assert parts[0][STORAGE_SOP_CLASSES[0]] == [
        (STORAGE_SOP_CLASSES[0], ("1.2.840.10008.1.2.1",)),
        (STORAGE_SOP_CLASSES[0], (str(JPEGLSLossless),)),
        (STORAGE_SOP_CLASSES[0], ("1.2.840.10008.1.2",)),
    ]


def test_a_study_of_a_hundred_classes_goes_over_whole(
    node_process: NodeProcess, receiver: Callable[..., Receiver]
) -> None:
    classes = sorted(str(context.abstract_syntax) for context in AllStoragePresentationContexts)[:100]
    one = receiver("MANY", [(uid, UNCOMPRESSED) for uid in classes])
    sets = ct_series(len(classes))
    for dataset, uid in zip(sets, classes, strict=True):
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID(uid)
    store(node_process, sets)
    status, _ = move(node_process, keys(StudyInstanceUID=sets[0].StudyInstanceUID), "MANY")[-1]
    assert (status.Status, status.NumberOfCompletedSuboperations) == (0, 100)
    assert {dataset.SOPClassUID for dataset in one.sets} == set(classes)
    assert one.associations == 2


LARGE_MEGABYTES = int(os.environ.get("REGIS_TEST_LARGE_MEGABYTES", "192"))
"""An object of 4,000 MB passes too, but takes a minute and as much disk twice."""


@pytest.fixture
def large(node_process: NodeProcess, tmp_path: Path) -> str:
    """The Study Instance UID of a stored multi-frame object of many megabytes."""
    (dataset,) = ct_series(1)
    dataset.NumberOfFrames = LARGE_MEGABYTES * 2
    dataset.Rows = dataset.Columns = 512
    del dataset.PixelData
    path = tmp_path / "large.dcm"
    dataset.save_as(path, enforce_file_format=True)
    size = LARGE_MEGABYTES * 2 * 512 * 512 * 2
    with path.open("ab") as file:
        file.write(struct.pack("<HH2s2xL", 0x7FE0, 0x0010, b"OW", size))
        file.truncate(file.tell() + size)
    done = node_process.dcmtk(need("storescu"), str(path))
    path.unlink()
    assert done.returncode == 0, done.stderr
    return str(dataset.StudyInstanceUID)


def memory(node: NodeProcess, key: str) -> float:
    """Megabytes, as the kernel counts them."""
    assert node.process is not None
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    return int(status.partition(f"{key}:")[2].split()[0]) / 1024


def test_a_large_object_passes_through_at_flat_memory(node_process: NodeProcess, large: str, tmp_path: Path) -> None:
    port = free_port()
    node_process.admit("SINK", host="127.0.0.1", port=port)
    sink = subprocess.Popen([need("storescp"), "--ignore", "-aet", "SINK", str(port)], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: not port_is_free(port), 120, "storescp listens")
        assert node_process.process is not None
        Path(f"/proc/{node_process.process.pid}/clear_refs").write_text("5")  # the peak counts from here
        before = memory(node_process, "VmRSS")
        keys_of_move = ("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={large}")
        done = node_process.dcmtk(need("movescu"), "-S", "-aem", "SINK", *keys_of_move)
        assert done.returncode == 0, done.stderr
        assert memory(node_process, "VmHWM") < before + 30
    finally:
        sink.terminate()
        sink.wait(60)


def test_a_move_is_cancelled_within_a_large_object(
    node_process: NodeProcess, receiver: Callable[..., Receiver], large: str
) -> None:
    begun = threading.Event()

    def received(event: evt.Event) -> None:
        if isinstance(event.pdu, P_DATA_TF):
            begun.set()

    def cancel() -> None:
        assert begun.wait(120)
        association.send_c_cancel(5, query_model=MOVE)

    # pynetdicom takes seconds for all of it
    one = receiver("CRAWLER", handlers=[(evt.EVT_PDU_RECV, received)])
    association = open_association(node_process)
    cancelling = threading.Thread(target=cancel)
    cancelling.start()
    final = [s for s, _ in association.send_c_move(keys(StudyInstanceUID=large), "CRAWLER", MOVE, msg_id=5)][-1]
    cancelling.join()
    association.release()
    assert (final.Status, counts(final)) == (0xFE00, (1, 0, 0, 0))
    assert one.sets == []

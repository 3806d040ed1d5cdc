"""C-MOVE and C-GET: counts, statuses, cancelling, transcoding, and peers that misbehave."""

import io
import os
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
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
from pynetdicom import AE, AllStoragePresentationContexts, build_role, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (
    CTImageStorage,
    PatientRootQueryRetrieveInformationModelGet,
    PatientRootQueryRetrieveInformationModelMove,
    SecondaryCaptureImageStorage,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from deploy.processes import free_port, port_is_free, wait_until
from pacs_node.dimse.destination import proposals
from pacs_node.dimse.negotiation import SyntaxRules
from standards.sop_classes import STORAGE_SOP_CLASSES
from standards.transfer_syntaxes import STORAGE_TRANSFER_SYNTAXES
from standards.uids import new_uid
from tests.factories.dicom import Patient, Study, compressed, ct_series
from tests.node.conftest import AE_TITLE, NodeProcess, need

MOVE, GET = StudyRootQueryRetrieveInformationModelMove, StudyRootQueryRetrieveInformationModelGet
UNCOMPRESSED = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]


def store(node: NodeProcess, sets: Sequence[Dataset]) -> None:
    """By one association for each class and syntax, as a modality would."""
    kinds = sorted({(str(dataset.SOPClassUID), str(dataset.file_meta.TransferSyntaxUID)) for dataset in sets})
    for start in range(0, len(kinds), 120):
        entity = AE(ae_title="MODALITY")
        for sop_class, syntax in kinds[start : start + 120]:
            entity.add_requested_context(sop_class, syntax)
        association = entity.associate("127.0.0.1", node.dicom_port, ae_title=AE_TITLE)
        assert association.is_established
        for dataset in sets:
            if (str(dataset.SOPClassUID), str(dataset.file_meta.TransferSyntaxUID)) in kinds[start : start + 120]:
                assert association.send_c_store(dataset).Status == 0
        association.release()


@dataclass
class Receiver:
    """A Storage SCP that keeps what it gets and behaves as it is told."""

    node: NodeProcess
    ae_title: str
    sets: list[Dataset] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)
    associations: int = 0
    status: Callable[[evt.Event], int] = lambda event: 0
    server: Any = None

    def listen(self, contexts: list[tuple[str, list[UID]]], *, max_pdu: int = 16382) -> None:
        entity = AE(ae_title=self.ae_title)
        entity.maximum_pdu_size = max_pdu
        for sop_class, syntaxes in contexts:
            entity.add_supported_context(sop_class, syntaxes)
        handlers = [(evt.EVT_C_STORE, self._keep), (evt.EVT_ESTABLISHED, self._count)]
        self.server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.node.admit(self.ae_title, host="127.0.0.1", port=self.server.server_address[1])

    def _count(self, _event: evt.Event) -> None:
        self.associations += 1

    def _keep(self, event: evt.Event) -> int:
        status = self.status(event)
        if status in (0, 0xB000):
            dataset = event.dataset
            dataset.file_meta = event.file_meta
            self.sets.append(dataset)
            self.requests.append(event.request)
        return status


@pytest.fixture
def receiver(node_process: NodeProcess) -> Iterator[Callable[..., Receiver]]:
    made: list[Receiver] = []

    def make(ae_title: str, contexts: list[tuple[str, list[UID]]] | None = None, **more: Any) -> Receiver:
        one = Receiver(node_process, ae_title)
        one.listen(contexts or [(CTImageStorage, UNCOMPRESSED)], **more)
        made.append(one)
        return one

    yield make
    for one in made:
        one.server.shutdown()


def after_a_while(_event: evt.Event) -> int:
    """Success, but not at once."""
    time.sleep(0.1)
    return 0


def keys(level: str = "STUDY", **values: str) -> Dataset:
    query = Dataset()
    query.QueryRetrieveLevel = level
    for keyword, value in values.items():
        setattr(query, keyword, value)
    return query


def open_association(node: NodeProcess, model: UID = MOVE, calling: str = "MODALITY", **more: Any) -> Association:
    entity = AE(ae_title=calling)
    entity.add_requested_context(model)
    for sop_class, syntax in more.pop("storage", []):
        entity.add_requested_context(sop_class, syntax)
    association = entity.associate("127.0.0.1", node.dicom_port, ae_title=AE_TITLE, **more)
    assert association.is_established
    return association


def move(node: NodeProcess, query: Dataset, destination: str, model: UID = MOVE) -> list[tuple[Dataset, Any]]:
    association = open_association(node, model)
    responses = list(association.send_c_move(query, destination, model))
    association.release()
    return responses


def counts(status: Dataset) -> tuple[int | None, int, int, int]:
    """Remaining, completed, failed, warning."""
    return (
        status.get("NumberOfRemainingSuboperations"),
        status.NumberOfCompletedSuboperations,
        status.NumberOfFailedSuboperations,
        status.NumberOfWarningSuboperations,
    )


def test_pending_responses_count_down_and_the_last_one_sums_up(
    node_process: NodeProcess, receiver: Callable[..., Receiver]
) -> None:
    one = receiver("COUNTER")
    sets = ct_series(4)
    store(node_process, sets)
    responses = move(node_process, keys(StudyInstanceUID=sets[0].StudyInstanceUID), "COUNTER")
    assert [status.Status for status, _ in responses] == [0xFF00] * 3 + [0]
    assert [counts(status) for status, _ in responses] == [
        (3, 1, 0, 0),
        (2, 2, 0, 0),
        (1, 3, 0, 0),
        (None, 4, 0, 0),
    ]
    assert [dataset.SOPInstanceUID for dataset in one.sets] == [dataset.SOPInstanceUID for dataset in sets]
    request = one.requests[0]
    assert (request.MoveOriginatorApplicationEntityTitle, request.MoveOriginatorMessageID) == ("MODALITY", 1)
    assert one.associations == 1


@pytest.mark.parametrize("max_pdu", [0, 128, 16384, 1 << 24])
def test_objects_go_over_whole_whatever_the_longest_pdu_of_the_peer(
    node_process: NodeProcess, receiver: Callable[..., Receiver], max_pdu: int
) -> None:
    one = receiver(f"PDU{max_pdu}", max_pdu=max_pdu)
    sets = ct_series(2)
    store(node_process, sets)
    responses = move(node_process, keys(StudyInstanceUID=sets[0].StudyInstanceUID), one.ae_title)
    assert responses[-1][0].Status == 0
    assert [dataset.PixelData for dataset in one.sets] == [dataset.PixelData for dataset in sets]


def test_every_level_and_lists_of_uids_choose_what_they_name(
    node_process: NodeProcess, receiver: Callable[..., Receiver]
) -> None:
    one = receiver("CHOOSER")
    patient = Patient(patient_id=f"P-{new_uid()[-12:]}")
    first, second = ct_series(3, study=Study(patient)), ct_series(2, study=Study(patient))
    store(node_process, first + second)
    model = PatientRootQueryRetrieveInformationModelMove
    study, series = str(first[0].StudyInstanceUID), str(first[0].SeriesInstanceUID)
    pair = [str(dataset.SOPInstanceUID) for dataset in first[:2]]
    for query, expected in (
        (keys("PATIENT", PatientID=patient.patient_id), first + second),
        (keys("STUDY", PatientID=patient.patient_id, StudyInstanceUID=study), first),
        (keys("STUDY", PatientID="SOMEBODY-ELSE", StudyInstanceUID=study), []),
        (keys("STUDY", StudyInstanceUID=f"{study}\\{second[0].StudyInstanceUID}"), first + second),
        (keys("SERIES", StudyInstanceUID=study, SeriesInstanceUID=series), first),
        (keys("IMAGE", StudyInstanceUID=study, SeriesInstanceUID=series, SOPInstanceUID="\\".join(pair)), first[:2]),
        (keys("IMAGE", SOPInstanceUID=pair[1]), first[1:2]),
    ):
        one.sets.clear()
        responses = move(node_process, query, "CHOOSER", model)
        assert responses[-1][0].Status == 0
        assert responses[-1][0].NumberOfCompletedSuboperations == len(expected)
        assert {dataset.SOPInstanceUID for dataset in one.sets} == {dataset.SOPInstanceUID for dataset in expected}


@pytest.mark.parametrize(
    ("query", "status"),
    [
        (keys("STUDY"), 0xA900),
        (keys("STUDY", StudyInstanceUID="*"), 0xA900),
        (keys("STUDY", StudyInstanceUID="not.a.uid"), 0xA900),
        (keys("PATIENT", PatientID="X"), 0xA900),
        (keys("FRAME", StudyInstanceUID="1.2.3"), 0xA900),
        (keys("", StudyInstanceUID="1.2.3"), 0xA900),
        (keys("STUDY", StudyInstanceUID="1.2.3.4.5.6"), 0x0000),
    ],
)
@pytest.mark.parametrize("model", [MOVE, GET])
def test_an_identifier_that_does_not_fit_is_refused_by_its_status(
    node_process: NodeProcess, receiver: Callable[..., Receiver], model: UID, query: Dataset, status: int
) -> None:
    receiver("REFUSER")
    association = open_association(node_process, model)
    if model == MOVE:
        (answer,) = [status for status, _ in association.send_c_move(query, "REFUSER", model)]
    else:
        (answer,) = [status for status, _ in association.send_c_get(query, model)]
    association.release()
    assert answer.Status == status
    assert ("ErrorComment" in answer) is bool(status)


def test_the_refused_association_stays_of_use(node_process: NodeProcess, receiver: Callable[..., Receiver]) -> None:
    receiver("PATIENCE")
    sets = ct_series(1)
    store(node_process, sets)
    association = open_association(node_process)
    assert [s.Status for s, _ in association.send_c_move(keys("STUDY"), "PATIENCE", MOVE)] == [0xA900]
    assert [s.Status for s, _ in association.send_c_move(keys("STUDY"), "NOWHERE", MOVE)] == [0xA900]
    query = keys(StudyInstanceUID=sets[0].StudyInstanceUID)
    assert [s.Status for s, _ in association.send_c_move(query, "NOWHERE", MOVE)] == [0xA801]
    assert [s.Status for s, _ in association.send_c_move(query, "PATIENCE", MOVE)] == [0]
    association.release()
    assert association.is_released


def test_what_could_not_go_over_is_named_in_the_last_response(
    node_process: NodeProcess, receiver: Callable[..., Receiver]
) -> None:
    one = receiver("PARTIAL")
    sets = ct_series(4)
    store(node_process, sets)
    uid = str(sets[0].StudyInstanceUID)
    lost, refused = str(sets[1].SOPInstanceUID), str(sets[2].SOPInstanceUID)
    paths = {sop: node_process.storage / path for sop, path, _ in node_process.held(uid)}
    paths[lost].unlink()
    one.status = lambda event: 0xA700 if str(event.request.AffectedSOPInstanceUID) == refused else 0
    status, identifier = move(node_process, keys(StudyInstanceUID=uid), "PARTIAL")[-1]
    assert status.Status == 0xB000
    assert counts(status) == (None, 2, 2, 0)
    assert list(identifier.FailedSOPInstanceUIDList) == [lost, refused]
    assert "instance-gone" in status.ErrorComment or "A700" in status.ErrorComment
    one.status = lambda event: 0xB000
    status, _ = move(node_process, keys(StudyInstanceUID=uid), "PARTIAL")[-1]
    assert (status.Status, counts(status)) == (0xB000, (None, 0, 1, 3))


def test_when_nothing_goes_over_the_request_has_failed(
    node_process: NodeProcess, receiver: Callable[..., Receiver]
) -> None:
    sets = ct_series(3)
    store(node_process, sets)
    query = keys(StudyInstanceUID=sets[0].StudyInstanceUID)
    node_process.admit("AWAY", host="127.0.0.1", port=free_port())
    status, identifier = move(node_process, query, "AWAY")[-1]
    assert (status.Status, counts(status)) == (0xA702, (None, 0, 3, 0))
    assert set(identifier.FailedSOPInstanceUIDList) == {dataset.SOPInstanceUID for dataset in sets}
    assert "connection-failed" in status.ErrorComment
    receiver("DEAF", [(SecondaryCaptureImageStorage, UNCOMPRESSED)])
    status, _ = move(node_process, query, "DEAF")[-1]
    assert status.Status == 0xA702
    assert "syntax-refused" in status.ErrorComment


def test_what_the_node_has_let_go_of_fails_by_name(
    make_node: Callable[..., NodeProcess],
) -> None:
    node = make_node()
    sets = ct_series(2)
    store(node, sets)
    node.python(
        "from pacs_node.study_index.actions import release\nfrom pacs_node.study_index.models import Instance\n"
        f"release(list(Instance.objects.select_related('series__study').filter(sop_instance_uid={str(sets[0].SOPInstanceUID)!r})))"
    )
    one = Receiver(node, "ELSEWHERE")
    one.listen([(CTImageStorage, UNCOMPRESSED)])
    try:
        status, identifier = move(node, keys(StudyInstanceUID=sets[0].StudyInstanceUID), "ELSEWHERE")[-1]
    finally:
        one.server.shutdown()
    assert status.Status == 0xB000
    assert identifier.FailedSOPInstanceUIDList == sets[0].SOPInstanceUID
    assert [dataset.SOPInstanceUID for dataset in one.sets] == [sets[1].SOPInstanceUID]


def test_a_move_is_cancelled_in_its_midst(node_process: NodeProcess, receiver: Callable[..., Receiver]) -> None:
    one = receiver("SLOW")
    one.status = after_a_while
    sets = ct_series(40)
    store(node_process, sets)
    association = open_association(node_process)
    statuses = []
    for status, _ in association.send_c_move(keys(StudyInstanceUID=sets[0].StudyInstanceUID), "SLOW", MOVE, msg_id=7):
        statuses.append(status)
        if len(statuses) == 2:
            association.send_c_cancel(7, query_model=MOVE)
    association.release()
    remaining, completed, failed, _ = counts(statuses[-1])
    assert statuses[-1].Status == 0xFE00
    assert remaining is not None
    assert (completed + remaining, failed) == (40, 0)
    assert len(one.sets) == completed < 10


def test_a_get_is_cancelled_in_its_midst(node_process: NodeProcess) -> None:
    sets = ct_series(30)
    store(node_process, sets)
    received: list[str] = []

    def keep(event: evt.Event) -> int:
        received.append(str(event.request.AffectedSOPInstanceUID))
        if len(received) == 3:
            association.send_c_cancel(9, query_model=GET)
        time.sleep(0.02)
        return 0

    association = open_association(
        node_process,
        GET,
        storage=[(CTImageStorage, ExplicitVRLittleEndian)],
        ext_neg=[build_role(CTImageStorage, scp_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, keep)],
    )
    query = keys(StudyInstanceUID=sets[0].StudyInstanceUID)
    final = [status for status, _ in association.send_c_get(query, GET, msg_id=9)][-1]
    association.release()
    assert final.Status == 0xFE00
    assert final.NumberOfCompletedSuboperations == len(received) < 10
    assert final.NumberOfRemainingSuboperations == 30 - len(received)


def test_a_get_without_the_role_of_an_scp_fails_with_that_reason(node_process: NodeProcess) -> None:
    sets = ct_series(2)
    store(node_process, sets)
    association = open_association(node_process, GET, storage=[(CTImageStorage, ExplicitVRLittleEndian)])
    query = keys(StudyInstanceUID=sets[0].StudyInstanceUID)
    final = [status for status, _ in association.send_c_get(query, GET)][-1]
    association.release()
    assert (final.Status, final.NumberOfFailedSuboperations) == (0xA702, 2)
    assert "class-not-negotiated" in final.ErrorComment


@pytest.mark.parametrize("option", ["", "+xs", "+xi", "+xb", "+xd", "+xt", "+xv"])
def test_getscu_gets_all_whatever_it_likes_best(node_process: NodeProcess, tmp_path: Path, option: str) -> None:
    plain, other = ct_series(2)
    pixels = {str(plain.SOPInstanceUID): plain.PixelData, str(other.SOPInstanceUID): other.PixelData}
    store(node_process, [plain, compressed(other)])
    keys_of_get = ("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={plain.StudyInstanceUID}")
    words = [option] if option else []
    done = node_process.dcmtk(need("getscu"), *words, "-S", "-od", str(tmp_path), *keys_of_get)
    assert done.returncode == 0, done.stderr
    received = [dcmread(path) for path in tmp_path.iterdir()]
    swapped = {uid: np.frombuffer(value, "<u2").astype(">u2").tobytes() for uid, value in pixels.items()}
    for dataset in received:
        is_big = dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
        assert dataset.PixelData == (swapped if is_big else pixels)[str(dataset.SOPInstanceUID)]
    assert len(received) == 2


def test_a_get_by_patient_comes_back_over_its_own_association(node_process: NodeProcess) -> None:
    patient = Patient(patient_id=f"G-{new_uid()[-12:]}")
    sets = ct_series(3, study=Study(patient))
    store(node_process, sets)
    received: list[Dataset] = []
    model = PatientRootQueryRetrieveInformationModelGet

    def keep(event: evt.Event) -> int:
        received.append(event.dataset)
        return 0xB007 if len(received) == 1 else 0

    association = open_association(
        node_process,
        model,
        storage=[(CTImageStorage, ImplicitVRLittleEndian)],
        ext_neg=[build_role(CTImageStorage, scp_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, keep)],
    )
    final = [status for status, _ in association.send_c_get(keys("PATIENT", PatientID=patient.patient_id), model)][-1]
    association.release()
    assert (final.Status, counts(final)) == (0xB000, (None, 2, 0, 1))
    assert [dataset.PixelData for dataset in received] == [dataset.PixelData for dataset in sets]


def test_an_association_that_the_destination_drops_is_opened_again_for_the_rest(
    node_process: NodeProcess, receiver: Callable[..., Receiver]
) -> None:
    one = receiver("DROPPER")
    sets = ct_series(5)
    store(node_process, sets)

    def drop_second(event: evt.Event) -> int:
        if str(event.request.AffectedSOPInstanceUID) == str(sets[1].SOPInstanceUID):
            event.assoc.abort()
        return 0

    one.status = drop_second
    status, identifier = move(node_process, keys(StudyInstanceUID=sets[0].StudyInstanceUID), "DROPPER")[-1]
    assert (status.Status, counts(status)) == (0xB000, (None, 4, 1, 0))
    assert identifier.FailedSOPInstanceUIDList == sets[1].SOPInstanceUID
    assert one.associations == 2


def test_an_asker_that_goes_away_ends_its_move(node_process: NodeProcess, receiver: Callable[..., Receiver]) -> None:
    one = receiver("LONGER")
    one.status = after_a_while
    sets = ct_series(30)
    store(node_process, sets)
    association = open_association(node_process)
    for status, _ in association.send_c_move(keys(StudyInstanceUID=sets[0].StudyInstanceUID), "LONGER", MOVE):
        assert status.Status == 0xFF00
        association.abort()
        break
    time_was = time.monotonic()
    wait_until(lambda: "retrieve-ended-early" in node_process.log.read_text(), 20, "the move ends")
    assert time.monotonic() - time_was < 10
    assert len(one.sets) < 20


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


def test_pixels_that_are_not_what_their_syntax_says_are_not_passed_off_as_uncompressed(
    node_process: NodeProcess, receiver: Callable[..., Receiver]
) -> None:
    receiver("MISLED", [(SecondaryCaptureImageStorage, UNCOMPRESSED)])
    dataset, _ = colour_jpeg()
    dataset["PixelData"].is_undefined_length = False
    store(node_process, [dataset])
    status, _ = move(node_process, keys(StudyInstanceUID=dataset.StudyInstanceUID), "MISLED")[-1]
    assert status.Status == 0xA702
    assert "cannot-transcode" in status.ErrorComment


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
        wait_until(lambda: not port_is_free(port), 30, "storescp listens")
        assert node_process.process is not None
        Path(f"/proc/{node_process.process.pid}/clear_refs").write_text("5")  # the peak counts from here
        before = memory(node_process, "VmRSS")
        keys_of_move = ("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={large}")
        done = node_process.dcmtk(need("movescu"), "-S", "-aem", "SINK", *keys_of_move)
        assert done.returncode == 0, done.stderr
        assert memory(node_process, "VmHWM") < before + 30
    finally:
        sink.terminate()
        sink.wait(10)


def test_a_move_is_cancelled_within_a_large_object(
    node_process: NodeProcess, receiver: Callable[..., Receiver], large: str
) -> None:
    one = receiver("CRAWLER")  # pynetdicom takes seconds for it
    association = open_association(node_process)
    cancel = threading.Timer(0.3, lambda: association.send_c_cancel(5, query_model=MOVE))
    cancel.start()
    begun = time.monotonic()
    final = [s for s, _ in association.send_c_move(keys(StudyInstanceUID=large), "CRAWLER", MOVE, msg_id=5)][-1]
    took = time.monotonic() - begun
    association.release()
    assert (final.Status, counts(final)) == (0xFE00, (1, 0, 0, 0))
    assert took < 2
    assert one.sets == []

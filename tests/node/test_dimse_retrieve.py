"""C-MOVE and C-GET: counts, statuses, cancelling, and peers that misbehave."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import build_role, evt
from pynetdicom.sop_class import (
    CTImageStorage,
    PatientRootQueryRetrieveInformationModelGet,
    PatientRootQueryRetrieveInformationModelMove,
    SecondaryCaptureImageStorage,
)

from deploy.processes import free_port, wait_until
from standards.uids import new_uid
from tests.factories.dicom import Patient, Study, compressed, ct_series
from tests.node.conftest import NodeProcess, need
from tests.node.retrieving import (
    GET,
    MOVE,
    UNCOMPRESSED,
    Receiver,
    after_a_while,
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
    assert len(one.sets) == completed < 40


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
    before = node_process.log.stat().st_size
    association = open_association(node_process)
    for status, _ in association.send_c_move(keys(StudyInstanceUID=sets[0].StudyInstanceUID), "LONGER", MOVE):
        assert status.Status == 0xFF00
        association.abort()
        break
    wait_until(lambda: b"retrieve-ended-early" in node_process.log.read_bytes()[before:], 120, "the move ends")
    assert len(one.sets) < 30

"""C-FIND, C-MOVE and C-GET by real clients against a node in its own process."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import (
    CTImageStorage,
    PatientRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from deploy.processes import free_port, port_is_free, wait_until
from tests.factories.dicom import Patient, Study, compressed, ct_series, encapsulated_pdf, part10
from tests.node.conftest import AE_TITLE, NodeProcess, need

Find = Callable[..., list[Dataset]]


@pytest.fixture(scope="module")
def studies(node_process: NodeProcess) -> dict[str, Study]:
    """Three studies of two patients, one of them written in ISO 8859-5, sent by a real client."""
    kept = {
        "ct": Study(Patient(patient_id="Q-1"), accession_number="Q-A1", date="20261101"),
        "old": Study(Patient(patient_id="Q-1"), accession_number="Q-A2", date="20250301", character_set="ISO_IR 144"),
        "other": Study(Patient("Ivanova^Anna", "Q-2", "19800101", "F"), accession_number="Q-B1", date="20261102"),
    }
    sets = [
        *ct_series(3, study=kept["ct"]),
        encapsulated_pdf(study=kept["ct"]),
        *ct_series(2, study=kept["old"]),
        *ct_series(1, study=kept["other"]),
    ]
    entity = AE(ae_title="MODALITY")
    for uid in {str(dataset.SOPClassUID) for dataset in sets}:
        entity.add_requested_context(uid, ExplicitVRLittleEndian)
    association = entity.associate("127.0.0.1", node_process.dicom_port, ae_title=AE_TITLE)
    assert {association.send_c_store(dataset).Status for dataset in sets} == {0}
    association.release()
    return kept


@pytest.fixture
def find(node_process: NodeProcess, studies: dict[str, Study]) -> Find:
    """Ask by C-FIND; keywords are keys. Answers come in the order the node gives them."""

    def ask(level: str, *, root: str = "study", charset: str = "ISO_IR 192", **keys: str) -> list[Dataset]:
        model = {
            "study": StudyRootQueryRetrieveInformationModelFind,
            "patient": PatientRootQueryRetrieveInformationModelFind,
        }[root]
        query = Dataset()
        query.SpecificCharacterSet = charset
        query.QueryRetrieveLevel = level
        for keyword, value in keys.items():
            setattr(query, keyword, value)
        entity = AE(ae_title="MODALITY")
        entity.add_requested_context(model)
        association = entity.associate("127.0.0.1", node_process.dicom_port, ae_title=AE_TITLE)
        found = []
        for status, answer in association.send_c_find(query, model):
            if status.Status == 0xFF00:
                found.append(answer)
            else:
                assert status.Status == 0, status
        association.release()
        return found

    return ask


@pytest.mark.parametrize(
    "name",
    [
        "щеголев*",
        "ЩЁГОЛЕВ*",
        "Щёголев-Ящуржинский^Пётр^Ёжикович",
        "*ящуржинский*",
        "Щ?голев*",
        "Shchegolev*",
        "*YASHCHURZH*",
    ],
)
def test_a_name_is_found_whatever_case_yo_or_script(find: Find, name: str) -> None:
    found = find("STUDY", PatientName=name, PatientID="Q-1", StudyInstanceUID="", AccessionNumber="")
    assert {answer.AccessionNumber for answer in found} == {"Q-A1", "Q-A2"}
    assert {str(answer.PatientName) for answer in found} == {"Щёголев-Ящуржинский^Пётр^Ёжикович"}


def test_another_name_is_not_found(find: Find) -> None:
    assert find("STUDY", PatientName="Щеголева*", PatientID="Q-1") == []


def test_answers_come_in_the_character_set_of_the_question(find: Find) -> None:
    for charset in ("ISO_IR 144", "ISO_IR 192"):
        (answer,) = find("STUDY", charset=charset, AccessionNumber="Q-A1", PatientName="", StudyDescription="")
        assert answer.SpecificCharacterSet == charset
        assert str(answer.PatientName) == "Щёголев-Ящуржинский^Пётр^Ёжикович"
        assert answer.StudyDescription == "КТ головы"
    (latin,) = find("STUDY", charset="ISO_IR 100", AccessionNumber="Q-A1", PatientName="")
    assert "?" not in str(latin.PatientName)
    assert str(latin.PatientName).startswith("Shch")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"StudyDate": "20261101-20261130"}, {"Q-A1", "Q-B1"}),
        ({"StudyDate": "-20251231"}, {"Q-A2"}),
        ({"StudyDate": "20261102"}, {"Q-B1"}),
        ({"StudyTime": "1000-1100"}, {"Q-A1", "Q-A2", "Q-B1"}),
        ({"StudyTime": "110000-"}, set()),
        ({"ModalitiesInStudy": "DOC"}, {"Q-A1"}),
        ({"ModalitiesInStudy": "C*"}, {"Q-A1", "Q-A2", "Q-B1"}),
        ({"PatientID": "Q-?"}, {"Q-A1", "Q-A2", "Q-B1"}),
        ({"PatientID": "q-1"}, set()),
        ({"PatientBirthDate": "19800101"}, {"Q-B1"}),
    ],
)
def test_studies_are_matched_by_date_time_modality_and_wildcard(
    find: Find, keys: dict[str, str], expected: set[str]
) -> None:
    found = find("STUDY", **{"AccessionNumber": "Q-*", **keys})
    assert {answer.AccessionNumber for answer in found} == expected


def test_a_list_of_uids_finds_each(find: Find, studies: dict[str, Study]) -> None:
    wanted = [studies["ct"].study_instance_uid, studies["other"].study_instance_uid]
    found = find("STUDY", StudyInstanceUID="\\".join(wanted))
    assert {answer.StudyInstanceUID for answer in found} == set(wanted)


def test_counts_and_modalities_are_given_when_asked_for(find: Find) -> None:
    (answer,) = find(
        "STUDY",
        AccessionNumber="Q-A1",
        ModalitiesInStudy="",
        NumberOfStudyRelatedSeries="",
        NumberOfStudyRelatedInstances="",
    )
    assert sorted(answer.ModalitiesInStudy) == ["CT", "DOC"]
    assert (answer.NumberOfStudyRelatedSeries, answer.NumberOfStudyRelatedInstances) == (2, 4)
    assert (answer.RetrieveAETitle, answer.InstanceAvailability) == (AE_TITLE, "ONLINE")


def test_patients_series_and_instances_are_found_at_their_levels(find: Find, studies: dict[str, Study]) -> None:
    patients = find("PATIENT", root="patient", PatientID="Q-*", NumberOfPatientRelatedStudies="")
    assert {answer.PatientID: answer.NumberOfPatientRelatedStudies for answer in patients} == {"Q-1": 2, "Q-2": 1}
    uid = studies["ct"].study_instance_uid
    series = find("SERIES", StudyInstanceUID=uid, Modality="CT", NumberOfSeriesRelatedInstances="", ProtocolName="")
    assert [answer.NumberOfSeriesRelatedInstances for answer in series] == [3]
    assert series[0].ProtocolName in (None, "")
    images = find(
        "IMAGE", StudyInstanceUID=uid, SeriesInstanceUID=series[0].SeriesInstanceUID, InstanceNumber="", ImageType=""
    )
    assert [answer.InstanceNumber for answer in images] == [1, 2, 3]
    assert list(images[0].ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL"]


def test_a_date_that_is_none_is_refused_with_its_reason(node_process: NodeProcess, studies: dict[str, Study]) -> None:
    done = node_process.dcmtk(
        need("findscu"), "-d", "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyDate=yesterday"
    )
    assert b"invalid-range" in done.stdout + done.stderr


@pytest.fixture
def destination(node_process: NodeProcess, tmp_path: Path) -> Iterator[Path]:
    """A storescp of DCMTK that the node knows as DEST."""
    need("storescp")
    port, folder = free_port(), tmp_path / "received"
    folder.mkdir()
    node_process.admit("DEST", host="127.0.0.1", port=port)
    process = subprocess.Popen(
        ["storescp", "-aet", "DEST", "+xa", "-od", str(folder), str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: not port_is_free(port), 60, "storescp listens")
        yield folder
    finally:
        process.terminate()
        process.wait(10)


def test_movescu_gets_a_study_sent_to_a_known_destination(
    node_process: NodeProcess, studies: dict[str, Study], destination: Path
) -> None:
    uid = studies["ct"].study_instance_uid
    keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={uid}")
    done = node_process.dcmtk(need("movescu"), "-S", "-aem", "DEST", *keys)
    assert done.returncode == 0, done.stderr
    received = {str(dcmread(path).SOPInstanceUID): dcmread(path) for path in destination.iterdir()}
    stored = {str(dcmread(path).SOPInstanceUID): dcmread(path) for path in node_process.files(uid)}
    assert set(received) == set(stored)
    for sop_instance_uid, dataset in received.items():
        assert dataset.file_meta.TransferSyntaxUID == stored[sop_instance_uid].file_meta.TransferSyntaxUID
        assert dataset.get("PixelData") == stored[sop_instance_uid].get("PixelData")


def test_a_move_to_an_unknown_destination_is_refused(node_process: NodeProcess, studies: dict[str, Study]) -> None:
    model = StudyRootQueryRetrieveInformationModelMove
    entity = AE(ae_title="MODALITY")
    entity.add_requested_context(model)
    association = entity.associate("127.0.0.1", node_process.dicom_port, ae_title=AE_TITLE)
    query = Dataset()
    query.QueryRetrieveLevel = "STUDY"
    query.StudyInstanceUID = studies["ct"].study_instance_uid
    statuses = [status.Status for status, _ in association.send_c_move(query, "NOWHERE", model)]
    association.release()
    assert statuses == [0xA801]


def test_getscu_gets_a_series_over_its_own_association(
    node_process: NodeProcess, studies: dict[str, Study], tmp_path: Path
) -> None:
    uid = studies["old"].study_instance_uid
    keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={uid}")
    done = node_process.dcmtk(need("getscu"), "-S", "-od", str(tmp_path), *keys)
    assert done.returncode == 0, done.stderr
    received = {str(dcmread(path).SOPInstanceUID) for path in tmp_path.iterdir()}
    assert received == {sop for sop, _, _ in node_process.held(uid)}


def test_a_compressed_image_is_decompressed_only_for_a_peer_that_cannot_take_it(node_process: NodeProcess) -> None:
    original = ct_series(1)[0]
    pixels = original.PixelData
    dataset = compressed(original)
    sender = AE(ae_title="MODALITY")
    sender.add_requested_context(CTImageStorage, dataset.file_meta.TransferSyntaxUID)
    association = sender.associate("127.0.0.1", node_process.dicom_port, ae_title=AE_TITLE)
    assert association.send_c_store(dataset).Status == 0
    association.release()
    for syntax in (dataset.file_meta.TransferSyntaxUID, ImplicitVRLittleEndian):
        received: list[Dataset] = []

        def keep(event: evt.Event, into: list[Dataset] = received) -> int:
            answer = event.dataset
            answer.file_meta = event.file_meta
            into.append(answer)
            return 0

        model = StudyRootQueryRetrieveInformationModelGet
        entity = AE(ae_title="MODALITY")
        entity.add_requested_context(model)
        entity.add_requested_context(CTImageStorage, syntax)
        association = entity.associate(
            "127.0.0.1",
            node_process.dicom_port,
            ae_title=AE_TITLE,
            ext_neg=[build_role(CTImageStorage, scp_role=True)],
            evt_handlers=[(evt.EVT_C_STORE, keep)],
        )
        query = Dataset()
        query.QueryRetrieveLevel = "STUDY"
        query.StudyInstanceUID = dataset.StudyInstanceUID
        final = [status for status, _ in association.send_c_get(query, model)][-1]
        association.release()
        assert (final.Status, len(received)) == (0, 1)
        assert received[0].file_meta.TransferSyntaxUID == syntax
        expected = pixels if syntax == ImplicitVRLittleEndian else dataset.PixelData
        assert received[0].PixelData == expected
    assert part10(dataset)

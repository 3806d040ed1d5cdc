"""C-FIND beyond plain keys: extended negotiation, time zones, character sets, cancelling, and what is no query."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation
from pynetdicom.sop_class import (
    PatientRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelFind,
)

from tests.factories.dicom import Patient, Study, ct_series, secondary_capture
from tests.node.conftest import AE_TITLE, NodeProcess, need

STUDY_ROOT = StudyRootQueryRetrieveInformationModelFind
PATIENT_ROOT = PatientRootQueryRetrieveInformationModelFind


@dataclass
class Asked:
    """Answers, their statuses, and the last status with its comment."""

    answers: list[Dataset] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    status: int = -1
    comment: str = ""


@pytest.fixture(scope="module")
def studies(node_process: NodeProcess) -> dict[str, Study]:
    """Studies around midnight of one patient, and one with three writings of a name."""
    kept = {
        "late": Study(Patient(patient_id="F-1"), accession_number="F-A1", date="20261110", time="233000"),
        "early": Study(Patient(patient_id="F-1"), accession_number="F-A2", date="20261111", time="001500"),
        "writings": Study(
            Patient("Yamada^Tarou=山田^太郎=やまだ^たろう", "F-2"), accession_number="F-B1", date="20261112"
        ),
    }
    late = ct_series(3, study=kept["late"])
    for image in late:
        step = Dataset()
        step.ScheduledProcedureStepID, step.RequestedProcedureID = "F-STEP-1", "F-PROC-1"
        image.RequestAttributesSequence = [step]
        image.TimezoneOffsetFromUTC = "+0300"
    early = secondary_capture(study=kept["early"])
    early.TimezoneOffsetFromUTC = "+0300"
    sets = [*late, early, *ct_series(1, study=kept["writings"])]
    entity = AE(ae_title="MODALITY")
    for uid in {str(dataset.SOPClassUID) for dataset in sets}:
        entity.add_requested_context(uid, ExplicitVRLittleEndian)
    association = entity.associate("127.0.0.1", node_process.dicom_port, ae_title=AE_TITLE)
    assert {association.send_c_store(dataset).Status for dataset in sets} == {0}
    association.release()
    return kept


def associated(node: NodeProcess, negotiated: bytes = b"", syntax: str = ImplicitVRLittleEndian) -> Association:
    entity = AE(ae_title="MODALITY")
    offers = []
    for model in (STUDY_ROOT, PATIENT_ROOT):
        entity.add_requested_context(model, syntax)
        if negotiated:
            offer = SOPClassExtendedNegotiation()
            offer.sop_class_uid, offer.service_class_application_information = model, negotiated
            offers.append(offer)
    association = entity.associate("127.0.0.1", node.dicom_port, ae_title=AE_TITLE, ext_neg=offers)
    assert association.is_established
    return association


@pytest.fixture
def association(node_process: NodeProcess, studies: dict[str, Study]) -> Iterator[Association]:
    opened = associated(node_process)
    yield opened
    assert opened.is_established, "a query must never cost the association"
    opened.release()


def ask(
    association: Association, level: str, *, model: str = STUDY_ROOT, charset: str = "ISO_IR 192", **keys: object
) -> Asked:
    query = Dataset()
    query.SpecificCharacterSet = charset
    if level:
        query.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(query, keyword, value)
    return send(association, query, model)


def send(association: Association, query: Dataset, model: str = STUDY_ROOT) -> Asked:
    asked = Asked()
    for status, answer in association.send_c_find(query, model):
        if status.Status in (0xFF00, 0xFF01):
            asked.pending.append(status.Status)
            asked.answers.append(answer)
        else:
            asked.status, asked.comment = status.Status, str(status.get("ErrorComment", ""))
    return asked


def numbers(asked: Asked) -> set[str]:
    assert asked.status == 0, asked
    return {answer.AccessionNumber for answer in asked.answers}


def test_what_is_asked_by_extended_negotiation_is_accepted_byte_by_byte(
    node_process: NodeProcess, studies: dict[str, Study]
) -> None:
    opened = associated(node_process, bytes((1, 1, 1, 1, 1, 1, 1)))
    accepted = {
        item.sop_class_uid: item.service_class_application_information
        for item in opened.acceptor.user_information
        if isinstance(item, SOPClassExtendedNegotiation)
    }
    opened.release()
    assert accepted == {STUDY_ROOT: bytes((1, 1, 1, 1, 0, 1, 1)), PATIENT_ROOT: bytes((1, 1, 1, 1, 0, 1, 1))}
    opened = associated(node_process, bytes((0, 1)))
    (first, *_) = [item for item in opened.acceptor.user_information if isinstance(item, SOPClassExtendedNegotiation)]
    opened.release()
    assert first.service_class_application_information == bytes((0, 1))


def test_a_date_and_a_time_range_are_one_stretch_of_time_where_that_was_negotiated(
    node_process: NodeProcess, studies: dict[str, Study]
) -> None:
    keys = {"AccessionNumber": "F-A*", "StudyDate": "20261110-20261111", "StudyTime": "2300-0100"}
    opened = associated(node_process, bytes((1, 1)))
    assert numbers(ask(opened, "STUDY", **keys)) == {"F-A1", "F-A2"}
    opened.release()
    opened = associated(node_process)
    assert numbers(ask(opened, "STUDY", **keys)) == set()
    opened.release()


def test_fuzzy_names_are_matched_only_where_that_was_negotiated(
    node_process: NodeProcess, studies: dict[str, Study]
) -> None:
    for negotiated, expected in ((bytes((0, 0, 1)), {"F-A1", "F-A2"}), (b"", set())):
        opened = associated(node_process, negotiated)
        found = ask(opened, "STUDY", PatientName="Petr Schegolev", PatientID="F-1", AccessionNumber="")
        opened.release()
        assert numbers(found) == expected


def test_levels_are_asked_for_without_the_keys_above_them(association: Association, studies: dict[str, Study]) -> None:
    series = ask(association, "SERIES", PatientID="F-1", Modality="CT", AccessionNumber="", SeriesInstanceUID="")
    assert [answer.StudyInstanceUID for answer in series.answers] == [studies["late"].study_instance_uid]
    images = ask(association, "IMAGE", AccessionNumber="F-A1", SOPInstanceUID="", InstanceNumber="")
    assert sorted(answer.InstanceNumber for answer in images.answers) == [1, 2, 3]
    patients = ask(
        association,
        "PATIENT",
        model=PATIENT_ROOT,
        PatientID="F-*",
        PatientName="",
        NumberOfPatientRelatedStudies="",
        NumberOfPatientRelatedSeries="",
        NumberOfPatientRelatedInstances="",
    )
    assert [
        (
            answer.PatientID,
            answer.NumberOfPatientRelatedStudies,
            answer.NumberOfPatientRelatedSeries,
            answer.NumberOfPatientRelatedInstances,
        )
        for answer in patients.answers
    ] == [("F-1", 2, 2, 4), ("F-2", 1, 1, 1)]


def test_keys_and_answers_are_in_the_time_zone_of_the_asker(association: Association) -> None:
    keys = {"AccessionNumber": "F-A*", "StudyTime": ""}
    utc = ask(association, "STUDY", **keys, StudyDate="20261110", TimezoneOffsetFromUTC="+0000")
    assert numbers(utc) == {"F-A1", "F-A2"}
    times = {a.AccessionNumber: (a.StudyDate, a.StudyTime, a.TimezoneOffsetFromUTC) for a in utc.answers}
    assert times == {"F-A1": ("20261110", "203000", "+0000"), "F-A2": ("20261110", "211500", "+0000")}
    assert numbers(ask(association, "STUDY", **keys, StudyDate="20261110")) == {"F-A1"}
    assert ask(association, "STUDY", **keys, TimezoneOffsetFromUTC="noon").comment.startswith("invalid-offset")


@pytest.mark.parametrize("name", ["Yamada*", "山田*", "=山田^太郎", "やまだ*", "YAMADA^TAROU=山田*"])
def test_any_writing_of_a_name_finds_it(association: Association, name: str) -> None:
    assert numbers(ask(association, "STUDY", PatientName=name, PatientID="F-2", AccessionNumber="")) == {"F-B1"}


def test_japanese_letters_come_back_in_the_asked_set_and_never_as_question_marks(association: Association) -> None:
    (answer,) = ask(association, "STUDY", PatientName="", AccessionNumber="F-B1").answers
    assert str(answer.PatientName) == "Yamada^Tarou=山田^太郎=やまだ^たろう"
    (answer,) = ask(association, "STUDY", charset="\\ISO 2022 IR 87", PatientName="", AccessionNumber="F-B1").answers
    assert str(answer.PatientName) == "Yamada^Tarou=山田^太郎=やまだ^たろう"
    (answer,) = ask(association, "STUDY", charset="ISO_IR 144", PatientName="", AccessionNumber="F-B1").answers
    assert "?" not in str(answer.PatientName)


def test_keys_inside_a_sequence_are_matched_and_returned(association: Association) -> None:
    item = Dataset()
    item.ScheduledProcedureStepID = "F-STEP-*"
    found = ask(association, "SERIES", PatientID="F-1", RequestAttributesSequence=[item])
    assert found.pending == [0xFF00]
    (step,) = found.answers[0].RequestAttributesSequence
    assert (step.ScheduledProcedureStepID, step.RequestedProcedureID) == ("F-STEP-1", "F-PROC-1")
    item.ScheduledProcedureStepID = "OTHER"
    assert ask(association, "SERIES", PatientID="F-1", RequestAttributesSequence=[item]).answers == []
    universal = ask(association, "SERIES", PatientID="F-1", RequestAttributesSequence=[], ReferencedStudySequence=[])
    assert sorted(len(answer.RequestAttributesSequence) for answer in universal.answers) == [0, 1]
    assert all(answer.ReferencedStudySequence == [] for answer in universal.answers)


def test_a_key_that_cannot_be_matched_is_said_to_be(association: Association) -> None:
    found = ask(association, "STUDY", AccessionNumber="F-A1", KVP="120")
    assert found.pending == [0xFF01]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_answers_are_in_the_transfer_syntax_of_the_question(
    node_process: NodeProcess, studies: dict[str, Study], syntax: str
) -> None:
    opened = associated(node_process, syntax=syntax)
    (answer,) = ask(
        opened, "STUDY", AccessionNumber="F-A1", NumberOfStudyRelatedInstances="", ModalitiesInStudy="", PatientName=""
    ).answers
    opened.release()
    assert (answer.NumberOfStudyRelatedInstances, answer.ModalitiesInStudy) == (3, "CT")
    assert str(answer.PatientName) == studies["late"].patient.name


def test_sop_classes_are_told_and_matched(association: Association) -> None:
    found = ask(association, "STUDY", AccessionNumber="F-A*", SOPClassesInStudy="1.2.840.10008.5.1.4.1.1.7")
    assert [(a.AccessionNumber, a.SOPClassesInStudy) for a in found.answers] == [("F-A2", "1.2.840.10008.5.1.4.1.1.7")]


@pytest.mark.parametrize(
    ("level", "keys", "status"),
    [
        ("", {}, 0xA900),
        ("WARD", {}, 0xA900),
        ("PATIENT", {}, 0xA900),  # there is none in the study root
        ("STUDY", {"StudyDate": "yesterday"}, 0xC000),
        ("STUDY", {"StudyInstanceUID": "1.2.x"}, 0xC007),
        ("SERIES", {"SeriesNumber": "+"}, 0xC000),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value")
def test_what_is_no_query_gets_a_status_with_its_reason(
    association: Association, level: str, keys: dict[str, str], status: int
) -> None:
    asked = Dataset()
    asked.SpecificCharacterSet = "ISO_IR 192"
    if level:
        asked.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        asked.add_new(keyword, "LO" if keyword == "SeriesNumber" else asked_vr(keyword), value)
    found = send(association, asked)
    assert (found.answers, found.status) == ([], status)
    assert found.comment


def asked_vr(keyword: str) -> str:
    return {"StudyDate": "DA", "StudyInstanceUID": "UI"}[keyword]


def test_private_unknown_and_misplaced_keys_do_no_harm(association: Association) -> None:
    query = Dataset()
    query.QueryRetrieveLevel = "STUDY"
    query.AccessionNumber = "F-A1"
    query.SpecificCharacterSet = "NOT A SET"
    query.add_new(0x00091001, "LO", "private")
    query.add_new(0x00090010, "LO", "SOMEBODY")
    query.add_new(0x0008FFFE, "UN", b"\1\2")
    query.add_new(0x00080061, "CS", None)
    query.add_new(0x00201208, "IS", "5")
    query.add_new(0x7FE00010, "OW", b"\0\0")
    query.InstanceNumber = "1"
    found = send(association, query)
    assert numbers(found) == {"F-A1"}
    assert (0x0009, 0x1001) not in found.answers[0]


def test_a_query_is_cancelled_by_findscu(node_process: NodeProcess, studies: dict[str, Study]) -> None:
    keys = ("-k", "QueryRetrieveLevel=IMAGE", "-k", "PatientID=F-1", "-k", "SOPInstanceUID")
    done = node_process.dcmtk(need("findscu"), "-v", "-S", "--cancel", "1", *keys)
    assert done.returncode == 0, done.stderr
    assert b"Cancel" in done.stdout + done.stderr

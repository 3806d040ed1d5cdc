"""Who may open an association, for what, and in which transfer syntaxes: by real clients and on the wire."""

import socket
from collections.abc import Callable, Iterator

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
)
from pynetdicom import AE, build_context, build_role
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import (
    CTImageStorage,
    ModalityWorklistInformationFind,
    PatientRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    Verification,
)

from standards.sop_classes import STORAGE_SOP_CLASSES
from standards.transfer_syntaxes import STORAGE_TRANSFER_SYNTAXES
from tests.factories.dicom import ct_series
from tests.node.conftest import AE_TITLE, NodeProcess

Associate = Callable[..., Association]


@pytest.fixture
def associate(node_process: NodeProcess) -> Iterator[Associate]:
    """Propose contexts to the shared node."""
    opened: list[Association] = []

    def propose(*contexts: PresentationContext, calling: str = "MODALITY", **more: object) -> Association:
        entity = AE(ae_title=calling)
        association = entity.associate(
            "127.0.0.1", node_process.dicom_port, contexts=list(contexts), ae_title=AE_TITLE, **more
        )
        opened.append(association)
        return association

    yield propose
    for association in opened:
        if association.is_established:
            association.release()


@pytest.mark.parametrize(
    "offered",
    [
        [ImplicitVRLittleEndian, ExplicitVRLittleEndian],
        [ExplicitVRBigEndian, ImplicitVRLittleEndian, ExplicitVRLittleEndian],
        [JPEG2000Lossless, JPEGLSLossless, ExplicitVRLittleEndian],
        [ExplicitVRLittleEndian, JPEGLSLossless],
    ],
)
def test_the_first_syntax_that_the_peer_proposes_is_taken(associate: Associate, offered: list[UID]) -> None:
    association = associate(build_context(CTImageStorage, offered))
    assert [context.transfer_syntax for context in association.accepted_contexts] == [[offered[0]]]


def test_what_is_not_supported_is_passed_over(associate: Associate) -> None:
    association = associate(build_context(CTImageStorage, ["1.2.840.10008.1.2.4.94", JPEGBaseline8Bit]))
    assert [context.transfer_syntax for context in association.accepted_contexts] == [[JPEGBaseline8Bit]]


def test_two_contexts_of_one_class_are_each_taken_by_their_own_order(associate: Associate) -> None:
    association = associate(
        build_context(CTImageStorage, [JPEGLSLossless, ExplicitVRLittleEndian]),
        build_context(CTImageStorage, [ImplicitVRLittleEndian, JPEGLSLossless]),
        build_context(CTImageStorage, ["1.2.840.10008.1.2.4.94"]),
    )
    assert [context.transfer_syntax[0] for context in association.accepted_contexts] == [
        JPEGLSLossless,
        ImplicitVRLittleEndian,
    ]
    assert [context.result for context in association.rejected_contexts] == [0x04]


def test_every_storage_class_is_accepted_in_every_syntax(associate: Associate) -> None:
    for start in range(0, len(STORAGE_SOP_CLASSES), 128):
        part = STORAGE_SOP_CLASSES[start : start + 128]
        association = associate(*(build_context(uid, ImplicitVRLittleEndian) for uid in part))
        assert {str(context.abstract_syntax) for context in association.accepted_contexts} == set(part)
        association.release()
    association = associate(*(build_context(CTImageStorage, uid) for uid in STORAGE_TRANSFER_SYNTAXES))
    taken = [str(context.transfer_syntax[0]) for context in association.accepted_contexts]
    assert taken == list(STORAGE_TRANSFER_SYNTAXES)


def test_a_private_or_unknown_class_is_refused_by_its_own_reason_and_the_others_go_on(associate: Associate) -> None:
    association = associate(build_context("1.3.12.2.1107.5.9.1", ImplicitVRLittleEndian), build_context(Verification))
    assert [context.result for context in association.rejected_contexts] == [0x03]
    assert association.send_c_echo().Status == 0


def test_a_private_class_is_stored_where_the_setting_names_it(make_node: Callable[..., NodeProcess]) -> None:
    private = "1.3.12.2.1107.5.9.1"
    node = make_node(REGIS_NODE_PRIVATE_SOP_CLASSES=f" {private}, 1.2.3.4 ")
    dataset = ct_series(1)[0]
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID(private)
    entity = AE(ae_title="MODALITY")
    entity.add_requested_context(private, ExplicitVRLittleEndian)
    association = entity.associate("127.0.0.1", node.dicom_port, ae_title=AE_TITLE)
    assert association.send_c_store(dataset).Status == 0
    association.release()
    assert [sop for sop, _, _ in node.held(dataset.StudyInstanceUID)] == [dataset.SOPInstanceUID]


def test_a_setting_that_names_no_uid_is_refused_at_the_start(make_node: Callable[..., NodeProcess]) -> None:
    node = make_node(start=False, REGIS_NODE_PRIVATE_SOP_CLASSES="1.2.3,CSA")
    done = node.command("check", check=False)
    assert done.returncode != 0
    assert "private_sop_classes" in done.stderr


def test_the_scp_role_is_granted_for_storage_alone(associate: Associate) -> None:
    association = associate(
        build_context(CTImageStorage, ExplicitVRLittleEndian),
        build_context(StudyRootQueryRetrieveInformationModelGet),
        ext_neg=[
            build_role(CTImageStorage, scp_role=True),
            build_role(StudyRootQueryRetrieveInformationModelGet, scp_role=True, scu_role=True),
        ],
    )
    roles = {context.abstract_syntax: (context.as_scu, context.as_scp) for context in association.accepted_contexts}
    assert roles[CTImageStorage] == (False, True)
    assert roles[StudyRootQueryRetrieveInformationModelGet] == (True, False)


def test_forbidden_syntaxes_are_refused_and_preferred_ones_taken_first(
    node_process: NodeProcess, associate: Associate
) -> None:
    node_process.admit(
        "PICKY",
        forbidden_transfer_syntaxes=f"{JPEGBaseline8Bit}, {JPEG2000Lossless}",
        preferred_transfer_syntaxes=str(JPEGLSLossless),
        maximum_pdu_bytes=16384,
    )
    association = associate(
        build_context(CTImageStorage, [JPEGBaseline8Bit, ExplicitVRLittleEndian, JPEGLSLossless]),
        build_context(CTImageStorage, [JPEG2000Lossless]),
        calling="PICKY",
    )
    assert [context.transfer_syntax[0] for context in association.accepted_contexts] == [JPEGLSLossless]
    assert len(association.rejected_contexts) == 1
    assert association.acceptor.maximum_length == 16384


def test_a_device_that_must_send_uncompressed_gets_no_other_context(
    node_process: NodeProcess, associate: Associate
) -> None:
    node_process.admit("PLAINCT", quirks=["uncompressed-only"])
    association = associate(
        build_context(CTImageStorage, [JPEGLSLossless, JPEG2000Lossless, ExplicitVRBigEndian]), calling="PLAINCT"
    )
    assert [context.transfer_syntax[0] for context in association.accepted_contexts] == [ExplicitVRBigEndian]


@pytest.mark.parametrize(
    ("allowed", "admitted"),
    [("127.0.0.1", True), ("10.0.0.0/8, 127.0.0.0/8", True), ("10.0.0.0/8,192.168.1.7", False), ("nonsense", False)],
)
def test_an_entity_calls_only_from_the_addresses_and_networks_of_the_registry(
    node_process: NodeProcess, associate: Associate, allowed: str, admitted: bool
) -> None:
    node_process.admit("FIXED", address=allowed)
    association = associate(build_context(Verification), calling="FIXED")
    assert association.is_established is admitted
    if not admitted:
        rows = node_process.sql("SELECT reason FROM clinic_refusedassociation WHERE calling_ae_title = ?", "FIXED")
        assert rows == [("this AE title is registered for another address",)]
        association = associate(build_context(Verification), calling="FIXED")
        assert association.is_rejected


@pytest.mark.parametrize(
    ("withheld", "model", "word"),
    [
        ("may_query", PatientRootQueryRetrieveInformationModelFind, "query"),
        ("may_worklist", ModalityWorklistInformationFind, "worklist"),
    ],
)
def test_a_right_that_is_withheld_refuses_its_service_and_no_other(
    node_process: NodeProcess, associate: Associate, withheld: str, model: UID, word: str
) -> None:
    rights = {"may_query": True, "may_worklist": True, withheld: False}
    node_process.admit("LIMITED", **rights)
    other = {
        PatientRootQueryRetrieveInformationModelFind: ModalityWorklistInformationFind,
        ModalityWorklistInformationFind: PatientRootQueryRetrieveInformationModelFind,
    }[model]
    association = associate(build_context(model), build_context(other), calling="LIMITED")
    query = Dataset()
    query.QueryRetrieveLevel = "PATIENT"
    query.PatientID = "NOBODY-HERE"
    (refused,) = [status for status, _ in association.send_c_find(query, model)]
    assert refused.Status == 0x0124
    assert word in refused.ErrorComment
    assert [status.Status for status, _ in association.send_c_find(query, other)] == [0]


def test_a_right_that_is_withheld_refuses_storing_and_retrieving(
    node_process: NodeProcess, associate: Associate
) -> None:
    node_process.admit("MUTE", may_store=False, may_retrieve=False)
    dataset = ct_series(1)[0]
    association = associate(
        build_context(CTImageStorage, ExplicitVRLittleEndian),
        build_context(StudyRootQueryRetrieveInformationModelGet),
        calling="MUTE",
    )
    assert association.send_c_store(dataset).Status == 0x0124
    query = Dataset()
    query.QueryRetrieveLevel = "STUDY"
    query.StudyInstanceUID = dataset.StudyInstanceUID
    model = StudyRootQueryRetrieveInformationModelGet
    assert [status.Status for status, _ in association.send_c_get(query, model)] == [0x0124]
    assert node_process.held(dataset.StudyInstanceUID) == []


def test_a_device_that_is_confused_by_optional_keys_is_answered_without_them(
    node_process: NodeProcess, associate: Associate
) -> None:
    node_process.admit("SIMPLE", quirks=["required-keys-only"])
    dataset = ct_series(1)[0]
    model = StudyRootQueryRetrieveInformationModelFind
    association = associate(
        build_context(CTImageStorage, ExplicitVRLittleEndian), build_context(model), calling="SIMPLE"
    )
    assert association.send_c_store(dataset).Status == 0
    query = Dataset()
    query.QueryRetrieveLevel = "STUDY"
    query.StudyInstanceUID = dataset.StudyInstanceUID
    query.PatientID = query.StudyDescription = query.NumberOfStudyRelatedInstances = ""
    answers = [answer for status, answer in association.send_c_find(query, model) if status.Status == 0xFF00]
    assert [answer.PatientID for answer in answers] == [dataset.PatientID]
    assert "StudyDescription" not in answers[0]
    assert "NumberOfStudyRelatedInstances" not in answers[0]


@pytest.mark.parametrize("taken", ["REGIS_NODE_HTTP_PORT", "REGIS_NODE_DICOM_PORT"])
def test_a_node_whose_port_is_taken_says_so_and_ends(make_node: Callable[..., NodeProcess], taken: str) -> None:
    node = make_node(start=False)
    with socket.create_server(("127.0.0.1", 0)) as other:
        node.settings[taken] = str(other.getsockname()[1])
        done = node.command("run", "pacs", check=False)
    assert done.returncode != 0
    assert "Cannot listen" in done.stderr
    assert node.settings[taken] in done.stderr

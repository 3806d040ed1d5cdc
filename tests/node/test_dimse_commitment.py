"""Storage commitment, asked of the node and by it, over the wire with real peers."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import CTImageStorage, StorageCommitmentPushModel

from deploy.processes import free_port, wait_until
from standards.sop_classes import STORAGE_COMMITMENT_PUSH_MODEL_INSTANCE as WELL_KNOWN
from standards.uids import new_uid
from tests.factories.dicom import ct_series
from tests.node.conftest import AE_TITLE, NodeProcess, need

MakeNode = Callable[..., NodeProcess]
Reported = tuple[int, str, list[str], list[tuple[str, int]]]


def store(node: NodeProcess, count: int = 2, calling: str = "MODALITY") -> Sequence[Dataset]:
    sets = ct_series(count)
    entity = AE(ae_title=calling)
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    association = entity.associate("127.0.0.1", node.dicom_port, ae_title=AE_TITLE)
    assert {association.send_c_store(dataset).Status for dataset in sets} == {0}
    association.release()
    return sets


def request(pairs: list[tuple[str, str]], transaction_uid: str = "") -> Dataset:
    information = Dataset()
    information.TransactionUID = transaction_uid or new_uid()
    information.ReferencedSOPSequence = []
    for sop_class, sop_instance in pairs:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_instance
        information.ReferencedSOPSequence.append(item)
    return information


def pairs_of(sets: Sequence[Dataset]) -> list[tuple[str, str]]:
    return [(str(dataset.SOPClassUID), str(dataset.SOPInstanceUID)) for dataset in sets]


@dataclass
class Modality:
    """An SCU of storage commitment; it takes reports on the association of the request and on its own port."""

    node: NodeProcess
    ae_title: str = "MODALITY"
    reports: list[Reported] = field(default_factory=list)
    answer: int = 0x0000
    roles: list[tuple[bool, bool]] = field(default_factory=list)
    server: Any = None

    def on_report(self, event: evt.Event) -> tuple[int, None]:
        information = event.event_information
        committed = [str(item.ReferencedSOPInstanceUID) for item in information.get("ReferencedSOPSequence") or []]
        failed = [
            (str(item.ReferencedSOPInstanceUID), item.FailureReason)
            for item in information.get("FailedSOPSequence") or []
        ]
        self.reports.append((event.event_type, str(information.TransactionUID), committed, failed))
        return self.answer, None

    def listen(self, port: int) -> None:
        entity = AE(ae_title=self.ae_title)
        entity.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
        self.server = entity.start_server(
            ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, self.on_report)]
        )

    def associate(self) -> Association:
        entity = AE(ae_title=self.ae_title)
        entity.add_requested_context(StorageCommitmentPushModel)
        association = entity.associate(
            "127.0.0.1",
            self.node.dicom_port,
            ae_title=AE_TITLE,
            evt_handlers=[(evt.EVT_N_EVENT_REPORT, self.on_report)],
        )
        assert association.is_established
        return association

    def ask(self, information: Dataset, *, wait_for: int = 0, **changes: Any) -> int:
        """N-ACTION; with ``wait_for`` the association stays open until a report of that event type has come."""
        association, before = self.associate(), len(self.reports)
        values = {"action_type": 1, "class_uid": StorageCommitmentPushModel, "instance_uid": WELL_KNOWN, **changes}
        status, _ = association.send_n_action(information, **values)
        if wait_for and status.Status == 0:
            wait_until(lambda: wait_for in {report[0] for report in self.reports[before:]}, 120, "a report")
            # pynetdicom answers in a thread of its own
            wait_until(lambda: not self._is_busy(association), 120, "the answer to the report")
        association.release()
        return int(status.Status)

    @staticmethod
    def _is_busy(association: Association) -> bool:
        return bool(association.dul.to_provider_queue.qsize())

    def wait(self, count: int = 1) -> list[Reported]:
        wait_until(lambda: len(self.reports) >= count, 120, f"{count} report(s)")
        return self.reports


@pytest.fixture
def modality(node_process: NodeProcess) -> Iterator[Callable[..., Modality]]:
    """Modalities that the shared node knows, with and without a port of their own."""
    made: list[Modality] = []

    def make(ae_title: str, *, listens: bool = False, node: NodeProcess = node_process, **columns: Any) -> Modality:
        one = Modality(node, ae_title)
        port = free_port()
        node.admit(ae_title, **({"host": "127.0.0.1", "port": port} if listens else {}), **columns)
        if listens:
            one.listen(port)
        made.append(one)
        return one

    yield make
    for one in made:
        if one.server is not None:
            one.server.shutdown()


def test_the_report_comes_over_the_association_of_the_request_where_no_other_way_is_known(
    modality: Callable[..., Modality],
) -> None:
    one = modality("COMMIT1")
    sets = store(one.node)
    information = request(pairs_of(sets))
    assert one.ask(information, wait_for=1) == 0
    assert one.reports == [(1, information.TransactionUID, [str(dataset.SOPInstanceUID) for dataset in sets], [])]


def test_images_and_their_commitment_go_over_one_association(modality: Callable[..., Modality]) -> None:
    one = modality("COMBINED")
    entity = AE(ae_title="COMBINED")
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    entity.add_requested_context(StorageCommitmentPushModel)
    association = entity.associate(
        "127.0.0.1",
        one.node.dicom_port,
        ae_title=AE_TITLE,
        evt_handlers=[(evt.EVT_N_EVENT_REPORT, one.on_report)],
    )
    for number in range(1, 4):
        sets = ct_series(2)
        assert {association.send_c_store(dataset).Status for dataset in sets} == {0}
        information = request(pairs_of(sets))
        status, _ = association.send_n_action(information, 1, StorageCommitmentPushModel, WELL_KNOWN)
        assert status.Status == 0
        one.wait(number)
        assert one.reports[-1][:2] == (1, information.TransactionUID)
    association.release()
    assert association.is_released


def test_the_report_comes_over_an_association_of_its_own_with_the_roles_turned(
    modality: Callable[..., Modality],
) -> None:
    one = modality("COMMIT2", listens=True)
    sets = store(one.node)
    information = request(pairs_of(sets))
    assert one.ask(information) == 0
    ((event_type, transaction_uid, committed, failed),) = one.wait()
    assert (event_type, transaction_uid, failed) == (1, information.TransactionUID, [])
    assert sorted(committed) == sorted(str(dataset.SOPInstanceUID) for dataset in sets)


def test_what_is_missing_of_another_class_or_damaged_on_the_disk_fails_by_its_reason(
    modality: Callable[..., Modality],
) -> None:
    one = modality("COMMIT3")
    whole, rotten, gone, other = sets = store(one.node, 4)
    unknown = new_uid()
    paths = {sop: one.node.storage / path for sop, path, _ in one.node.held(str(whole.StudyInstanceUID))}
    content = bytearray(paths[str(rotten.SOPInstanceUID)].read_bytes())
    content[-100] ^= 1
    paths[str(rotten.SOPInstanceUID)].chmod(0o644)
    paths[str(rotten.SOPInstanceUID)].write_bytes(content)
    paths[str(gone.SOPInstanceUID)].unlink()
    pairs = [*pairs_of(sets[:3]), ("1.2.840.10008.5.1.4.1.1.4", str(other.SOPInstanceUID)), (CTImageStorage, unknown)]
    assert one.ask(request(pairs), wait_for=2) == 0
    ((event_type, _, committed, failed),) = one.reports
    assert (event_type, committed) == (2, [str(whole.SOPInstanceUID)])
    assert dict(failed) == {
        str(rotten.SOPInstanceUID): 0x0110,
        str(gone.SOPInstanceUID): 0x0110,
        str(other.SOPInstanceUID): 0x0119,
        unknown: 0x0112,
    }


def test_a_request_asked_again_is_reported_again_and_a_transaction_uid_used_otherwise_fails(
    modality: Callable[..., Modality],
) -> None:
    one = modality("COMMIT4")
    sets = store(one.node, 3)
    information = request(pairs_of(sets[:2]))
    for _ in range(2):
        assert one.ask(information, wait_for=1) == 0
    # More than two when an answer came too late for the node: then it tells again.
    assert {report[:2] for report in one.reports} == {(1, information.TransactionUID)}
    assert one.ask(request(pairs_of(sets[2:]), str(information.TransactionUID)), wait_for=2) == 0
    assert one.reports[-1][0] == 2
    assert one.reports[-1][3] == [(str(sets[2].SOPInstanceUID), 0x0131)]


@pytest.mark.parametrize(
    ("changes", "status"),
    [({"action_type": 2}, 0x0123), ({"instance_uid": "1.2.3.4"}, 0x0112)],
)
def test_a_request_that_is_none_is_refused_by_its_status(
    modality: Callable[..., Modality], changes: dict[str, Any], status: int
) -> None:
    one = modality("COMMIT5")
    assert one.ask(request([(CTImageStorage, "1.2.3")]), **changes) == status


def test_a_request_without_instances_or_with_rubbish_is_refused(modality: Callable[..., Modality]) -> None:
    one = modality("COMMIT6")
    assert one.ask(request([])) == 0x0115
    assert one.ask(request([(CTImageStorage, "1.2.x")])) == 0x0115
    assert one.reports == []


def test_a_peer_without_the_right_is_refused(modality: Callable[..., Modality]) -> None:
    one = modality("COMMIT7", may_commit=False)
    assert one.ask(request([(CTImageStorage, "1.2.3")])) == 0x0124


def test_a_request_survives_a_kill_and_is_reported_when_the_modality_can_be_reached(
    make_node: MakeNode, modality: Callable[..., Modality]
) -> None:
    node = make_node()
    one = modality("CT9", node=node)
    port = free_port()
    node.admit("CT9", host="127.0.0.1", port=port)
    sets = store(node)
    information = request(pairs_of(sets))
    assert one.ask(information) == 0
    node.kill()
    assert [row[0] for row in node.sql("SELECT transaction_uid FROM dimse_commitment")] == [information.TransactionUID]
    one.listen(port)
    node.python(
        "from pacs_node.dimse.models import Commitment\nfrom django.utils import timezone\n"
        "Commitment.objects.update(next_attempt_at=timezone.now())"
    )
    node.start()
    ((event_type, transaction_uid, _, _),) = one.wait()
    assert (event_type, transaction_uid) == (1, information.TransactionUID)
    wait_until(
        lambda: node.sql("SELECT status FROM dimse_commitment") == [("done",)], 120, "the report is written down"
    )


def test_a_report_that_the_modality_refuses_is_brought_again(modality: Callable[..., Modality]) -> None:
    one = modality("COMMIT8", listens=True)
    one.answer = 0x0110
    sets = store(one.node, 1)
    assert one.ask(request(pairs_of(sets))) == 0
    one.wait(1)
    one.answer = 0x0000
    assert len(one.wait(2)) >= 2


def test_the_node_asks_an_archive_and_keeps_its_answer(make_node: MakeNode) -> None:
    """Two nodes: one asks, the other promises, over an association of its own."""
    clinic, archive = make_node(), make_node(REGIS_NODE_AE_TITLE="ARCHIVE")
    clinic.admit("ARCHIVE", host="127.0.0.1", port=archive.dicom_port)
    archive.admit(AE_TITLE, host="127.0.0.1", port=clinic.dicom_port)
    sets = ct_series(2)
    entity = AE(ae_title="MODALITY")
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    association = entity.associate("127.0.0.1", archive.dicom_port, ae_title="ARCHIVE")
    assert {association.send_c_store(dataset).Status for dataset in sets} == {0}
    association.release()
    pairs = [*pairs_of(sets), (str(CTImageStorage), "1.2.3.999")]
    clinic.python(f"from pacs_node.dimse.commitment import ask\nask('ARCHIVE', {pairs!r})")
    query = "SELECT status, result FROM dimse_commitment WHERE role = 'scu'"
    wait_until(lambda: clinic.sql(query)[0][0] == "done", 120, "the answer of the archive")
    result = clinic.sql(query)[0][1]
    result = json.loads(result) if isinstance(result, str) else result
    assert result == {"committed": [list(pair) for pair in pairs[:2]], "failed": [[*pairs[2], 0x0112]]}


def test_a_person_asks_an_archive_on_the_command_line(make_node: MakeNode) -> None:
    clinic, archive = make_node(), make_node(REGIS_NODE_AE_TITLE="ARCHIVE")
    clinic.admit("ARCHIVE", host="127.0.0.1", port=archive.dicom_port)
    archive.admit(AE_TITLE, host="127.0.0.1", port=clinic.dicom_port)
    sets = store(clinic)
    uid = str(sets[0].StudyInstanceUID)
    done = clinic.command("commit", "ARCHIVE", uid, check=False)
    assert done.returncode != 0
    assert "0 of 2 are safe at ARCHIVE." in done.stdout
    keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={uid}")
    assert clinic.dcmtk(need("movescu"), "-S", "-aem", "ARCHIVE", *keys).returncode == 0
    assert "2 of 2 are safe at ARCHIVE." in clinic.command("commit", "ARCHIVE", uid).stdout
    assert "No instances" in clinic.command("commit", "ARCHIVE", "1.2.3", check=False).stderr


def test_commitment_is_negotiated_in_both_roles(node_process: NodeProcess) -> None:
    entity = AE(ae_title="MODALITY")
    association = entity.associate(
        "127.0.0.1",
        node_process.dicom_port,
        contexts=[build_context(StorageCommitmentPushModel)],
        ae_title=AE_TITLE,
        ext_neg=[build_role(StorageCommitmentPushModel, scp_role=True)],
    )
    (context,) = association.accepted_contexts
    assert (context.as_scu, context.as_scp) == (False, True)
    association.release()

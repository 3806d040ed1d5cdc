"""C-STORE and C-ECHO by real clients against a node in its own process."""

import contextlib
import hashlib
import re
import socket
import struct
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import CTImageStorage, Verification

from deploy.processes import wait_until
from tests.factories.dicom import Study, compressed, ct_instance, ct_series, part10, write, write_all
from tests.node.conftest import AE_TITLE, NodeProcess, need
from tests.node.raw_association import CT, RawAssociation


def associate(node: NodeProcess, *classes: str, calling: str = "MODALITY") -> Association:
    entity = AE(ae_title=calling)
    for uid in classes or (CTImageStorage,):
        entity.add_requested_context(uid, ExplicitVRLittleEndian)
    return entity.associate("127.0.0.1", node.dicom_port, ae_title=AE_TITLE)


def data_set_bytes(dataset: FileDataset) -> bytes:
    whole = part10(dataset)
    return whole[whole.index(b"\x08\x00\x05\x00") :]


def send_bytes(association: Association, announced: Dataset, encoded: bytes) -> C_STORE:
    """A C-STORE request for ``announced`` that carries these bytes, whatever they are."""
    request = C_STORE()
    request.MessageID = 7
    request.Priority = 2
    request.AffectedSOPClassUID = announced.SOPClassUID
    request.AffectedSOPInstanceUID = announced.SOPInstanceUID
    request.DataSet = BytesIO(encoded)
    context = next(one for one in association.accepted_contexts if one.transfer_syntax[0] == ExplicitVRLittleEndian)
    association._reactor_checkpoint.clear()
    try:
        association.dimse.send_msg(request, context.context_id)
        _, answer = association.dimse.get_msg(block=True)
    finally:
        association._reactor_checkpoint.set()
    assert answer is not None, "the association ended"
    return answer


def refused(node: NodeProcess, announced: Dataset, encoded: bytes) -> tuple[int, str]:
    association = associate(node)
    answer = send_bytes(association, announced, encoded)
    association.release()
    return answer.Status, str(answer.ErrorComment or "")


def test_echo_is_answered_by_a_real_client(node_process: NodeProcess) -> None:
    assert node_process.dcmtk(need("echoscu")).returncode == 0


def test_a_series_sent_by_storescu_is_stored_byte_for_byte_and_indexed(
    node_process: NodeProcess, tmp_path: Path
) -> None:
    study = Study()
    paths = write_all(ct_series(5, study=study), tmp_path / "out")
    done = node_process.dcmtk(need("storescu"), *map(str, paths))
    assert done.returncode == 0, done.stderr
    uid = study.study_instance_uid
    sent = {hashlib.sha256(data_set_bytes(dcmread(path))).hexdigest() for path in paths}
    kept = {hashlib.sha256(data_set_bytes(dcmread(path))).hexdigest() for path in node_process.files(uid)}
    assert sent == kept
    assert {node_process.storage / path for _, path, _ in node_process.held(uid)} == set(node_process.files(uid))
    kept_meta = [dcmread(path).file_meta for path in node_process.files(uid)]
    assert {meta.SendingApplicationEntityTitle for meta in kept_meta} == {"MODALITY"}


def test_a_compressed_image_is_stored_as_it_came(node_process: NodeProcess, tmp_path: Path) -> None:
    dataset = compressed(ct_instance())
    write(dataset, tmp_path / "jls.dcm")
    done = node_process.dcmtk(need("dcmsend"), "--decompress-never", str(tmp_path / "jls.dcm"))
    assert done.returncode == 0, done.stderr
    (kept,) = node_process.files(dataset.StudyInstanceUID)
    assert dcmread(kept).file_meta.TransferSyntaxUID == dataset.file_meta.TransferSyntaxUID
    assert dcmread(kept).PixelData == dataset.PixelData


def test_the_same_instance_twice_is_kept_once(node_process: NodeProcess) -> None:
    dataset = ct_instance()
    association = associate(node_process)
    assert [association.send_c_store(dataset).Status for _ in range(3)] == [0, 0, 0]
    association.release()
    assert len(node_process.held(dataset.StudyInstanceUID)) == len(node_process.files(dataset.StudyInstanceUID)) == 1


def test_another_content_under_a_used_uid_is_kept_aside_and_told(node_process: NodeProcess) -> None:
    first = ct_instance()
    second = dcmread(BytesIO(part10(first)))
    second.StudyDescription = "Другое"
    association = associate(node_process)
    assert association.send_c_store(first).Status == 0
    assert association.send_c_store(second).Status == 0
    association.release()
    kept = {variant: node_process.storage / path for _, path, variant in node_process.held(first.StudyInstanceUID)}
    assert set(kept) == {True, False}
    assert "variants" in kept[True].parts
    assert dcmread(kept[False]).StudyDescription == first.StudyDescription
    assert dcmread(kept[True]).StudyDescription == "Другое"
    outbox = node_process.sql("SELECT kind, body FROM gateway_outboxentry ORDER BY id")
    kinds = [kind for kind, body in outbox if str(first.SOPInstanceUID) in str(body)]
    assert kinds == ["instance.stored", "instance.stored", "instance.conflicted"]


def test_a_truncated_data_set_is_refused_by_name_and_leaves_no_trace(node_process: NodeProcess) -> None:
    dataset = ct_instance()
    status, comment = refused(node_process, dataset, data_set_bytes(dataset)[:-1000])
    assert (status, comment.split(":")[0]) == (0xC002, "truncated")
    assert node_process.held(dataset.StudyInstanceUID) == []
    assert not list(node_process.storage.glob(f"studies/*/{dataset.StudyInstanceUID}"))


def test_a_wrong_vr_is_refused_by_name(node_process: NodeProcess) -> None:
    dataset = ct_instance()
    broken = data_set_bytes(dataset).replace(b"\x10\x00\x20\x00LO", b"\x10\x00\x20\x00!?", 1)
    status, comment = refused(node_process, dataset, broken)
    assert (status, comment.split(":")[0]) == (0xC004, "invalid-vr")
    assert node_process.held(dataset.StudyInstanceUID) == []


def test_uids_that_disagree_with_the_command_are_refused_with_a900(node_process: NodeProcess) -> None:
    announced, inside = ct_instance(), ct_instance()
    status, comment = refused(node_process, announced, data_set_bytes(inside))
    assert (status, comment.split(":")[0]) == (0xA900, "sop-instance-mismatch")
    assert node_process.held(inside.StudyInstanceUID) == node_process.held(announced.StudyInstanceUID) == []


def test_one_bad_object_does_not_stop_the_rest_of_the_study(node_process: NodeProcess) -> None:
    study = Study()
    series = ct_series(4, study=study)
    association = associate(node_process)
    statuses = []
    for number, dataset in enumerate(series):
        encoded = data_set_bytes(dataset)
        statuses.append(send_bytes(association, dataset, encoded[:-1000] if number == 1 else encoded).Status)
    association.release()
    assert statuses == [0, 0xC002, 0, 0]
    assert len(node_process.held(study.study_instance_uid)) == 3


def test_a_class_that_is_none_is_refused_and_the_association_lives_on(node_process: NodeProcess) -> None:
    dataset = ct_instance()
    strange = ct_instance()
    strange.SOPClassUID = "31"
    association = associate(node_process)
    assert send_bytes(association, strange, data_set_bytes(strange)).Status == 0x0122
    assert send_bytes(association, dataset, data_set_bytes(dataset)).Status == 0
    association.release()


def test_an_unknown_character_set_is_accepted_and_read_as_well_as_it_can_be(node_process: NodeProcess) -> None:
    dataset = ct_instance()
    encoded = data_set_bytes(dataset).replace(b"ISO_IR 192", b"ISO_IR 999")
    assert refused(node_process, dataset, encoded) == (0, "")
    name = node_process.sql(
        "SELECT patient_name FROM study_index_study WHERE study_instance_uid = ?", str(dataset.StudyInstanceUID)
    )
    assert name == [("Щёголев-Ящуржинский^Пётр^Ёжикович",)]


def test_an_unknown_caller_is_refused_counted_and_can_be_admitted(node_process: NodeProcess) -> None:
    for _ in range(3):
        assert associate(node_process, Verification, calling="STRANGER").is_rejected
    query = "SELECT address, attempts, reason FROM clinic_refusedassociation WHERE calling_ae_title = 'STRANGER'"
    assert node_process.sql(query) == [("127.0.0.1", 3, "the calling AE title is not registered here")]
    told = node_process.sql("SELECT body FROM gateway_outboxentry WHERE kind = 'association.refused'")
    assert sum("STRANGER" in str(body) for (body,) in told) == 1
    node_process.command("admit", "STRANGER")
    association = associate(node_process, Verification, calling="STRANGER")
    assert association.is_established
    association.release()
    assert node_process.sql(query) == []


def test_a_caller_from_another_address_is_refused(node_process: NodeProcess) -> None:
    node_process.admit("FIXED", address="10.1.2.3")
    assert associate(node_process, Verification, calling="FIXED").is_rejected
    rows = node_process.sql("SELECT reason FROM clinic_refusedassociation WHERE calling_ae_title = 'FIXED'")
    assert rows == [("this AE title is registered for another address",)]


def test_private_sop_classes_are_not_accepted(node_process: NodeProcess) -> None:
    entity = AE(ae_title="MODALITY")
    entity.add_requested_context("1.2.840.113619.4.30")
    entity.add_requested_context(CTImageStorage)
    association = entity.associate("127.0.0.1", node_process.dicom_port, ae_title=AE_TITLE)
    assert [context.abstract_syntax for context in association.accepted_contexts] == [CTImageStorage]
    assert [context.result for context in association.rejected_contexts] == [3]
    association.release()


def test_a_full_disk_is_said_and_nothing_is_kept(make_node: Callable[..., NodeProcess]) -> None:
    node = make_node(REGIS_NODE_REFUSE_BELOW=str(10**18))
    association = associate(node)
    answer = association.send_c_store(ct_instance())
    association.release()
    assert (answer.Status, answer.ErrorComment[:12]) == (0xA700, "storage-full")
    assert list(node.storage.rglob("*.dcm")) == []


def test_a_pdu_of_four_gigabytes_ends_only_its_own_connection(node_process: NodeProcess) -> None:
    with socket.create_connection(("127.0.0.1", node_process.dicom_port), timeout=60) as hostile:
        hostile.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFF0) + b"x" * 1000)
        hostile.settimeout(60)
        assert hostile.recv(100) == bytes.fromhex("07000000000400000000")
    assert node_process.dcmtk(need("echoscu")).returncode == 0


def test_a_peer_that_dribbles_is_dropped_and_others_are_served(make_node: Callable[..., NodeProcess]) -> None:
    node = make_node(REGIS_NODE_NETWORK_TIMEOUT_SECONDS="5")
    slow = socket.create_connection(("127.0.0.1", node.dicom_port), timeout=60)
    slow.sendall(struct.pack(">BBL", 1, 0, 1000))
    assert node.dcmtk(need("echoscu")).returncode == 0

    def dropped() -> bool:
        try:
            slow.sendall(b"x")
            slow.settimeout(0.3)
            return slow.recv(100) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    wait_until(dropped, 120, "the dribbling peer is dropped")  # at this pace all of it takes five minutes
    slow.close()


def _stored(association: RawAssociation, dataset: FileDataset) -> int:
    """The status; by hand, as pynetdicom's own thread now and then takes an answer away from a busy sender."""
    return int(association.store(CT, str(dataset.SOPInstanceUID), data_set_bytes(dataset))["Status"])


def test_nothing_acknowledged_is_lost_when_the_node_is_killed_in_the_middle(
    make_node: Callable[..., NodeProcess],
) -> None:
    node = make_node()
    series = ct_series(60, size=128)
    acknowledged: list[str] = []
    enough, killed = threading.Event(), threading.Event()

    def send() -> None:
        with RawAssociation(node) as association, contextlib.suppress(AssertionError, OSError):  # until the kill
            for dataset in series:
                if _stored(association, dataset) == 0:
                    acknowledged.append(str(dataset.SOPInstanceUID))
                if len(acknowledged) >= 15:
                    enough.set()
                if len(acknowledged) == 50:
                    killed.wait(120)

    sender = threading.Thread(target=send)
    sender.start()
    assert enough.wait(120)
    node.kill()
    killed.set()
    sender.join(120)
    assert len(acknowledged) < 60
    study = str(series[0].StudyInstanceUID)
    rows = {uid: path for uid, path, _ in node.held(study)}
    assert set(acknowledged) <= set(rows)
    assert all((node.storage / path).is_file() for path in rows.values())
    node.start()
    assert list((node.storage / "incoming").iterdir()) == []
    with RawAssociation(node) as association:
        assert {_stored(association, dataset) for dataset in series} == {0}
        association.release()
    assert len(node.held(study)) == len(node.files(study)) == 60


def test_the_file_its_folder_and_the_index_are_flushed_before_the_answer(
    make_node: Callable[..., NodeProcess], tmp_path: Path
) -> None:
    need("strace")
    node = make_node(start=False)
    trace = tmp_path / "trace"
    node.start(
        "strace", "-f", "-yy", "-s", "64", "-e", "trace=fsync,fdatasync,link,linkat,sendto,write", "-o", str(trace)
    )
    dataset = ct_instance()
    association = associate(node)
    assert association.is_established
    begun = trace.stat().st_size
    assert association.send_c_store(dataset).Status == 0
    association.release()
    steps = trace.read_bytes()[begun:].decode(errors="replace").splitlines()

    def at(pattern: str, after: int = 0) -> int:
        return next((number for number, line in enumerate(steps) if number >= after and re.search(pattern, line)), -1)

    index = r"sendto\(.*COMMIT" if node.database_url else r"f(data)?sync\(\d+<[^>]*node\.sqlite3-wal>"
    answer = at(rf"sendto\(\d+<TCP:\[127\.0\.0\.1:{node.dicom_port}->")
    order = [
        at(r"link(at)?\("),
        at(r"fsync\(\d+<[^>]*/incoming/[^>]*>"),
        folder := at(rf"fsync\(\d+<[^>]*/{re.escape(str(dataset.SeriesInstanceUID))}>"),
        at(index, folder),  # the node writes other rows too
        answer,
    ]
    assert -1 not in order, (order, steps[:80])
    assert order == sorted(order), (order, steps[:80])


def test_sigterm_stops_the_node_cleanly(make_node: Callable[..., NodeProcess]) -> None:
    node = make_node()
    assert node.stop() == 0
    assert b"pacs-stopped" in node.log.read_bytes()


def test_every_corrupt_sample_gets_an_answer_and_the_node_keeps_serving(
    make_node: Callable[..., NodeProcess], sample_data: Path
) -> None:
    node = make_node()
    files = sorted(str(path) for path in (sample_data / "corrupt").rglob("*") if path.is_file())
    assert files
    node.dcmtk(need("dcmsend"), "--no-halt", "--no-uid-checks", *files)
    assert node.process is not None
    assert node.process.poll() is None
    assert node.dcmtk(need("echoscu")).returncode == 0
    assert node.command("reindex").returncode == 0

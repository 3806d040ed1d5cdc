"""The in-line proxy passes every service both ways, byte for byte, between real DCMTK clients and a real old PACS."""

import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    BasicFilmBox,
    BasicFilmSession,
    BasicGrayscaleImageBox,
    BasicGrayscalePrintManagementMeta,
    ModalityPerformedProcedureStep,
    Printer,
    PrinterInstance,
    StorageCommitmentPushModel,
)

from deploy.processes import as_child, free_port, port_is_free, wait_until
from standards.uids import new_uid
from tests.factories.dicom import ct_series, part10
from tests.node.conftest import need
from tests.node.proxied import COPY_ALL, Orthanc, Proxy, dcmtk


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    one = Orthanc(tmp_path_factory.mktemp("pacs"))
    device, back = free_port(), free_port()
    one.modalities = {"CT1": (device, back)}
    one.start()
    yield one
    one.stop()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, pacs: Orthanc) -> Iterator[Proxy]:
    device, back = pacs.modalities["CT1"]
    one = Proxy(tmp_path_factory.mktemp("proxy"), pacs.port, back_port=back)
    one.rules += f'[devices.CT1]\nhost = "127.0.0.1"\nport = {device}\n'
    one.start()
    yield one
    one.stop()


def images(folder: Path, count: int = 3, size: int = 64) -> tuple[str, list[str], list[Path]]:
    """Study UID, SOP Instance UIDs and files of a small series."""
    folder.mkdir(exist_ok=True)
    series = ct_series(count, size=size)
    paths = []
    for number, dataset in enumerate(series):
        paths.append(folder / f"{number}.dcm")
        paths[-1].write_bytes(part10(dataset))
    return str(series[0].StudyInstanceUID), [str(one.SOPInstanceUID) for one in series], paths


def test_echo_store_find_and_get_pass(proxy: Proxy, pacs: Orthanc, tmp_path: Path) -> None:
    study, uids, paths = images(tmp_path / "in")
    assert dcmtk("echoscu", proxy.port).returncode == 0
    stored = dcmtk("storescu", proxy.port, *paths)
    assert stored.returncode == 0, stored.stderr
    found = dcmtk(
        "findscu",
        proxy.port,
        "-S",
        "-k",
        "QueryRetrieveLevel=STUDY",
        "-k",
        f"StudyInstanceUID={study}",
        "-k",
        "StudyDate",
    )
    assert "20261121" in found.stderr + found.stdout
    (tmp_path / "out").mkdir()
    got = dcmtk(
        "getscu", proxy.port, "-S", "-od", tmp_path / "out", "-k", "QueryRetrieveLevel=STUDY",
        "-k", f"StudyInstanceUID={study}",
    )  # fmt: skip
    assert got.returncode == 0, got.stderr
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert set(uids) <= set(pacs.files())


def test_what_the_old_pacs_has_is_the_same_through_the_proxy_and_without_it(
    proxy: Proxy, pacs: Orthanc, tmp_path: Path
) -> None:
    _, uids, paths = images(tmp_path / "in", size=300)
    assert dcmtk("storescu", pacs.port, *paths).returncode == 0
    directly = {uid: pacs.files()[uid] for uid in uids}
    pacs.delete_all()
    assert dcmtk("storescu", proxy.port, *paths).returncode == 0
    assert {uid: pacs.files()[uid] for uid in uids} == directly


def test_the_answer_to_an_association_request_is_the_old_pacs_own(proxy: Proxy, pacs: Orthanc) -> None:
    """A context that the old PACS refuses is refused, and its own implementation names itself."""

    def negotiated(port: int) -> list[str]:
        done = dcmtk("echoscu", port, "-d", "-pts", "3")
        text = done.stderr + done.stdout
        return re.findall(r"Their Implementation[^\n]*|Their Max PDU[^\n]*|Accepted Transfer[^\n]*", text)

    through, direct = negotiated(proxy.port), negotiated(pacs.port)
    assert through == direct
    assert any("Their Implementation" in line for line in direct)


def test_move_to_the_device_passes_by_the_second_port(proxy: Proxy, pacs: Orthanc, tmp_path: Path) -> None:
    study, uids, paths = images(tmp_path / "in")
    assert dcmtk("storescu", proxy.port, *paths).returncode == 0
    device, _ = pacs.modalities["CT1"]
    (tmp_path / "moved").mkdir()
    moved = dcmtk(
        "movescu", proxy.port, "-S", "+P", str(device), "-aem", "CT1", "-od", tmp_path / "moved",
        "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}",
    )  # fmt: skip
    assert moved.returncode == 0, moved.stderr
    assert len(list((tmp_path / "moved").iterdir())) == len(uids)
    wait_until(lambda: proxy.counts().get("associations-back:passed", 0) >= 1, 60, "the proxy counts it")


def test_a_commitment_is_reported_to_the_device_by_the_second_port(proxy: Proxy, pacs: Orthanc, tmp_path: Path) -> None:
    _, uids, paths = images(tmp_path / "in")
    assert dcmtk("storescu", proxy.port, *paths).returncode == 0
    reports: list[Dataset] = []
    device, _ = pacs.modalities["CT1"]
    entity = AE(ae_title="CT1")
    entity.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)

    def on_report(event: evt.Event) -> tuple[int, None]:
        reports.append(event.event_information)
        return 0x0000, None

    server = entity.start_server(("127.0.0.1", device), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, on_report)])
    try:
        asking = AE(ae_title="CT1")
        asking.add_requested_context(StorageCommitmentPushModel)
        association = asking.associate("127.0.0.1", proxy.port, ae_title="OLDPACS")
        assert association.is_established
        asked = Dataset()
        asked.TransactionUID = new_uid()
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", uids[0]
        asked.ReferencedSOPSequence = [item]
        status, _ = association.send_n_action(asked, 1, StorageCommitmentPushModel, "1.2.840.10008.1.20.1.1")
        assert status.Status == 0x0000
        association.release()
        wait_until(lambda: bool(reports), 60, "the report reaches the device")
    finally:
        server.shutdown()
    assert reports[0].TransactionUID == asked.TransactionUID
    assert reports[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == uids[0]


def test_a_device_that_nobody_named_is_refused_to_the_old_pacs(proxy: Proxy) -> None:
    refused = dcmtk("echoscu", proxy.back_port, calling="OLDPACS", called="NOBODY")
    assert refused.returncode != 0
    assert "Called AE Title Not Recognized" in refused.stderr
    assert any(line["event"] == "unknown-device" for line in proxy.events())


def test_worklist_queries_pass(tmp_path: Path) -> None:
    program = shutil.which("wlmscpfs") or need("wlmscpfs")
    folder = tmp_path / "worklists" / "OLDPACS"
    folder.mkdir(parents=True)
    (folder / "lockfile").touch()
    item = Dataset()
    item.SpecificCharacterSet = "ISO_IR 144"
    item.PatientName, item.PatientID = "Щёголев^Пётр", "TEST-1"
    step = Dataset()
    step.Modality, step.ScheduledStationAETitle = "CT", "CT1"
    step.ScheduledProcedureStepStartDate, step.ScheduledProcedureStepStartTime = "20261121", "101500"
    item.ScheduledProcedureStepSequence = [step]
    item.save_as(folder / "one.wl", implicit_vr=False, little_endian=True, enforce_file_format=False)
    port = free_port()
    server = subprocess.Popen(
        [program, "-dfr", "-dfp", str(tmp_path / "worklists"), str(port)], preexec_fn=as_child(os.getpid())
    )
    one = Proxy(tmp_path / "proxy", port)
    try:
        wait_until(lambda: not port_is_free(port), 30, "the worklist server listens")
        one.start()
        answers = [
            dcmtk("findscu", at, "-W", "-k", "PatientName", "-k", "(0040,0100)[0].Modality=CT")
            for at in (one.port, port)
        ]
        assert answers[0].stderr == answers[1].stderr
        assert "Find Response: 1 (Pending)" in answers[0].stderr
    finally:
        one.stop()
        server.terminate()
        server.wait(20)


def test_performed_procedure_steps_pass(tmp_path: Path) -> None:
    said: list[tuple[str, str]] = []
    entity = AE(ae_title="OLDPACS")
    entity.add_supported_context(ModalityPerformedProcedureStep)

    def on_create(event: evt.Event) -> tuple[int, Dataset]:
        said.append(("create", event.attribute_list.PerformedProcedureStepStatus))
        return 0x0000, event.attribute_list

    def on_set(event: evt.Event) -> tuple[int, Dataset]:
        said.append(("set", event.modification_list.PerformedProcedureStepStatus))
        return 0x0000, event.modification_list

    port = free_port()
    server = entity.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_N_CREATE, on_create), (evt.EVT_N_SET, on_set)]
    )
    one = Proxy(tmp_path, port)
    try:
        one.start()
        device = AE(ae_title="CT1")
        device.add_requested_context(ModalityPerformedProcedureStep)
        association = device.associate("127.0.0.1", one.port, ae_title="OLDPACS")
        step, uid = Dataset(), new_uid()
        step.PerformedProcedureStepStatus = "IN PROGRESS"
        status, _ = association.send_n_create(step, ModalityPerformedProcedureStep, uid)
        assert status.Status == 0x0000
        step.PerformedProcedureStepStatus = "COMPLETED"
        status, _ = association.send_n_set(step, ModalityPerformedProcedureStep, uid)
        assert status.Status == 0x0000
        association.release()
    finally:
        one.stop()
        server.shutdown()
    assert said == [("create", "IN PROGRESS"), ("set", "COMPLETED")]


def test_films_are_printed(tmp_path: Path) -> None:
    """Sessions, boxes and images of Basic Grayscale Print Management: N-CREATE, N-SET, N-ACTION, N-GET, N-DELETE."""
    said: list[tuple[str, str]] = []
    pixels: list[bytes] = []

    def create(event: evt.Event) -> tuple[int, Dataset]:
        said.append(("N-CREATE", event.request.AffectedSOPClassUID.keyword))
        made = event.attribute_list
        if event.request.AffectedSOPClassUID == BasicFilmBox:
            box = Dataset()
            box.ReferencedSOPClassUID, box.ReferencedSOPInstanceUID = BasicGrayscaleImageBox, "2.25.77"
            made.ReferencedImageBoxSequence = [box]
        return 0x0000, made

    def change(event: evt.Event) -> tuple[int, Dataset]:
        said.append(("N-SET", event.request.RequestedSOPClassUID.keyword))
        pixels.append(event.modification_list.BasicGrayscaleImageSequence[0].PixelData)
        return 0x0000, event.modification_list

    def act(event: evt.Event) -> tuple[int, None]:
        said.append(("N-ACTION", event.request.RequestedSOPClassUID.keyword))
        return 0x0000, None

    def tell(event: evt.Event) -> tuple[int, Dataset]:
        said.append(("N-GET", event.request.RequestedSOPClassUID.keyword))
        printer = Dataset()
        printer.PrinterStatus = "NORMAL"
        return 0x0000, printer

    def delete(event: evt.Event) -> int:
        said.append(("N-DELETE", event.request.RequestedSOPClassUID.keyword))
        return 0x0000

    entity = AE("PRINTER")
    entity.add_supported_context(BasicGrayscalePrintManagementMeta)
    handlers = [
        (evt.EVT_N_CREATE, create), (evt.EVT_N_SET, change), (evt.EVT_N_ACTION, act), (evt.EVT_N_GET, tell),
        (evt.EVT_N_DELETE, delete),
    ]  # fmt: skip
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    assert server is not None
    one = Proxy(tmp_path, server.server_address[1], rules=COPY_ALL + '[[rule]]\nset = { InstitutionName = "X" }\n')
    film = os.urandom(1 << 20)
    try:
        one.start()
        scu = AE("CT1")
        scu.add_requested_context(BasicGrayscalePrintManagementMeta)
        association = scu.associate("127.0.0.1", one.port, ae_title="PRINTER")
        assert association.is_established
        meta = BasicGrayscalePrintManagementMeta
        status, printer = association.send_n_get([0x21100010], Printer, PrinterInstance, meta_uid=meta)
        assert (status.Status, printer.PrinterStatus) == (0, "NORMAL")
        session, box, image = Dataset(), Dataset(), Dataset()
        session.NumberOfCopies = "1"
        assert association.send_n_create(session, BasicFilmSession, "2.25.75", meta_uid=meta)[0].Status == 0
        box.ImageDisplayFormat = "STANDARD\\1,1"
        status, made = association.send_n_create(box, BasicFilmBox, "2.25.76", meta_uid=meta)
        image.ImageBoxPosition = 1
        shown = Dataset()
        shown.Rows = shown.Columns = 1024
        shown.BitsAllocated = shown.BitsStored = 8
        shown.PixelData = film
        image.BasicGrayscaleImageSequence = [shown]
        named = made.ReferencedImageBoxSequence[0].ReferencedSOPInstanceUID
        assert association.send_n_set(image, BasicGrayscaleImageBox, named, meta_uid=meta)[0].Status == 0
        assert association.send_n_action(None, 1, BasicFilmBox, "2.25.76", meta_uid=meta)[0].Status == 0
        assert association.send_n_delete(BasicFilmSession, "2.25.75", meta_uid=meta).Status == 0
        association.release()
    finally:
        one.stop()
        server.shutdown()
    assert [name for name, _ in said] == ["N-GET", "N-CREATE", "N-CREATE", "N-SET", "N-ACTION", "N-DELETE"]
    assert pixels == [film]


# Whatever bytes come


class Echo:
    """A peer that keeps what it gets and sends it back."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    @staticmethod
    def _serve(peer: socket.socket) -> None:
        with peer:
            while piece := peer.recv(1 << 16):
                peer.sendall(piece)


@pytest.fixture(scope="module", params=["followed", "held"])
def mirror(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy before a peer that echoes; with a rule that may hold images, and with one that only copies."""
    echo = Echo()
    rule = '[[rule]]\nset = { InstitutionName = "X" }\n' if request.param == "held" else ""
    one = Proxy(tmp_path_factory.mktemp("mirror"), echo.port)
    one.rules += rule
    one.start()
    yield one
    one.stop()
    echo.listener.close()


def _request() -> bytes:
    fixed = b"\0\1\0\0" + b"OLDPACS".ljust(16) + b"CT1".ljust(16) + bytes(32)
    return b"\1\0" + len(fixed).to_bytes(4, "big") + fixed


pdus = st.builds(
    lambda kind, body, lie: bytes([kind, 0]) + (len(body) + lie).to_bytes(4, "big") + body,
    st.sampled_from([1, 2, 3, 4, 4, 4, 5, 6, 7, 8, 0, 255]),
    st.binary(max_size=200),
    st.sampled_from([0, 0, 0, 1, 1000, 0x7FFFFFFF]),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(pdus | st.binary(max_size=300), max_size=6), st.booleans())
def test_any_bytes_pass_unchanged(mirror: Proxy, pieces: list[bytes], begins_well: bool) -> None:
    sent = (_request() if begins_well else b"") + b"".join(pieces)
    with socket.create_connection(("127.0.0.1", mirror.port), 30) as device:
        device.settimeout(60)
        if begins_well:
            device.sendall(_request())
        for piece in pieces:
            device.sendall(piece)
        device.shutdown(socket.SHUT_WR)
        received = b""
        while piece := device.recv(1 << 16):
            received += piece
    assert received == sent

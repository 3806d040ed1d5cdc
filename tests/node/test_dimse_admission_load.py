"""Many associations, peers that stall, and PDUs out of turn: the node gives everything back and keeps serving."""

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import build_context

from deploy.processes import wait_until
from pacs_node.dimse.calling import Address, _user_information, associate
from pacs_node.dimse.channel import Channel
from standards import upper_layer
from standards.errors import RegisError, TransientError
from standards.sop_classes import VERIFICATION
from tests.node.conftest import AE_TITLE, NodeProcess

MakeNode = Callable[..., NodeProcess]
MANY = int(os.environ.get("REGIS_TEST_ASSOCIATIONS", "400"))
"""With an echo each the full count of ten thousand takes some minutes."""

FIND = "1.2.840.10008.5.1.4.1.2.2.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT = "1.2.840.10008.1.2"


def open_channel(node: NodeProcess, *classes: str, timeout: float = 60) -> Channel:
    return associate(
        Address(AE_TITLE, "127.0.0.1", node.dicom_port),
        calling="MODALITY",
        contexts=[(uid, (IMPLICIT,)) for uid in classes or (VERIFICATION,)],
        timeout=timeout,
    )


def echo(channel: Channel) -> int:
    command = {
        "CommandField": upper_layer.C_ECHO_RQ,
        "MessageID": channel.next_message_id(),
        "AffectedSOPClassUID": VERIFICATION,
    }
    channel.send(channel.contexts[0].context_id, command)
    return int(channel.receive().command["Status"])


def echoes(node: NodeProcess) -> bool:
    channel = open_channel(node)
    try:
        return echo(channel) == 0
    finally:
        channel.release()


@dataclass(frozen=True)
class Held:
    """What a process holds: open files, threads, resident memory in megabytes."""

    files: int
    threads: int
    memory: float

    @classmethod
    def by(cls, node: NodeProcess) -> "Held":
        assert node.process is not None
        status = Path(f"/proc/{node.process.pid}/status").read_text()
        values = dict(line.split(":", 1) for line in status.splitlines())
        return cls(
            files=len(list(Path(f"/proc/{node.process.pid}/fd").iterdir())),
            threads=int(values["Threads"]),
            memory=int(values["VmRSS"].split()[0]) / 1024,
        )


def settles(node: NodeProcess, before: Held) -> None:
    """Wait until the node holds no more than before, but for a few files and threads that pools keep."""

    def is_settled() -> bool:
        now = Held.by(node)
        return now.files <= before.files + 4 and now.threads <= before.threads + 3

    wait_until(is_settled, 120, f"{Held.by(node)} goes back to {before}")


@pytest.mark.parametrize("classes", [(VERIFICATION,), (VERIFICATION, FIND)])
def test_associations_one_after_the_other_leak_nothing(make_node: MakeNode, classes: tuple[str, ...]) -> None:
    node = make_node()

    def round_of(count: int) -> None:
        for _ in range(count):
            channel = open_channel(node, *classes)
            assert echo(channel) == 0
            channel.release()

    round_of(100)
    before = Held.by(node)
    round_of(MANY // 2)
    settles(node, before)
    assert Held.by(node).memory < before.memory + 15


def test_ten_thousand_bare_associations_leak_nothing(make_node: MakeNode) -> None:
    node = make_node()
    request = association_request()

    def round_of(count: int) -> None:
        for _ in range(count):
            with connect(node) as plain:
                for sent, expected in (
                    (request, upper_layer.ASSOCIATE_AC),
                    (upper_layer.RELEASE_RQ_PDU, upper_layer.RELEASE_RP),
                ):
                    plain.sendall(sent)
                    answer = upper_layer.read_pdu(plain, 1 << 20, time.monotonic() + 60)
                    assert answer is not None
                    assert answer[0] == expected

    round_of(200)
    before = Held.by(node)
    round_of(10_000)
    settles(node, before)
    assert Held.by(node).memory < before.memory + 15


def test_fifty_at_once_are_all_served_and_leave_nothing(make_node: MakeNode) -> None:
    node = make_node()
    assert echoes(node)
    idle = Held.by(node)
    gate = threading.Barrier(50)

    def one(_number: int) -> bool:
        channel = open_channel(node, VERIFICATION, FIND, timeout=60)
        gate.wait(120)  # all fifty are open at this moment
        try:
            return echo(channel) == 0
        finally:
            channel.release()

    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(one, range(50))) == [True] * 50
        wait_until(lambda: Held.by(node).threads <= idle.threads + 3, 120, "the threads end")
        # SQLite keeps the descriptors of connections that were open at once, to use them again.
        before = Held.by(node)
        assert list(pool.map(one, range(50))) == [True] * 50
    settles(node, before)


def test_one_association_too_many_is_rejected_for_now(make_node: MakeNode) -> None:
    node = make_node(REGIS_NODE_MAXIMUM_ASSOCIATIONS="3")
    held = [open_channel(node) for _ in range(3)]
    with pytest.raises(TransientError, match="association-rejected"):
        open_channel(node)
    held.pop().release()
    wait_until(lambda: _opens(node), 120, "there is room again")
    for channel in held:
        assert echo(channel) == 0
        channel.release()


def _opens(node: NodeProcess) -> bool:
    try:
        open_channel(node).release()
    except RegisError:
        return False
    return True


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory, empty_database: object) -> Iterator[NodeProcess]:
    """A node that waits four seconds for its peers: those that a busy machine holds up are heard all the same."""
    node = NodeProcess(tmp_path_factory.mktemp("hasty"), settings={"REGIS_NODE_NETWORK_TIMEOUT_SECONDS": "4"})
    empty_database.copy_to(node)  # type: ignore[attr-defined]
    node.start()
    yield node
    node.kill()


def connect(node: NodeProcess) -> socket.socket:
    plain = socket.create_connection(("127.0.0.1", node.dicom_port), 60)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    plain.settimeout(60)
    return plain


def association_request(*classes: str) -> bytes:
    request = A_ASSOCIATE()
    request.application_context_name = UID("1.2.840.10008.3.1.1.1")
    request.calling_ae_title, request.called_ae_title = "MODALITY", AE_TITLE
    contexts = []
    for number, uid in enumerate(classes or (VERIFICATION,)):
        context = build_context(uid, IMPLICIT)
        context.context_id = 2 * number + 1
        contexts.append(context)
    request.presentation_context_definition_list = contexts
    request.user_information = _user_information(set(), 16384)
    encoded: bytes = A_ASSOCIATE_RQ(request).encode()
    return encoded


def established(node: NodeProcess, *classes: str) -> socket.socket:
    plain = connect(node)
    plain.sendall(association_request(*classes))
    answer = upper_layer.read_pdu(plain, 1 << 20, time.monotonic() + 60)
    assert answer is not None
    assert answer[0] == upper_layer.ASSOCIATE_AC
    return plain


def end_of(plain: socket.socket, seconds: float = 120) -> list[int]:
    """The types of the PDUs that come until the node aborts or closes, which it must do in time."""
    kinds = []
    deadline = time.monotonic() + seconds
    try:
        while (read := upper_layer.read_pdu(plain, 1 << 20, deadline)) is not None:
            kinds.append(read[0])
            if read[0] == upper_layer.ABORT:
                break
    except ConnectionResetError:
        pass
    return kinds


@pytest.mark.parametrize("classes", [(VERIFICATION, CT), (VERIFICATION, FIND)])
@pytest.mark.parametrize("stage", ["silent", "half a request", "idle", "half a PDU", "half a message"])
def test_a_peer_that_stalls_is_let_go(hasty: NodeProcess, stage: str, classes: tuple[str, ...]) -> None:
    request = association_request(*classes)
    if stage in ("silent", "half a request"):
        plain = connect(hasty)
        plain.sendall(request[:40] if stage == "half a request" else b"")
    else:
        plain = established(hasty, *classes)
        if stage == "half a PDU":
            plain.sendall(upper_layer.pdu_header(upper_layer.P_DATA_TF, 100) + b"\0\0\0")
        if stage == "half a message":
            plain.sendall(upper_layer.pdv_header(1, 4, is_command=True, is_last=False) + b"\0\0\0\0")
    with plain:
        end_of(plain)
    assert echoes(hasty)


@pytest.mark.parametrize("classes", [(VERIFICATION, CT), (VERIFICATION, FIND)])
def test_a_peer_that_dribbles_a_pdu_is_let_go(hasty: NodeProcess, classes: tuple[str, ...]) -> None:
    with established(hasty, *classes) as plain:
        plain.sendall(upper_layer.pdu_header(upper_layer.P_DATA_TF, 10_000))
        ended = False
        try:
            for _ in range(1_000):  # at this pace all of it takes half an hour
                plain.sendall(b"\0")
                plain.settimeout(0.2)
                try:
                    ended = not plain.recv(1000)
                except TimeoutError:
                    continue
                if ended:
                    break
        except (BrokenPipeError, ConnectionResetError):
            ended = True
        assert ended
    assert echoes(hasty)


HOSTILE = {
    "data before an association": [upper_layer.pdv_header(1, 2, is_command=True, is_last=True) + b"\0\0"],
    "release before an association": [upper_layer.RELEASE_RQ_PDU],
    "an answer nobody asked for": [upper_layer.RELEASE_RP_PDU],
    "an unknown kind": [upper_layer.pdu_header(0x42, 4) + b"\0\0\0\0"],
    "a PDU of 4 GB": [upper_layer.pdu_header(upper_layer.P_DATA_TF, 0xFFFFFFFF) + bytes(1000)],
    "an empty PDU": [upper_layer.pdu_header(upper_layer.P_DATA_TF, 0)],
    "a fragment that is longer than its PDU": [
        upper_layer.pdu_header(upper_layer.P_DATA_TF, 6) + struct.pack(">LBB", 5000, 1, 3)
    ],
    "a fragment of nothing": [upper_layer.pdu_header(upper_layer.P_DATA_TF, 4) + struct.pack(">L", 0)],
    "a context that was never agreed": [upper_layer.message(201, {"CommandField": 0x30, "CommandDataSetType": 0x101})],
    "a second association request": [association_request()],
    "a command of rubbish": [upper_layer.pdv_header(1, 20, is_command=True, is_last=True) + b"\xff" * 20],
    "a data set before its command": [upper_layer.pdv_header(1, 20, is_command=False, is_last=True) + bytes(20)],
    "HTTP": [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"],
}


@pytest.mark.parametrize("classes", [None, (VERIFICATION, CT), (VERIFICATION, FIND)])
@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_out_of_turn_ends_its_association_and_no_other(
    hasty: NodeProcess, what: str, classes: tuple[str, ...] | None
) -> None:
    bystander = open_channel(hasty, VERIFICATION, FIND)
    with connect(hasty) if classes is None else established(hasty, *classes) as plain:
        if classes is None and what == "a second association request":
            plain.sendall(association_request())
        for piece in HOSTILE[what]:
            plain.sendall(piece)
        with ThreadPoolExecutor(1) as pool:
            ending = pool.submit(end_of, plain)
            assert echo(bystander) == 0
            while not wait([ending], 0.3).done:
                assert echo(bystander) == 0
            ending.result()
    assert echo(bystander) == 0
    bystander.release()


@pytest.mark.parametrize("stage", ["connected", "half a request", "requested", "accepted", "half a message", "query"])
@pytest.mark.parametrize("how", ["abort", "close", "reset"])
def test_an_association_that_ends_at_any_moment_is_given_back(hasty: NodeProcess, stage: str, how: str) -> None:
    assert echoes(hasty)
    before = Held.by(hasty)
    for _ in range(3):
        plain = connect(hasty)
        request = association_request(VERIFICATION, FIND)
        if stage == "half a request":
            plain.sendall(request[:50])
        elif stage != "connected":
            plain.sendall(request)
        if stage in ("accepted", "half a message", "query"):
            upper_layer.read_pdu(plain, 1 << 20, time.monotonic() + 60)
        if stage == "half a message":
            plain.sendall(upper_layer.pdv_header(3, 8, is_command=True, is_last=False) + bytes(8))
        if stage == "query":
            command = {
                "CommandField": upper_layer.C_FIND_RQ,
                "MessageID": 1,
                "Priority": 0,
                "AffectedSOPClassUID": FIND,
                "CommandDataSetType": upper_layer.DATASET_FOLLOWS,
            }
            identifier = struct.pack("<HHL", 0x0008, 0x0052, 6) + b"STUDY "
            plain.sendall(upper_layer.message(3, command))
            plain.sendall(b"".join(upper_layer.fragments(3, identifier, is_command=False)))
        if how == "abort":
            plain.sendall(upper_layer.abort(0))
        if how == "reset":
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        plain.close()
    settles(hasty, before)
    assert echoes(hasty)

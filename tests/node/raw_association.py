"""An association made of bytes, for peers that do not keep to the standard: nothing here checks what it sends."""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from deploy.processes import wait_until
from standards import upper_layer
from tests.node.conftest import AE_TITLE, NodeProcess

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG_LS = "1.2.840.10008.1.2.4.80"
CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
VERIFICATION = "1.2.840.10008.1.1"
_LISTENING = "0A"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"

Context = tuple[str, str]


def _item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(body)) + body


def association_request(contexts: Sequence[Context], calling: str = "MODALITY") -> bytes:
    """An A-ASSOCIATE-RQ whose contexts are numbered 1, 3, 5 and so on. Source: PS3.8 9.3.2"""
    proposed = b"".join(
        _item(0x20, bytes([2 * number + 1, 0, 0, 0]) + _item(0x30, abstract.encode()) + _item(0x40, syntax.encode()))
        for number, (abstract, syntax) in enumerate(contexts)
    )
    user = _item(0x51, struct.pack(">L", 1 << 16)) + _item(0x52, b"2.25.1")
    fixed = struct.pack(">H2x16s16s32x", 1, AE_TITLE.ljust(16).encode(), calling.ljust(16).encode())
    body = fixed + _item(0x10, b"1.2.840.10008.3.1.1.1") + proposed + _item(0x50, user)
    return upper_layer.pdu_header(upper_layer.ASSOCIATE_RQ, len(body)) + body


def _accepted(answer: bytes) -> Iterator[int]:
    """The contexts that an A-ASSOCIATE-AC accepts. Source: PS3.8 9.3.3"""
    position = 68
    while position < len(answer):
        kind, length = struct.unpack_from(">BxH", answer, position)
        if kind == 0x21 and answer[position + 6] == 0:
            yield answer[position + 4]
        position += 4 + length


def connect(node: NodeProcess) -> socket.socket:
    """A connection with nothing on it yet."""
    plain = socket.create_connection(("127.0.0.1", node.dicom_port), 30)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    plain.settimeout(30)
    return plain


def store_command(sop_class: str, sop_instance: str, message_id: int = 7, **others: Any) -> dict[str, Any]:
    """A C-STORE-RQ."""
    return {
        "AffectedSOPClassUID": sop_class,
        "CommandField": upper_layer.C_STORE_RQ,
        "MessageID": message_id,
        "Priority": 0,
        "CommandDataSetType": upper_layer.DATASET_FOLLOWS,
        "AffectedSOPInstanceUID": sop_instance,
        **others,
    }


@dataclass
class RawAssociation:
    """An accepted association; context ids are 1, 3, 5 in the order of ``contexts``."""

    node: NodeProcess
    contexts: Sequence[Context] = ((CT, EXPLICIT), (VERIFICATION, IMPLICIT))
    plain: socket.socket = field(init=False)
    accepted: set[int] = field(default_factory=set)

    def __enter__(self) -> Self:
        self.plain = connect(self.node)
        self.plain.sendall(association_request(self.contexts))
        answer = self.pdu()
        assert answer is not None
        assert answer[0] == upper_layer.ASSOCIATE_AC, answer
        self.accepted = set(_accepted(bytes(answer[1])))
        return self

    def __exit__(self, *exc: object) -> None:
        self.plain.close()

    def pdu(self, seconds: float = 30) -> tuple[int, bytearray] | None:
        """The next PDU: its type and what follows its header; None when the node closed."""
        return upper_layer.read_pdu(self.plain, 1 << 20, time.monotonic() + seconds)

    def context_id(self, abstract_syntax: str) -> int:
        """The number of the first context of a class."""
        return 2 * [abstract for abstract, _ in self.contexts].index(abstract_syntax) + 1

    def send_fragments(self, context_id: int, data: bytes, *, is_command: bool, step: int = 1 << 14) -> None:
        """``data`` in fragments, the last of them marked so."""
        self.plain.sendall(b"".join(upper_layer.fragments(context_id, data, step, is_command=is_command)))

    def answer(self) -> dict[str, Any]:
        """The next command of the node."""
        encoded = bytearray()
        while True:
            read = self.pdu()
            assert read is not None, "the node closed instead of answering"
            assert read[0] == upper_layer.P_DATA_TF, f"PDU {read[0]:02X} ({bytes(read[1]).hex()}) instead of an answer"
            for piece in upper_layer.pdvs(read[1]):
                encoded += piece.data
                if piece.is_last:
                    return upper_layer.decode_command(encoded)

    def store(
        self, sop_class: str, sop_instance: str, encoded: bytes, *, context_id: int = 1, **others: Any
    ) -> dict[str, Any]:
        """Send a C-STORE-RQ with these bytes for a data set; the answer to it."""
        command = store_command(sop_class, sop_instance, **others)
        self.send_fragments(context_id, upper_layer.encode_command(command), is_command=True)
        self.send_fragments(context_id, encoded, is_command=False)
        answer = self.answer()
        assert answer["MessageIDBeingRespondedTo"] == command["MessageID"]
        return answer

    def echo(self) -> int:
        """The status of a C-ECHO on this association."""
        command = {"CommandField": upper_layer.C_ECHO_RQ, "MessageID": 99, "AffectedSOPClassUID": VERIFICATION}
        command["CommandDataSetType"] = upper_layer.NO_DATASET
        self.send_fragments(self.context_id(VERIFICATION), upper_layer.encode_command(command), is_command=True)
        answer = self.answer()
        assert answer["MessageIDBeingRespondedTo"] == 99
        return int(answer["Status"])

    def release(self) -> None:
        """Release it as the standard wants it, and see that the node does so too."""
        self.plain.sendall(upper_layer.RELEASE_RQ_PDU)
        answer = self.pdu()
        assert answer is not None
        assert answer[0] == upper_layer.RELEASE_RP


def aborted(plain: socket.socket, seconds: float = 30) -> tuple[int, int] | None:
    """Source and reason of the A-ABORT that the node ends with; None when it only closes, which it must do in time."""
    deadline = time.monotonic() + seconds
    found = None
    with contextlib.suppress(ConnectionResetError):
        while (read := upper_layer.read_pdu(plain, 1 << 20, deadline)) is not None:
            kind, body = read
            assert kind == upper_layer.ABORT, f"PDU {kind:02X} instead of an end"
            assert found is None, "a second A-ABORT"
            found = (body[2], body[3])
            with contextlib.suppress(OSError):
                plain.shutdown(socket.SHUT_WR)
    return found


def all_ended(node: NodeProcess) -> None:
    """Wait until the node has let go of all associations."""
    wait_until(lambda: not connections(node), 120, "the associations before this have ended")


def connections(node: NodeProcess) -> int:
    """How many connections of its DICOM port both processes of a node hold, those too that the peer has reset."""
    assert node.process is not None
    first = str(node.process.pid)
    helpers = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    count = -len(helpers)  # each has the socket of a port that it never listens on
    for process in (first, *helpers):
        tcp = (line.split() for line in Path(f"/proc/{process}/net/tcp").read_text().splitlines()[1:])
        port = f":{node.dicom_port:04X}"
        other = {line[9] for line in tcp if not line[1].endswith(port) or line[3] == _LISTENING}
        other |= {line.split()[6] for line in Path(f"/proc/{process}/net/unix").read_text().splitlines()[1:]}
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                kind, _, number = os.readlink(descriptor).partition(":")
                count += kind == "socket" and number.strip("[]") not in other
    return count


@contextlib.contextmanager
def logged(node: NodeProcess) -> Iterator[list[str]]:
    """What the node writes to its log while the block runs, a line each; complete when the block has ended.

    The block begins when the associations before it are over: what ends them may be written after their peers left.
    """
    all_ended(node)
    lines: list[str] = []
    before = node.log.stat().st_size
    yield lines
    written = node.log.read_bytes()[before:].decode("utf-8").splitlines()
    lines += [line for line in written if '"commitment-' not in line]  # reports are brought again at any time

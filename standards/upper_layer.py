"""DICOM upper layer on the wire: P-DATA-TF framing, command sets, release and abort; for blocking sockets.

Association negotiation is not here. Nothing here holds state; every length is checked before it is believed.
Source: PS3.8 9.3 (PDUs), PS3.8 E.2 (message control header), PS3.7 6.3.1 and E.1 (command sets).
"""

import socket
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from standards.errors import PermanentError, TransientError

ASSOCIATE_RQ: Final = 0x01
ASSOCIATE_AC: Final = 0x02
ASSOCIATE_RJ: Final = 0x03
P_DATA_TF: Final = 0x04
RELEASE_RQ: Final = 0x05
RELEASE_RP: Final = 0x06
ABORT: Final = 0x07

RELEASE_RQ_PDU: Final = bytes.fromhex("05000000000400000000")
RELEASE_RP_PDU: Final = bytes.fromhex("06000000000400000000")

# A-ABORT of the service provider: its reasons. Source: PS3.8 9.3.8
REASON_NOT_SPECIFIED: Final = 0
UNRECOGNISED_PDU: Final = 1
UNEXPECTED_PDU: Final = 2
UNRECOGNISED_PARAMETER: Final = 4
UNEXPECTED_PARAMETER: Final = 5
INVALID_PARAMETER_VALUE: Final = 6

_REASONS: Final = {"unrecognised-pdu": UNRECOGNISED_PDU, "unexpected-pdu": UNEXPECTED_PDU}
ESTABLISHED: Final = frozenset({P_DATA_TF, RELEASE_RQ, ABORT})
"""What may come on an established association (Sta6). Source: PS3.8 9.2.3"""
_LARGEST_REQUEST_BYTES: Final = 1 << 20

PDU_HEADER_BYTES: Final = 6
PDV_HEADER_BYTES: Final = 6
"""Item length, presentation context id, message control header."""

LARGEST_COMMAND_BYTES: Final = 1 << 20
"""A command set is some hundred bytes; only a list of failed UIDs makes one long, and that travels in the data set."""

MOST_EMPTY_FRAGMENTS: Final = 1000
"""So many in a row carry a message nowhere; a peer that sends more would never end it."""

C_STORE_RQ: Final = 0x0001
C_GET_RQ: Final = 0x0010
C_FIND_RQ: Final = 0x0020
C_MOVE_RQ: Final = 0x0021
C_ECHO_RQ: Final = 0x0030
N_EVENT_REPORT_RQ: Final = 0x0100
N_ACTION_RQ: Final = 0x0130
C_CANCEL_RQ: Final = 0x0FFF
RESPONSE: Final = 0x8000
"""Added to the command field of a request it gives that of its response."""

NO_DATASET: Final = 0x0101
DATASET_FOLLOWS: Final = 0x0001
"""Any value but 0x0101 means that a data set follows. Source: PS3.7 E.1"""

_ELEMENTS: Final[dict[str, tuple[int, str]]] = {
    "AffectedSOPClassUID": (0x0002, "UI"),
    "RequestedSOPClassUID": (0x0003, "UI"),
    "CommandField": (0x0100, "US"),
    "MessageID": (0x0110, "US"),
    "MessageIDBeingRespondedTo": (0x0120, "US"),
    "MoveDestination": (0x0600, "AE"),
    "Priority": (0x0700, "US"),
    "CommandDataSetType": (0x0800, "US"),
    "Status": (0x0900, "US"),
    "OffendingElement": (0x0901, "AT"),
    "ErrorComment": (0x0902, "LO"),
    "ErrorID": (0x0903, "US"),
    "AffectedSOPInstanceUID": (0x1000, "UI"),
    "RequestedSOPInstanceUID": (0x1001, "UI"),
    "EventTypeID": (0x1002, "US"),
    "AttributeIdentifierList": (0x1005, "AT"),
    "ActionTypeID": (0x1008, "US"),
    "NumberOfRemainingSuboperations": (0x1020, "US"),
    "NumberOfCompletedSuboperations": (0x1021, "US"),
    "NumberOfFailedSuboperations": (0x1022, "US"),
    "NumberOfWarningSuboperations": (0x1023, "US"),
    "MoveOriginatorApplicationEntityTitle": (0x1030, "AE"),
    "MoveOriginatorMessageID": (0x1031, "US"),
}
_BY_NUMBER: Final = {number: (keyword, vr) for keyword, (number, vr) in _ELEMENTS.items()}

_PDU = struct.Struct(">BxL")
_PDV = struct.Struct(">LBB")
_PDU_OF_ONE_PDV = struct.Struct(">BxLLBB")
_ELEMENT = struct.Struct("<HHL")
_US = struct.Struct("<H")


def pdu_header(kind: int, length: int) -> bytes:
    """The six bytes before the ``length`` bytes of a PDU."""
    return _PDU.pack(kind, length)


def pdv_header(context_id: int, length: int, *, is_command: bool, is_last: bool) -> bytes:
    """Header of a P-DATA-TF PDU with one fragment of ``length`` bytes (12 bytes; PDU and PDV header)."""
    control = (1 if is_command else 0) | (2 if is_last else 0)
    return _PDU_OF_ONE_PDV.pack(P_DATA_TF, length + PDV_HEADER_BYTES, length + 2, context_id, control)


def abort(source: int = 2, reason: int = REASON_NOT_SPECIFIED) -> bytes:
    """An A-ABORT PDU; ``source`` 0 is the service user, 2 the provider (only then has ``reason`` a meaning)."""
    return struct.pack(">BxLxxBB", ABORT, 4, source, reason)


def reason_of(error: PermanentError) -> int:
    """The reason of the A-ABORT that answers what ``error`` found wrong."""
    return _REASONS.get(error.code, INVALID_PARAMETER_VALUE)


def check_header(kind: int, length: int, largest: int, expected: frozenset[int] = ESTABLISHED) -> None:
    """Judge a PDU by its header, before a byte of it is read; ``largest``: of a P-DATA-TF.

    Raises: PermanentError "unrecognised-pdu", "unexpected-pdu" (not one of ``expected``), "invalid-pdu".
    """
    if not ASSOCIATE_RQ <= kind <= ABORT:
        raise PermanentError("unrecognised-pdu", f"{kind:02X} is no type of PDU")
    if kind not in expected:
        raise PermanentError("unexpected-pdu", f"a PDU of type {kind:02X} out of turn")
    if kind == P_DATA_TF:
        least, most = PDV_HEADER_BYTES, largest
    elif kind in (ASSOCIATE_RQ, ASSOCIATE_AC):
        least, most = 68, _LARGEST_REQUEST_BYTES
    else:
        least = most = 4
    if not least <= length <= most:
        raise PermanentError("invalid-pdu", f"a PDU of type {kind:02X} announces {length} bytes")


def message(context_id: int, command: Mapping[str, Any], largest_pdu: int = 0) -> bytes:
    """A command set as P-DATA-TF PDUs that the peer takes (its maximum length; 0: no limit)."""
    return b"".join(fragments(context_id, encode_command(command), largest_pdu, is_command=True))


def fragments(context_id: int, data: bytes, largest_pdu: int = 0, *, is_command: bool) -> Iterator[bytes]:
    """``data`` (small, in memory) as P-DATA-TF PDUs of one fragment each; empty data is one empty last fragment."""
    step = fragment_bytes(largest_pdu)
    for start in range(0, max(len(data), 1), step):
        piece = data[start : start + step]
        last = start + step >= len(data)
        yield pdv_header(context_id, len(piece), is_command=is_command, is_last=last) + piece


def fragment_bytes(largest_pdu: int, ours: int = 1 << 20) -> int:
    """Bytes of data in each PDU for a peer that takes PDUs of ``largest_pdu`` bytes (0: any), even, at most ``ours``.

    The maximum length counts what follows the PDU header, so the PDV header goes off it. Source: PS3.8 D.1
    """
    room = min(largest_pdu or ours, ours) - PDV_HEADER_BYTES
    return max(2, room - room % 2)


def receive_into(peer: socket.socket, view: memoryview, deadline: float | None) -> int:
    """Fill ``view``; fewer bytes only when the peer closed. ``deadline``: of ``time.monotonic()``, for the whole.

    Raises: TimeoutError, OSError.
    """
    received, wanted = 0, len(view)
    while received < wanted:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the peer sent nothing, or too slowly")
            peer.settimeout(left)
        count = peer.recv_into(view[received:])
        if not count:
            break
        received += count
    return received


def read_pdu_header(peer: socket.socket, deadline: float | None) -> tuple[int, int] | None:
    """Type and length of the next PDU; None when the peer closed between PDUs.

    Raises: TransientError("connection-lost") when it closed within the header; TimeoutError, OSError.
    """
    buffer = bytearray(PDU_HEADER_BYTES)
    count = receive_into(peer, memoryview(buffer), deadline)
    if not count:
        return None
    if count < PDU_HEADER_BYTES:
        raise TransientError("connection-lost", "the peer closed within a PDU header")
    kind, length = _PDU.unpack(buffer)
    return kind, length


def read_pdu(peer: socket.socket, largest: int, deadline: float | None) -> tuple[int, bytearray] | None:
    """Type and payload of the next PDU, which is read whole; None when the peer closed between PDUs.

    Raises: PermanentError("pdu-too-large") above ``largest``, TransientError("connection-lost"), TimeoutError, OSError.
    """
    head = read_pdu_header(peer, deadline)
    if head is None:
        return None
    kind, length = head
    if length > largest:
        raise PermanentError("pdu-too-large", f"a PDU of {length} bytes is announced")
    payload = bytearray(length)
    if receive_into(peer, memoryview(payload), deadline) < length:
        raise TransientError("connection-lost", "the peer closed within a PDU")
    return kind, payload


@dataclass(frozen=True, slots=True)
class Fragment:
    """One presentation data value: a piece of a command set or of a data set."""

    context_id: int
    is_command: bool
    is_last: bool
    data: memoryview


def pdvs(payload: bytes | bytearray | memoryview) -> Iterator[Fragment]:
    """The fragments of the payload of a P-DATA-TF PDU, not copied.

    Raises: PermanentError("invalid-pdu").
    """
    view = memoryview(payload)
    position, end = 0, len(view)
    if not end:
        raise PermanentError("invalid-pdu", "a P-DATA-TF without a fragment")
    while position < end:
        if end - position < PDV_HEADER_BYTES:
            raise PermanentError("invalid-pdu", "a fragment breaks off in its header")
        length, context_id, control = _PDV.unpack_from(view, position)
        if length < 2 or position + 4 + length > end:
            raise PermanentError("invalid-pdu", f"a fragment of {length} bytes where {end - position - 4} are left")
        yield Fragment(context_id, bool(control & 1), bool(control & 2), view[position + 6 : position + 4 + length])
        position += 4 + length


def empty_in_a_row(before: int, length: int, is_last: bool) -> int:
    """How many fragments of nothing came one after the other, with this one. Raises: PermanentError("invalid-pdu")."""
    count = 0 if length or is_last else before + 1
    if count > MOST_EMPTY_FRAGMENTS:
        raise PermanentError("invalid-pdu", "a message of empty fragments without end")
    return count


def encode_command(command: Mapping[str, Any]) -> bytes:
    """A command set (keyword → value; None: left out; a list: several values) in Implicit VR Little Endian.

    Text outside ASCII has no place in a command set (PS3.7 6.3): give Error Comment transliterated.
    """
    parts = []
    for number, keyword, vr in sorted((_ELEMENTS[key][0], key, _ELEMENTS[key][1]) for key in command):
        value = command[keyword]
        if value is None:
            continue
        encoded = _encode(vr, value)
        parts.append(_ELEMENT.pack(0, number, len(encoded)) + encoded)
    body = b"".join(parts)
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def _encode(vr: str, value: Any) -> bytes:
    if vr == "US":
        return _US.pack(value)
    if vr == "AT":
        tags = value if isinstance(value, list | tuple) else [value]
        return b"".join(struct.pack("<HH", tag >> 16, tag & 0xFFFF) for tag in tags)
    text = ("\\".join(value) if isinstance(value, list | tuple) else str(value)).encode("ascii", "replace")
    return text if len(text) % 2 == 0 else text + (b"\0" if vr == "UI" else b" ")


def decode_command(data: bytes | bytearray | memoryview) -> dict[str, Any]:
    """Keyword → value of a command set: int for US, list of int for AT, else str without padding.

    Elements that are not of PS3.7 E.1 are left out; ``CommandField`` and ``CommandDataSetType`` are
    always there.

    Raises: PermanentError("invalid-command").
    """
    view = memoryview(data)
    position, end = 0, len(view)
    found: dict[str, Any] = {}
    while position < end:
        if end - position < 8:
            raise PermanentError("invalid-command", "an element breaks off in its header")
        group, number, length = _ELEMENT.unpack_from(view, position)
        position += 8
        if group != 0:
            raise PermanentError("invalid-command", f"an element of group {group:04X} in a command set")
        if length > end - position:
            raise PermanentError("invalid-command", f"element 0000,{number:04X} is longer than the command set")
        if number in _BY_NUMBER:
            keyword, vr = _BY_NUMBER[number]
            found[keyword] = _decode(keyword, vr, view[position : position + length])
        position += length
    for keyword in ("CommandField", "CommandDataSetType"):
        if keyword not in found:
            raise PermanentError("invalid-command", f"{keyword} is missing")
    return found


def _decode(keyword: str, vr: str, value: memoryview) -> Any:
    if vr == "US":
        if len(value) != 2:
            raise PermanentError("invalid-command", f"{keyword} has {len(value)} bytes")
        return _US.unpack(value)[0]
    if vr == "AT":
        if len(value) % 4:
            raise PermanentError("invalid-command", f"{keyword} has {len(value)} bytes")
        pairs = struct.iter_unpack("<HH", value)
        return [group << 16 | element for group, element in pairs]
    return bytes(value).decode("ascii", "replace").strip("\0 ")

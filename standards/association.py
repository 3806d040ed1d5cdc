"""Association negotiation on the wire: what an A-ASSOCIATE-RQ proposes and an A-ASSOCIATE-AC accepts.

For programs that pass associations on, or open small ones of their own; reading is strict on lengths, lenient on items
that it does not know. Source: PS3.8 9.3.2 to 9.3.4, D.1
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from standards import upper_layer
from standards.errors import PermanentError
from standards.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1"
MOST_CONTEXTS: Final = 128

TRANSIENT: Final = 2
"""Result of an A-ASSOCIATE-RJ: trying again may help."""
PERMANENT: Final = 1
USER: Final = 1
"""Source of an A-ASSOCIATE-RJ: the service user, who gives reasons such as an unknown called AE title."""
PRESENTATION: Final = 3
"""Source of an A-ASSOCIATE-RJ: the service provider, who is congested."""
CALLED_AE_NOT_RECOGNIZED: Final = 7
TEMPORARY_CONGESTION: Final = 1

_FIXED: Final = struct.Struct(">HH16s16s32s")
_ITEM: Final = struct.Struct(">BBH")
_REFUSED_SYNTAXES: Final = 4


@dataclass(frozen=True, slots=True)
class Proposal:
    """A presentation context that is proposed."""

    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """What an A-ASSOCIATE-RQ says. ``largest_pdu``: what the requestor takes; 0: any."""

    called_ae_title: str
    calling_ae_title: str
    contexts: dict[int, Proposal]
    largest_pdu: int


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What an A-ASSOCIATE-AC says: context id → transfer syntax of those accepted. ``largest_pdu`` as in a request."""

    contexts: dict[int, str]
    largest_pdu: int


def titles(head: bytes | bytearray | memoryview) -> tuple[str, str]:
    """Called and calling AE title in the first 42 bytes of an A-ASSOCIATE-RQ with its PDU header."""
    return _title(bytes(head[10:26])), _title(bytes(head[26:42]))


def read_request(payload: bytes | bytearray | memoryview) -> Request:
    """An A-ASSOCIATE-RQ without its PDU header. Raises: PermanentError("invalid-pdu")."""
    called, calling, found = _read(payload)
    contexts: dict[int, Proposal] = {}
    largest = 0
    for kind, body in found:
        if kind == 0x20:
            abstract, syntaxes = "", []
            for sub, value in items(body[4:]):
                if sub == 0x30:
                    abstract = _text(value)
                elif sub == 0x40:
                    syntaxes.append(_text(value))
            contexts[body[0]] = Proposal(abstract, tuple(syntaxes))
        elif kind == 0x50:
            largest = _largest(body)
    return Request(called, calling, contexts, largest)


def read_acceptance(payload: bytes | bytearray | memoryview) -> Acceptance:
    """An A-ASSOCIATE-AC without its PDU header. Raises: PermanentError("invalid-pdu")."""
    _, _, found = _read(payload)
    contexts: dict[int, str] = {}
    largest = 0
    for kind, body in found:
        if kind == 0x21 and body[2] == 0:
            for sub, value in items(body[4:]):
                if sub == 0x40:
                    contexts[body[0]] = _text(value)
        elif kind == 0x50:
            largest = _largest(body)
    return Acceptance(contexts, largest)


def _read(payload: bytes | bytearray | memoryview) -> tuple[str, str, list[tuple[int, memoryview]]]:
    view = memoryview(payload)
    if len(view) < _FIXED.size:
        raise PermanentError("invalid-pdu", "an association PDU breaks off")
    _, _, called, calling, _ = _FIXED.unpack_from(view)
    found = list(items(view[_FIXED.size :]))
    if any(kind in (0x20, 0x21) and len(body) < 4 for kind, body in found):
        raise PermanentError("invalid-pdu", "a presentation context item breaks off")
    return _title(called), _title(calling), found


def items(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Type and value of each item of a PDU, or sub-item of an item. Raises: PermanentError("invalid-pdu")."""
    position = 0
    while position < len(view):
        if len(view) - position < _ITEM.size:
            raise PermanentError("invalid-pdu", "an item breaks off in its header")
        kind, _, length = _ITEM.unpack_from(view, position)
        position += _ITEM.size
        if length > len(view) - position:
            raise PermanentError("invalid-pdu", f"an item of {length} bytes where {len(view) - position} are left")
        yield kind, view[position : position + length]
        position += length


def _largest(body: memoryview) -> int:
    for kind, value in items(body):
        if kind == 0x51 and len(value) == 4:
            return int.from_bytes(value, "big")
    return 0


def _text(value: memoryview) -> str:
    return bytes(value).decode("ascii", "replace").strip("\0 ")


def _title(value: bytes) -> str:
    return value.decode("ascii", "replace").strip("\0 ")


def encode_request(called: str, calling: str, contexts: Mapping[int, Proposal], largest_pdu: int = 131_072) -> bytes:
    """An A-ASSOCIATE-RQ, PDU header included."""
    proposed = b"".join(
        item(
            0x20,
            bytes([number, 0, 0, 0])
            + item(0x30, context.abstract_syntax.encode())
            + b"".join(item(0x40, syntax.encode()) for syntax in context.transfer_syntaxes),
        )
        for number, context in contexts.items()
    )
    return _pdu(upper_layer.ASSOCIATE_RQ, called, calling, proposed, largest_pdu)


def encode_acceptance(request: Request, accepted: Mapping[int, str], largest_pdu: int = 131_072) -> bytes:
    """An A-ASSOCIATE-AC that takes the contexts of ``accepted`` (id → transfer syntax), PDU header included."""
    results = b"".join(
        item(
            0x21,
            bytes([number, 0, 0 if number in accepted else _REFUSED_SYNTAXES, 0])
            + item(
                0x40, accepted.get(number, context.transfer_syntaxes[0] if context.transfer_syntaxes else "").encode()
            ),
        )
        for number, context in request.contexts.items()
    )
    return _pdu(upper_layer.ASSOCIATE_AC, request.called_ae_title, request.calling_ae_title, results, largest_pdu)


def rejection(result: int, source: int, reason: int) -> bytes:
    """An A-ASSOCIATE-RJ, PDU header included. Source: PS3.8 9.3.4"""
    return upper_layer.pdu_header(upper_layer.ASSOCIATE_RJ, 4) + bytes([0, result, source, reason])


def _pdu(kind: int, called: str, calling: str, contexts: bytes, largest_pdu: int) -> bytes:
    user = (
        item(0x51, struct.pack(">L", largest_pdu))
        + item(0x52, IMPLEMENTATION_CLASS_UID.encode())
        + item(0x55, IMPLEMENTATION_VERSION_NAME.encode())
    )
    body = (
        _FIXED.pack(1, 0, _padded(called), _padded(calling), bytes(32))
        + item(0x10, APPLICATION_CONTEXT.encode())
        + contexts
        + item(0x50, user)
    )
    return upper_layer.pdu_header(kind, len(body)) + body


def _padded(title: str) -> bytes:
    return title[:16].ljust(16).encode("ascii", "replace")


def item(kind: int, body: bytes | memoryview) -> bytes:
    """An item of a PDU, or a sub-item of an item. Source: PS3.8 9.3.2"""
    return _ITEM.pack(kind, 0, len(body)) + body


def proposals(wanted: Sequence[tuple[str, str]]) -> dict[int, Proposal]:
    """A context for each (abstract syntax, transfer syntax), numbered oddly, at most 128."""
    pairs = list(dict.fromkeys(wanted))[:MOST_CONTEXTS]
    return {2 * number + 1: Proposal(abstract, (syntax,)) for number, (abstract, syntax) in enumerate(pairs)}

"""What an A-ASSOCIATE-RQ must be, and what of it does no harm and is put right before pynetdicom, which is stricter
than the standard and than most peers, reads it.

Source: PS3.8 9.3.1 (unrecognised items are skipped), 9.3.2 (of the protocol version one bit is tested)
"""

from collections.abc import Iterator
from typing import Final

from pynetdicom.pdu import A_ASSOCIATE_RQ

from standards import upper_layer
from standards.association import item, items
from standards.errors import PermanentError

_FIXED_BYTES: Final = 68
_TITLES: Final = slice(4, 36)
_CONTEXT, _ABSTRACT, _TRANSFER, _USER, _VERSION_NAME = 0x20, 0x30, 0x40, 0x50, 0x55
_KNOWN: Final = frozenset({0x10, _CONTEXT, _USER})
_KNOWN_USER: Final = frozenset(range(0x51, 0x5A))
_LONGEST_VERSION_NAME: Final = 16


def readable(body: bytes | bytearray) -> bytearray:
    """The request without its header as pynetdicom can read it: with the version it knows, AE titles padded by spaces,
    a version name of legal length, and without items of unknown types.

    Raises: PermanentError("invalid-pdu") for what no reader can make sense of.
    """
    if len(body) < _FIXED_BYTES:
        raise PermanentError("invalid-pdu", "an A-ASSOCIATE-RQ that breaks off")
    request = bytearray(body[:_FIXED_BYTES])
    if request[1] & 1:
        request[:2] = b"\0\1"
    request[_TITLES] = request[_TITLES].replace(b"\0", b" ")
    for kind, value in items(memoryview(body)[_FIXED_BYTES:]):
        if kind == _CONTEXT:
            _check_context(value)
        if kind in _KNOWN:
            request += item(kind, b"".join(_user_items(value)) if kind == _USER else value)
    _check(request)
    return request


def _user_items(data: memoryview) -> Iterator[bytes]:
    for kind, value in items(data):
        if kind in _KNOWN_USER:
            yield item(kind, value[:_LONGEST_VERSION_NAME] if kind == _VERSION_NAME else value)


def _check_context(value: memoryview) -> None:
    kinds = [kind for kind, _ in items(value[4:])]
    if kinds.count(_ABSTRACT) != 1 or _TRANSFER not in kinds:
        raise PermanentError("invalid-pdu", "a presentation context without an abstract or a transfer syntax")


def _check(body: bytearray) -> None:
    header = upper_layer.pdu_header(upper_layer.ASSOCIATE_RQ, len(body))
    try:
        request = A_ASSOCIATE_RQ()
        request.decode(header + bytes(body))
        primitive = request.to_primitive()
        complete = bool(primitive.application_context_name) and request.user_information is not None
    except Exception as error:  # whatever its decoder trips over
        raise PermanentError(
            "invalid-pdu", f"an A-ASSOCIATE-RQ that cannot be read ({type(error).__name__})"
        ) from error
    if not complete:
        raise PermanentError("invalid-pdu", "an A-ASSOCIATE-RQ without what it must have")

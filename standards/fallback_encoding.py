"""An object for a peer that refuses its stored encoding: decoded, never compressed anew; nothing is lost on the way."""

import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, Final, cast

from standards import transfer_syntaxes
from standards.errors import PermanentError
from standards.part10 import read_header
from standards.transcoding import as_explicit

FALLBACKS: Final = (transfer_syntaxes.EXPLICIT_VR_LITTLE_ENDIAN, transfer_syntaxes.IMPLICIT_VR_LITTLE_ENDIAN)
"""What a peer that refuses the stored syntax is offered, best first."""

_LONG: Final = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_COPIED_WHOLE: Final = 1 << 20
_META_BYTES: Final = 4096
_LONGEST_META_BYTES: Final = 1 << 20


def dataset_extent(file: IO[bytes]) -> tuple[int, str]:
    """Where the data set begins, and its transfer syntax as the file has it: it may have been recompressed just now."""
    head = file.read(_META_BYTES)
    if head[132:136] == b"\x02\x00\x00\x00" and struct.unpack_from("<L", head, 140)[0] > _META_BYTES - 156:
        head += file.read(_LONGEST_META_BYTES)
    if head[128:132] != b"DICM":
        raise PermanentError("storage-damaged", "no DICM after a preamble of 128 bytes")
    position, syntax = 132, ""
    while head[position : position + 2] == b"\x02\x00" and position + 12 <= len(head):
        is_long = head[position + 4 : position + 6] in (b"OB", b"UN", b"OW", b"SQ", b"UT")
        (length,) = struct.unpack_from("<L" if is_long else "<H", head, position + (8 if is_long else 6))
        value = position + (12 if is_long else 8)
        if head[position + 2 : position + 4] == b"\x10\x00":
            syntax = head[value : value + length].decode("ascii", "replace").strip("\0 ")
        position = value + length
    if not syntax or position > len(head):
        raise PermanentError("storage-damaged", "the file meta group cannot be read")
    return position, syntax


@contextmanager
def transcoded(file: BinaryIO, target: str, *, folder: Path) -> Iterator[tuple[BinaryIO, int, str]]:
    """A Part 10 ``file`` in ``target`` (Explicit or Implicit VR Little Endian) as a temporary file in ``folder``, where
    its data set begins there, and in words what was done. One frame at a time is in memory.

    Raises: PermanentError "cannot-decode", "cannot-transcode", and those of ``part10.read_header``.
    """
    file.seek(0)
    header = read_header(file, required=("SOPClassUID", "SOPInstanceUID"))
    is_compressed = transfer_syntaxes.is_encapsulated(header.transfer_syntax)
    if is_compressed and header.pixel_offset is not None and not header.encapsulated:
        raise PermanentError("cannot-transcode", f"its pixels are not encapsulated, as {header.transfer_syntax} asks")
    explicit = as_explicit(file, header)
    done = f"{'decoded' if header.encapsulated else 'rewritten'} from {header.transfer_syntax} to {target}"
    if header.encapsulated and transfer_syntaxes.is_lossy(header.transfer_syntax):
        done += ", lossy before"
    with tempfile.TemporaryFile(dir=folder) as first:
        for chunk in explicit.chunks:
            first.write(chunk)
        first.seek(0)
        start, _ = dataset_extent(first)
        if target == transfer_syntaxes.EXPLICIT_VR_LITTLE_ENDIAN:
            yield cast(BinaryIO, first), start, done
            return
        with tempfile.TemporaryFile(dir=folder) as second:
            first.seek(start)
            _write_implicit(first, second, explicit.length - start)
            yield cast(BinaryIO, second), 0, done


def _write_implicit(explicit: IO[bytes], implicit: IO[bytes], length: int) -> None:
    """Every element without its VR. The input is ours: every length is defined, so no item needs a delimiter."""
    position = 0
    while position < length:
        head, vr, size, wide = _head(explicit.read(8))
        if wide:
            size = struct.unpack("<L", explicit.read(4))[0]
        position += (12 if wide else 8) + size
        if vr == b"SQ":
            body = _items(explicit.read(size))
            implicit.write(head + struct.pack("<L", len(body)) + body)
            continue
        implicit.write(head + struct.pack("<L", size))
        while size:
            chunk = explicit.read(min(size, _COPIED_WHOLE))
            if not chunk:
                raise PermanentError("truncated", "the rewritten object breaks off")
            implicit.write(chunk)
            size -= len(chunk)


def _head(raw: bytes) -> tuple[bytes, bytes, int, bool]:
    """Tag, VR, and where it has one the short length; and whether the length follows in four bytes more."""
    vr = raw[4:6]
    return raw[:4], vr, struct.unpack("<H", raw[6:8])[0], vr in _LONG


def _items(raw: bytes) -> bytes:
    """The items of a sequence, with their elements without VR."""
    position, parts = 0, []
    while position < len(raw):
        size = struct.unpack_from("<L", raw, position + 4)[0]
        body = _elements(raw[position + 8 : position + 8 + size])
        parts.append(raw[position : position + 4] + struct.pack("<L", len(body)) + body)
        position += 8 + size
    return b"".join(parts)


def _elements(raw: bytes) -> bytes:
    position, parts = 0, []
    while position < len(raw):
        head, vr, size, wide = _head(raw[position : position + 8])
        position += 8
        if wide:
            size = struct.unpack_from("<L", raw, position)[0]
            position += 4
        value = raw[position : position + size]
        position += size
        if vr == b"SQ":
            value = _items(value)
        parts.append(head + struct.pack("<L", len(value)) + value)
    return b"".join(parts)

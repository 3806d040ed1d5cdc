"""A stretch of a Part 10 file as it goes over the wire: parts of it losslessly encoded, all of it given back exactly.

The body is a row of segments, each ``kind, flags, raw length, encoded length, payload``. Native samples go as JPEG-LS,
whole rows of one frame at a time; what surrounds them as Zstandard; what does not become shorter, and what is
compressed already, as it is. A stretch may begin and end anywhere, so a file of any size goes in chunks that know
nothing of each other. Nothing here says whether a file comes back whole: its digests do.
"""

import os
import struct
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from standards import transfer_syntaxes
from standards.errors import PermanentError, TransientError
from standards.frames import layout
from standards.part10 import Header, read_header

NAME: Final = "regis-1"
"""What a receiver that understands these segments names, and the sender then says of its bodies."""
MOST_RAW: Final = 16 << 20
"""No stretch is longer; the receiver holds one in memory."""

_SEGMENT: Final = struct.Struct("<BBLL")
_PLAIN, _ZSTD, _JPEG_LS = 0, 1, 2
_WIDE, _SIGNED, _BIG = 1, 2, 4
_ZSTD_LEVEL: Final = 3
_LEAST: Final = 64
_LEAST_ROWS: Final = 4
_WORTH: Final = 0.97
_BROKEN: Final = (RuntimeError, ValueError, TypeError, MemoryError)
"""What codecs raise of input they cannot work with."""
_Bytes = bytes | bytearray | memoryview
encoders: Final = threading.BoundedSemaphore(max(1, os.cpu_count() or 1))
"""Held by whoever encodes: more at once than processors only wait for each other."""


@dataclass(frozen=True)
class Pixels:
    """Where the pixels of a file lie. ``row_bytes`` is 0 where they are no rows of whole samples; ``is_compressed``:
    encapsulated, so not worth another try.
    """

    start: int
    end: int
    is_compressed: bool = False
    row_bytes: int = 0
    rows: int = 0
    """Of one frame, or of one plane of it."""
    samples: int = 1
    flags: int = 0


NO_PIXELS: Final = Pixels(0, 0)


def pixels_of(file: BinaryIO) -> Pixels:
    """Where the pixels of a stored file lie; a file that cannot be read goes as bytes."""
    try:
        file.seek(0)
        header = read_header(file)
        return _pixels(header)
    except PermanentError:
        return NO_PIXELS


def _pixels(header: Header) -> Pixels:
    if header.transfer_syntax == transfer_syntaxes.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
        return Pixels(0, header.total_length, is_compressed=True)
    if header.pixel_offset is None or header.pixel_length is None:
        return NO_PIXELS
    start, end = header.pixel_offset, header.pixel_offset + header.pixel_length
    if header.encapsulated:
        return Pixels(start, end, is_compressed=True)
    if header.pixel_keyword != "PixelData":
        return Pixels(start, end)
    shape = layout(header)
    if shape.bits_allocated not in (8, 16) or shape.samples not in (1, 3) or shape.is_subsampled:
        return Pixels(start, end)
    is_planar = shape.samples == 3 and shape.planar_configuration == 1
    samples = 1 if is_planar else shape.samples
    row_bytes = shape.columns * samples * shape.bits_allocated // 8
    if shape.columns > 0xFFFF or shape.rows > 0xFFFF or row_bytes > MOST_RAW // _LEAST_ROWS:
        return Pixels(start, end)
    is_little = transfer_syntaxes.is_little_endian(header.transfer_syntax)
    flags = 0
    if shape.bits_allocated == 16:
        flags = _WIDE | (_SIGNED if shape.is_signed else 0) | (0 if is_little else _BIG)
    elif header.pixel_is_words and not is_little:
        return Pixels(start, end)  # bytes that are swapped by pairs: no rows
    return Pixels(start, end, False, row_bytes, shape.rows, samples, flags)


def encode(raw: bytes, offset: int, pixels: Pixels) -> bytes:
    """``raw``, which lies at ``offset`` of the file, as a body."""
    return b"".join(_segments(memoryview(raw), offset, pixels))


def plain(raw: bytes) -> bytes:
    """``raw`` as a body, just as it is."""
    return _SEGMENT.pack(_PLAIN, 0, len(raw), len(raw)) + raw


def _segments(raw: memoryview, offset: int, pixels: Pixels) -> Iterator[_Bytes]:
    end = offset + len(raw)
    at = offset
    while at < end:
        if at < pixels.start:
            stop, samples = min(end, pixels.start), False
        elif at >= pixels.end:
            stop, samples = end, False
        else:
            stop, samples = _rows_from(at, min(end, pixels.end), pixels)
        piece = raw[at - offset : stop - offset]
        if samples:
            yield from _samples(piece, pixels)
        elif pixels.is_compressed and pixels.start <= at < pixels.end:
            yield from _segment(_PLAIN, 0, len(piece), piece)
        else:
            yield from _squeezed(piece)
        at = stop


def _rows_from(at: int, end: int, pixels: Pixels) -> tuple[int, bool]:
    """Where the next segment within the pixels ends, and whether it is whole rows of one frame."""
    if not pixels.row_bytes:
        return end, False
    row, within = divmod(at - pixels.start, pixels.row_bytes)
    if within:  # the rest of a row that another stretch began
        return min(end, at + pixels.row_bytes - within), False
    rows = min(pixels.rows - row % pixels.rows, (end - at) // pixels.row_bytes)
    if rows < _LEAST_ROWS:
        return min(end, at + max(1, pixels.rows - row % pixels.rows) * pixels.row_bytes), False
    return at + rows * pixels.row_bytes, True


def _segment(kind: int, flags: int, raw_length: int, payload: _Bytes) -> tuple[_Bytes, _Bytes]:
    """In two parts: of a long one a copy more is memory."""
    return _SEGMENT.pack(kind, flags, raw_length, len(payload)), payload


def _squeezed(raw: memoryview) -> tuple[_Bytes, _Bytes]:
    if len(raw) >= _LEAST:
        shorter = imagecodecs.zstd_encode(bytes(raw), level=_ZSTD_LEVEL)
        if len(shorter) < len(raw) * _WORTH:
            return _segment(_ZSTD, 0, len(raw), shorter)
    return _segment(_PLAIN, 0, len(raw), raw)


def _samples(raw: memoryview, pixels: Pixels) -> tuple[_Bytes, _Bytes]:
    rows, flags = len(raw) // pixels.row_bytes, pixels.flags
    values: NDArray[Any] = np.frombuffer(raw, _dtype(flags))
    shape = (rows, -1, pixels.samples) if pixels.samples > 1 else (rows, -1)
    try:
        codestream = imagecodecs.jpegls_encode(np.ascontiguousarray(_turned(values, flags).reshape(shape)))
    except _BROKEN:
        return _squeezed(raw)
    if len(codestream) >= len(raw) * _WORTH:
        return _segment(_PLAIN, 0, len(raw), raw)
    return _segment(_JPEG_LS, flags, len(raw), codestream)


def _dtype(flags: int) -> str:
    return ("<u2", ">u2")[bool(flags & _BIG)] if flags & _WIDE else "u1"


def _turned(values: NDArray[Any], flags: int) -> NDArray[Any]:
    """Samples in native order, and two's complement turned so that neighbours in value are neighbours in number."""
    native = values.astype(np.uint16, copy=False) if flags & _WIDE else values
    return native ^ np.uint16(0x8000) if flags & _SIGNED else native


def decode(body: bytes, most: int = MOST_RAW) -> bytes:
    """The stretch that a body stands for, ``most`` bytes of it at most.

    Raises: TransientError("not-restored"): it is no such body, whatever made it so.
    """
    view, at, left = memoryview(body), 0, most
    parts: list[bytes | memoryview] = []
    while at < len(view):
        if len(view) - at < _SEGMENT.size:
            raise TransientError("not-restored", "a segment is cut short")
        kind, flags, raw_length, length = _SEGMENT.unpack_from(view, at)
        at += _SEGMENT.size
        payload = view[at : at + length]
        left -= raw_length
        if len(payload) != length or left < 0:
            raise TransientError("not-restored", "a segment says a wrong length")
        part = _restored(kind, flags, raw_length, payload)
        if len(part) != raw_length:
            raise TransientError("not-restored", f"{len(part)} bytes for {raw_length}")
        parts.append(part)
        at += length
    return b"".join(parts)


def restore(pieces: Iterable[bytes], target: BinaryIO) -> None:
    """Write what a body of any length stands for as it comes, a segment in memory at a time. Raises: as ``decode``."""
    held = bytearray()
    for piece in pieces:
        held += piece
        at = 0
        while len(held) - at >= _SEGMENT.size:
            _, _, raw_length, length = _SEGMENT.unpack_from(held, at)
            if max(raw_length, length) > MOST_RAW:
                raise TransientError("not-restored", "a segment says a wrong length")
            end = at + _SEGMENT.size + length
            if len(held) < end:
                break
            target.write(decode(bytes(held[at:end])))
            at = end
        del held[:at]
    if held:
        raise TransientError("not-restored", "a segment is cut short")


def _restored(kind: int, flags: int, raw_length: int, payload: memoryview) -> bytes | memoryview:
    try:
        if kind == _PLAIN:
            return payload
        if kind == _ZSTD:
            return bytes(imagecodecs.zstd_decode(bytes(payload), out=bytearray(raw_length)))
        if kind == _JPEG_LS:
            _check_dimensions(payload, flags, raw_length)
            values = _turned(imagecodecs.jpegls_decode(bytes(payload)), flags)
            return values.astype(_dtype(flags), copy=False).tobytes()
    except _BROKEN as error:
        raise TransientError("not-restored", f"{type(error).__name__}: {error}"[:120]) from error
    raise TransientError("not-restored", f"a segment of kind {kind}")


def _check_dimensions(codestream: memoryview, flags: int, raw_length: int) -> None:
    """The decoder makes an array of whatever the frame header says: so look first. Source: ISO/IEC 14495-1 C.2.2"""
    start = bytes(codestream[:4096]).find(b"\xff\xf7")
    if start < 0:
        raise ValueError("no frame header")
    _, precision, rows, columns, components = struct.unpack_from(">HBHHB", codestream, start + 4 - 2)
    wide = 2 if flags & _WIDE else 1
    if (precision > 8) != (wide == 2) or rows * columns * components * wide != raw_length:
        raise ValueError(f"{rows} × {columns} × {components} of {precision} bits")

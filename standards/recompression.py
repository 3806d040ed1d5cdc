"""A native image in a lossless encoding, with what is needed to give back the file it was, byte for byte.

The recipe stands in the file's own meta group, as private information: the received file up to its pixels and after
them, deflated, and how the samples lay there. The pixels themselves come out of the codestreams.

Source: PS3.5 A.4; PS3.10 7.1
"""

import io
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, Final, cast

import numpy as np

from standards import transfer_syntaxes
from standards.errors import PermanentError
from standards.file_meta import FileMeta, read_file_meta
from standards.frames import layout, read_frame
from standards.lossless import encode, unsuitable
from standards.part10 import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    Header,
    read_header,
    text,
)
from standards.pixels import decode_stored
from standards.transcoding import as_explicit

RECIPE_UID: Final = "2.25.57304829156473820198456372819045637281"
"""Creator of the private information in the meta group of a recompressed file."""
_LARGEST_PREFIX: Final = 16 << 20
_LARGEST_SUFFIX: Final = 1 << 20
_IN_MEMORY: Final = 32 << 20
_NATIVE: Final = (
    transfer_syntaxes.EXPLICIT_VR_LITTLE_ENDIAN,
    transfer_syntaxes.IMPLICIT_VR_LITTLE_ENDIAN,
    transfer_syntaxes.EXPLICIT_VR_BIG_ENDIAN,
)
_PIXELS: Final = 12
"""Bytes of the head of a Pixel Data element in explicit VR."""


@dataclass(frozen=True)
class Recipe:
    """How the received file is made again: ``prefix``, the samples of all frames, ``suffix``."""

    transfer_syntax: str
    planar: bool
    words: bool
    prefix: bytes
    suffix: bytes

    def encoded(self) -> bytes:
        """As it is kept in the meta group."""
        said = {name: value for name, value in asdict(self).items() if not isinstance(value, bytes)}
        said["prefix"] = len(self.prefix)
        return zlib.compress(json.dumps(said).encode("ascii") + b"\n" + self.prefix + self.suffix, 9)

    @classmethod
    def of(cls, meta: FileMeta) -> "Recipe | None":
        """The recipe in a file's meta group, None when it is no recompressed file. Raises: PermanentError."""
        if meta.uid(0x0100) != RECIPE_UID or not meta.elements.get(0x0102):
            return None
        try:
            plain = zlib.decompressobj().decompress(meta.elements[0x0102], _LARGEST_PREFIX + _LARGEST_SUFFIX + 4096)
            head, _, rest = plain.partition(b"\n")
            said = json.loads(head)
            length = said.pop("prefix")
            return cls(prefix=rest[:length], suffix=rest[length:], **said)
        except (zlib.error, ValueError, TypeError, KeyError) as error:
            raise PermanentError("recipe-damaged", str(error)) from error


def recompress(source: BinaryIO, target: BinaryIO, transfer_syntax: str) -> None:
    """Write the object to ``target`` in ``transfer_syntax``, one frame at a time. Compare before you believe it.

    Raises: PermanentError "cannot-recompress" with the reason, "cannot-encode", and those of reading it.
    """
    header = read_header(source)
    prefix_end, pixels_end = _suitable(header, transfer_syntax)
    shape = layout(header)
    source.seek(0)
    prefix = source.read(prefix_end)
    source.seek(pixels_end)
    suffix = source.read()
    recipe = Recipe(
        transfer_syntax=header.transfer_syntax,
        planar=shape.samples > 1 and shape.planar_configuration == 1,
        words=header.pixel_is_words,
        prefix=prefix,
        suffix=suffix,
    )
    before, after = _around_pixels(source, header)
    target.write(_meta(read_file_meta(source), transfer_syntax, recipe.encoded()))
    target.write(_with_planes_beside(before) if recipe.planar else before)
    target.write(struct.pack("<HH2s2xL", 0x7FE0, 0x0010, b"OB", 0xFFFFFFFF))
    table = target.tell() + 8
    target.write(struct.pack("<HHL", 0xFFFE, 0xE000, 4 * shape.frames) + bytes(4 * shape.frames))
    first, offsets = target.tell(), list[int]()
    for index in range(shape.frames):
        frame = decode_stored(read_frame(source, header, index), header)
        codestream = encode(frame, shape, transfer_syntax)
        codestream += bytes(len(codestream) % 2)
        offsets.append(target.tell() - first)
        target.write(struct.pack("<HHL", 0xFFFE, 0xE000, len(codestream)) + codestream)
    target.write(struct.pack("<HHL", 0xFFFE, 0xE0DD, 0) + after)
    if offsets[-1] > 0xFFFFFFFF:
        raise PermanentError("cannot-recompress", "its frames do not fit a Basic Offset Table")
    target.seek(table)
    target.write(struct.pack(f"<{len(offsets)}L", *offsets))
    target.seek(0, io.SEEK_END)


def _suitable(header: Header, transfer_syntax: str) -> tuple[int, int]:
    """Where the pixels begin and end in the file. Raises: PermanentError("cannot-recompress")."""

    def refuse(why: str) -> PermanentError:
        return PermanentError("cannot-recompress", why)

    if header.transfer_syntax not in _NATIVE:
        raise refuse(f"stored in {header.transfer_syntax}, which is not native")
    if header.pixel_keyword != "PixelData" or header.pixel_offset is None or header.pixel_length is None:
        raise refuse("it has no pixel data of whole numbers")
    shape = layout(header)
    if reason := unsuitable(shape, transfer_syntax):
        raise refuse(reason)
    if int(text(header.dataset, "HighBit") or shape.bits_stored - 1) != shape.bits_stored - 1:
        raise refuse("its high bit is not the highest of the bits stored")
    size = shape.frames * shape.bits // 8
    end = header.pixel_offset + size
    if header.pixel_length < size:
        raise refuse("it has fewer pixels than its header says")
    if header.pixel_offset > _LARGEST_PREFIX or header.total_length - end > _LARGEST_SUFFIX:
        raise refuse("its header is too large")
    if "DigitalSignaturesSequence" in header.dataset:
        raise refuse("it is signed digitally")
    return header.pixel_offset, end


def _around_pixels(source: BinaryIO, header: Header) -> tuple[bytes, bytes]:
    """The data set before and after Pixel Data, in Explicit VR Little Endian."""
    if header.transfer_syntax == transfer_syntaxes.EXPLICIT_VR_LITTLE_ENDIAN:
        return _cut(source, header)
    with SpooledTemporaryFile(max_size=_IN_MEMORY) as explicit:
        for chunk in as_explicit(source, header).chunks:
            explicit.write(chunk)
        file = cast(BinaryIO, explicit)
        return _cut(file, read_header(file))


def _cut(file: BinaryIO, header: Header) -> tuple[bytes, bytes]:
    start, offset, length = header.dataset_offset, header.pixel_offset or 0, header.pixel_length or 0
    file.seek(start)
    before = file.read(offset - _PIXELS - start)
    file.seek(offset + length)
    return before, file.read()


def _with_planes_beside(before: bytes) -> bytes:
    """Planar Configuration 0: in codestreams the samples of a pixel stand beside each other."""
    plain = struct.pack("<HH2sHH", 0x0028, 0x0006, b"US", 2, 1)
    at = before.rfind(plain)
    if at < 0:
        raise PermanentError("cannot-recompress", "its planar configuration is not where it should be")
    return before[: at + 8] + b"\0\0" + before[at + 10 :]


def _meta(meta: FileMeta, transfer_syntax: str, recipe: bytes) -> bytes:
    kept = {
        number: meta.elements[number] for number in (0x0002, 0x0003, 0x0016, 0x0017, 0x0018) if number in meta.elements
    }
    values: dict[int, tuple[bytes, bytes]] = {
        0x0001: (b"OB", b"\0\1"),
        **{number: (b"UI" if number < 0x0010 else b"AE", value) for number, value in kept.items()},
        0x0010: (b"UI", transfer_syntax.encode("ascii")),
        0x0012: (b"UI", IMPLEMENTATION_CLASS_UID.encode("ascii")),
        0x0013: (b"SH", IMPLEMENTATION_VERSION_NAME.encode("ascii")),
        0x0100: (b"UI", RECIPE_UID.encode("ascii")),
        0x0102: (b"OB", recipe),
    }
    body = b"".join(_element(number, *values[number]) for number in sorted(values))
    return bytes(128) + b"DICM" + _element(0x0000, b"UL", struct.pack("<L", len(body))) + body


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    value += (b" " if vr in (b"SH", b"AE") else b"\0") * (len(value) % 2)
    if vr == b"OB":
        return struct.pack("<HH2s2xL", 2, number, vr, len(value)) + value
    return struct.pack("<HH2sH", 2, number, vr, len(value)) + value


class ReceivedFile(io.RawIOBase):
    """The file as it was received, made from a recompressed one while it is read; seekable, one frame in memory."""

    def __init__(self, stored: BinaryIO, recipe: Recipe) -> None:
        self._stored = stored
        self._recipe = recipe
        self._header = read_header(stored)
        self._shape = layout(self._header)
        self._frame_bytes = self._shape.bits // 8
        self._pixels_end = len(recipe.prefix) + self._shape.frames * self._frame_bytes
        self._size = self._pixels_end + len(recipe.suffix)
        self._position = 0
        self._last: tuple[int, bytes] = (-1, b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._position = max(0, (0, self._position, self._size)[whence] + offset)
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        room = memoryview(buffer)
        data = self._piece(len(room))
        room[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._stored.close()
        super().close()

    def _piece(self, most: int) -> bytes:
        at, prefix = self._position, len(self._recipe.prefix)
        if at < prefix:
            return self._recipe.prefix[at : at + most]
        if at < self._pixels_end:
            index, within = divmod(at - prefix, self._frame_bytes)
            return self._frame(index)[within : within + most]
        return self._recipe.suffix[at - self._pixels_end :][:most]

    def _frame(self, index: int) -> bytes:
        if self._last[0] != index:
            values = decode_stored(read_frame(self._stored, self._header, index), self._header)
            if self._recipe.planar:
                values = np.ascontiguousarray(values.transpose(2, 0, 1))
            big = self._recipe.transfer_syntax == transfer_syntaxes.EXPLICIT_VR_BIG_ENDIAN
            if big and values.dtype.itemsize > 1:
                values = values.astype(values.dtype.newbyteorder(">"))
            raw = values.tobytes()
            if len(raw) != self._frame_bytes:
                raise PermanentError("cannot-decode", f"a frame has {len(raw)} bytes, not {self._frame_bytes}")
            self._last = (index, raw)
        return self._last[1]


def received(stored: BinaryIO) -> BinaryIO:
    """The file as it was received: ``stored`` itself, or made from it while it is read; it is closed with the answer.

    Raises: PermanentError "recipe-damaged", and those of reading the file.
    """
    recipe = Recipe.of(read_file_meta(stored))
    if recipe is None:
        stored.seek(0)
        return stored
    return io.BufferedReader(ReceivedFile(stored, recipe), 1 << 20)


def chunks(file: BinaryIO, size: int = 1 << 20) -> Iterator[bytes]:
    """A file from its beginning, in pieces."""
    file.seek(0)
    while chunk := file.read(size):
        yield chunk

"""A stored object as a Part 10 file in Explicit VR Little Endian, streamed: one frame and the header in memory.

Values go over byte for byte, whatever their character set; only the encoding around them changes. Pixels are decoded,
never compressed, so nothing more is lost than what the stored encoding had lost already.

Source: PS3.5 7.1.2, A.2, A.4; PS3.3 C.7.6.1.1.5
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Final

import numpy as np
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from standards import transfer_syntaxes
from standards.element_walker import PixelElement
from standards.errors import PermanentError
from standards.frames import FrameLayout, layout, read_frame
from standards.part10 import Header, open_plain, read_header, text, write_file_meta
from standards.pixels import decode_whole

_LONG: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
_SIZES: Final = {
    "AT": 2, "US": 2, "SS": 2, "OW": 2, "UL": 4, "SL": 4, "FL": 4, "OF": 4, "OL": 4,
    "FD": 8, "OD": 8, "OV": 8, "SV": 8, "UV": 8,
}  # fmt: skip
_LARGEST: Final = 0xFFFFFFFE
_CHUNK: Final = 1 << 18
_OFFSET_TABLES: Final = frozenset({0x7FE00001, 0x7FE00002, 0x7FE00003})
_PIXEL_TAGS: Final = {"PixelData": 0x7FE00010, "FloatPixelData": 0x7FE00008, "DoubleFloatPixelData": 0x7FE00009}


@dataclass(frozen=True)
class Transcoded:
    """A Part 10 file to be sent: its length in bytes, known beforehand, and its pieces."""

    length: int
    chunks: Iterator[bytes]


def can_be_explicit(transfer_syntax: str) -> bool:
    """Whether an object so stored has a form in Explicit VR Little Endian at all: a video has none."""
    return not transfer_syntaxes.is_video(transfer_syntax)


def as_explicit(file: BinaryIO, header: Header) -> Transcoded:
    """The object in Explicit VR Little Endian. ``file`` stays open until the chunks are consumed.

    The first frame is decoded before this returns, so what cannot be decoded is known before a byte is sent.

    Raises: PermanentError "cannot-decode", "cannot-transcode", and those of ``frames.read_frame``.
    """
    if not can_be_explicit(header.transfer_syntax):
        raise PermanentError("cannot-transcode", "a video has no uncompressed form here")
    little = transfer_syntaxes.is_little_endian(header.transfer_syntax)
    again = read_header(file, required=(), tell_places=True)
    if not again.complete:
        raise PermanentError("cannot-transcode", "a nested value is too long to be carried over")
    pixel_tag = _PIXEL_TAGS.get(header.pixel_keyword, 0)
    pieces: list[tuple[int, bytes, tuple[int, int, int] | None]] = []
    # Read anew: in a data set that was looked into, values are no longer the bytes of the file.
    dataset = again.dataset
    changed: dict[int, bytes] = {}
    pixels: _Pixels | None = None
    native = header.pixel_offset is not None and not header.encapsulated
    if header.pixel_offset is not None and native:
        # Native pixels go over as they are, with whatever lies in their unused bits.
        size = max(1, layout(header).bits_allocated // 8)
        length = header.pixel_length or 0
        vr = {"FloatPixelData": "OF", "DoubleFloatPixelData": "OD"}.get(header.pixel_keyword, "OW")
        if size == 1 and not header.pixel_is_words:
            vr = "OB"
        place = (2 if size == 1 and vr == "OW" else size, header.pixel_offset, length)
        pieces.append((pixel_tag, _head(pixel_tag, vr, length + length % 2), place))
    elif header.pixel_offset is not None:
        pixels = _Pixels(file, header)
        changed = pixels.attributes()
        vr = "OW" if pixels.shape.bits_allocated > 8 else "OB"
        pieces.append((pixel_tag, _head(pixel_tag, vr, pixels.length + pixels.length % 2), None))
    left_out = {place[0] for place in header.omitted}
    for tag, offset, length in header.omitted:
        vr = _vr_of(tag, dataset)
        pieces.append((tag, _head(tag, vr, length + length % 2), (_SIZES.get(vr, 1), offset, length)))
    with open_plain(file, header) as plain:
        for tag in list(dataset.keys()):
            number = int(tag)
            if number & 0xFFFF and number not in _OFFSET_TABLES and number not in left_out and number not in changed:
                pieces.append((number, _element(plain, dataset, tag, header), None))
    pieces += [(tag, encoded, None) for tag, encoded in changed.items()]
    pieces.sort(key=lambda piece: piece[0])
    meta = write_file_meta(header.sop_class_uid, header.sop_instance_uid, transfer_syntaxes.EXPLICIT_VR_LITTLE_ENDIAN)
    length = len(meta) + sum(len(encoded) + (place[2] + place[2] % 2 if place else 0) for _, encoded, place in pieces)
    if pixels:
        length += pixels.length + pixels.length % 2

    def chunks() -> Iterator[bytes]:
        yield meta
        buffer = bytearray()
        for tag, encoded, place in pieces:
            buffer += encoded
            if place is not None:
                yield bytes(buffer)
                buffer.clear()
                yield from _value(file, header, *place, little=little)
            elif pixels is not None and tag == pixel_tag:
                yield bytes(buffer)
                buffer.clear()
                yield from pixels.chunks()
        if buffer:
            yield bytes(buffer)

    return Transcoded(length, chunks())


class _Pixels:
    """The pixel data of an object, decoded frame by frame."""

    def __init__(self, file: BinaryIO, header: Header) -> None:
        self._file = file
        self._header = header
        self.shape: FrameLayout = layout(header)
        with open_plain(file, header) as plain:
            self._first, self._colour_space = self._decoded(plain, 0)
        if self.shape.bits_allocated == 1:
            self.length = -(-self.shape.rows * self.shape.columns * self.shape.samples * self.shape.frames // 8)
        else:
            self.length = len(self._first) * self.shape.frames
        if self.length > _LARGEST:
            raise PermanentError("cannot-transcode", "uncompressed, the pixels are over 4 GiB")

    def _decoded(self, plain: BinaryIO, index: int) -> tuple[bytes, str]:
        stored = read_frame(plain, self._header, index)
        array, colour_space = decode_whole(stored, self._header)
        return array.tobytes(), colour_space

    def attributes(self) -> dict[int, bytes]:
        """The elements that say something else once the pixels are decoded."""
        changed: dict[int, bytes] = {}
        if self.shape.samples > 1:
            # Decoded chroma has the full resolution, so nothing is 422 any more.
            colour_space = self._colour_space.removesuffix("_422")
            changed[0x00280004] = _encoded(0x00280004, "CS", colour_space.encode("ascii"))
            changed[0x00280006] = _encoded(0x00280006, "US", struct.pack("<H", 0))
        lossy = transfer_syntaxes.is_lossy(self._header.transfer_syntax)
        if lossy and not text(self._header.dataset, "LossyImageCompression") and not self._may_be_reversible():
            changed[0x00282110] = _encoded(0x00282110, "CS", b"01")
        return changed

    def _may_be_reversible(self) -> bool:
        return self._header.transfer_syntax in (transfer_syntaxes.JPEG_2000, transfer_syntaxes.HTJ2K)

    def chunks(self) -> Iterator[bytes]:
        """All frames one behind the other, padded to an even length."""
        with open_plain(self._file, self._header) as plain:
            if self.shape.bits_allocated == 1:
                yield from self._bits(plain)
            else:
                yield self._first
                for index in range(1, self.shape.frames):
                    yield self._decoded(plain, index)[0]
        if self.length % 2:
            yield b"\0"

    def _bits(self, plain: BinaryIO) -> Iterator[bytes]:
        """Frames of single bits follow each other without a gap, so a frame may begin inside a byte."""
        carried = np.zeros(0, np.uint8)
        for index in range(self.shape.frames):
            raw = self._first if index == 0 else self._decoded(plain, index)[0]
            bits = np.concatenate((carried, np.frombuffer(raw, np.uint8)))
            whole = len(bits) - len(bits) % 8
            yield np.packbits(bits[:whole], bitorder="little").tobytes()
            carried = bits[whole:]
        if len(carried):
            yield np.packbits(carried, bitorder="little").tobytes()


def _value(file: BinaryIO, header: Header, size: int, offset: int, length: int, *, little: bool) -> Iterator[bytes]:
    """A long value as it lies in the plain stream, its words turned where the stream is big-endian."""
    with open_plain(file, header) as plain:
        left = length
        while left:
            plain.seek(offset + length - left)
            chunk = plain.read(min(_CHUNK, left))
            if not chunk:
                raise PermanentError("truncated", f"{left} bytes of a value are missing")
            left -= len(chunk)
            yield chunk if little else _swapped(chunk, size)
    if length % 2:
        yield b"\0"


def _swapped(raw: bytes, size: int) -> bytes:
    if size == 1 or len(raw) % size:
        return raw
    return np.frombuffer(raw, f">u{size}").astype(f"<u{size}").tobytes()


def _vr_of(tag: int, dataset: Dataset) -> str:
    try:
        vr = str(dictionary_VR(tag))
    except KeyError:
        return "UN"
    return _resolved(vr, dataset)


def _resolved(vr: str, dataset: Dataset) -> str:
    """One of the VRs the dictionary leaves open. Source: PS3.5 A.1, notes on US or SS and OB or OW."""
    if " or " not in vr:
        return vr
    if "OW" in vr:
        return "OW"
    sign: Any = dataset.get_item(0x00280103)
    return "SS" if isinstance(sign, RawDataElement) and (sign.value or b"").strip(b"\0") else "US"


def _element(plain: BinaryIO, dataset: Dataset, tag: BaseTag, header: Header) -> bytes:
    item: Any = dataset.get_item(tag)
    little = transfer_syntaxes.is_little_endian(header.transfer_syntax)
    if isinstance(item, RawDataElement):
        vr = _resolved(item.VR or "UN", dataset)
        raw = bytes(item.value or b"")
        if not little and not item.is_little_endian:
            raw = _swapped(raw, _SIZES.get(vr, 1))
        return _encoded(int(tag), vr, raw)
    if isinstance(item, DataElement) and item.VR == "SQ":
        items = b"".join(_item(plain, inner, header) for inner in item.value)
        return _head(int(tag), "SQ", len(items)) + items
    if isinstance(item, DataElement) and isinstance(item.value, PixelElement):
        vr = _resolved(str(item.VR), dataset)
        plain.seek(item.value.offset)
        raw = plain.read(item.value.length)
        return _encoded(int(tag), vr, raw if little else _swapped(raw, _SIZES.get(vr, 1)))
    if isinstance(item, DataElement):
        return _encoded(int(tag), str(item.VR), _as_stored(plain, item, dataset))
    raise PermanentError("cannot-transcode", f"({int(tag):08X}) is of a kind that is not carried over")


def _item(plain: BinaryIO, inner: Dataset, header: Header) -> bytes:
    pixels = inner.get_item(_PIXEL_TAGS["PixelData"])
    decoded: dict[int, bytes] = {}
    if isinstance(pixels, DataElement) and isinstance(pixels.value, PixelElement) and pixels.value.encapsulated:
        decoded = _picture(plain, inner, pixels.value, header)
    body = b"".join(
        decoded[tag] if tag in decoded else _element(plain, inner, BaseTag(tag), header)
        for tag in sorted({*map(int, inner.keys()), *decoded})
        if tag & 0xFFFF
    )
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(body)) + body


def _picture(plain: BinaryIO, inner: Dataset, place: PixelElement, header: Header) -> dict[int, bytes]:
    """The elements of a picture within an item, as an icon is, that is encapsulated as the image itself."""
    own = replace(header, dataset=inner, pixel_offset=place.offset, pixel_length=place.length, encapsulated=True)
    pixels = _Pixels(plain, replace(own, pixel_keyword="PixelData"))
    value = b"".join(pixels.chunks())
    vr = "OW" if pixels.shape.bits_allocated > 8 else "OB"
    return {**pixels.attributes(), _PIXEL_TAGS["PixelData"]: _encoded(_PIXEL_TAGS["PixelData"], vr, value)}


def _as_stored(plain: BinaryIO, item: DataElement, dataset: Dataset) -> bytes:
    """The bytes of a value that the reader had to decode itself, as its character set was wrong or uses escapes."""
    if isinstance(item.value, bytes):
        return item.value
    if item.VR == "UI":
        return str(item.value).encode("ascii")
    offset = item.file_tell
    implicit, little = dataset.original_encoding
    if offset is None or implicit is None:
        raise PermanentError("cannot-transcode", f"({int(item.tag):08X}) cannot be carried over")
    order = "<" if little else ">"
    wide = implicit or item.VR in _LONG
    plain.seek(offset - (4 if wide else 2))
    (length,) = struct.unpack(order + ("L" if wide else "H"), plain.read(4 if wide else 2))
    return plain.read(length)


def _encoded(tag: int, vr: str, raw: bytes) -> bytes:
    if len(raw) % 2:
        raw += b"\0" if vr in ("UI", "UN") or vr.startswith("O") else b" "
    return _head(tag, vr, len(raw)) + raw


def _head(tag: int, vr: str, length: int) -> bytes:
    group, number = tag >> 16, tag & 0xFFFF
    if length > _LARGEST:
        raise PermanentError("cannot-transcode", f"({tag:08X}) is over 4 GiB")
    if vr not in _LONG and length > 0xFFFE:
        vr = "UN"  # PS3.5 6.2.2: what is too long for its VR's 16-bit length
    if vr in _LONG:
        return struct.pack("<HH2s2xL", group, number, vr.encode("ascii"), length)
    return struct.pack("<HH2sH", group, number, vr.encode("ascii"), length)

"""Stored frames of an image, one at a time, as they lie in the file.

Source: PS3.5 8.2, A.4
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from standards import transfer_syntaxes
from standards.errors import PermanentError
from standards.part10 import Header, open_plain, text

MAX_FRAME_BYTES: Final = 1 << 30
MAX_FRAGMENTS: Final = 1_000_000


@dataclass(frozen=True)
class FrameLayout:
    """The shape of every frame: rows × columns pixels of ``samples`` values, ``bits_allocated`` bits each."""

    frames: int
    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    is_signed: bool
    photometric_interpretation: str
    planar_configuration: int

    @property
    def bits(self) -> int:
        """Bits of one native frame as stored, chroma subsampling included."""
        samples = 2 if self.is_subsampled else self.samples
        return self.rows * self.columns * samples * self.bits_allocated

    @property
    def is_subsampled(self) -> bool:
        """Whether two pixels share their chroma in native frames."""
        return self.samples == 3 and self.photometric_interpretation in ("YBR_FULL_422", "YBR_PARTIAL_422")


def number(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    """An integer value.

    Raises: PermanentError("invalid-image") if it is absent without a default, or not a number.
    """
    value = text(dataset, keyword).split("\\")[0]
    if not value and default is not None:
        return default
    try:
        return int(float(value))
    except (ValueError, OverflowError) as error:
        raise PermanentError("invalid-image", f"{keyword} is {value[:20]!r}") from error


def frame_count(header: Header) -> int:
    """How many frames the object has: 0 without pixel data, else Number of Frames, else 1.

    Raises: PermanentError("invalid-image").
    """
    if header.pixel_offset is None:
        return 0
    return max(1, number(header.dataset, "NumberOfFrames", 1))


def layout(header: Header) -> FrameLayout:
    """The shape of the frames.

    Raises: PermanentError "no-pixel-data", "invalid-image".
    """
    if header.pixel_offset is None:
        raise PermanentError("no-pixel-data", "the object has no image")
    dataset = header.dataset
    shape = FrameLayout(
        frames=frame_count(header),
        rows=number(dataset, "Rows"),
        columns=number(dataset, "Columns"),
        samples=number(dataset, "SamplesPerPixel", 1),
        bits_allocated=number(dataset, "BitsAllocated"),
        bits_stored=number(dataset, "BitsStored", number(dataset, "BitsAllocated")),
        is_signed=number(dataset, "PixelRepresentation", 0) == 1,
        photometric_interpretation=text(dataset, "PhotometricInterpretation"),
        planar_configuration=number(dataset, "PlanarConfiguration", 0),
    )
    if not (0 < shape.rows <= 0xFFFFFFFF and 0 < shape.columns <= 0xFFFFFFFF):
        raise PermanentError("invalid-image", f"{shape.rows} × {shape.columns} is no image")
    if shape.samples not in (1, 3, 4) or shape.bits_allocated not in (1, 8, 16, 32, 64):
        raise PermanentError("invalid-image", f"{shape.samples} samples of {shape.bits_allocated} bits")
    return shape


def media_type(header: Header) -> str:
    """The media type of :func:`frame_bytes` for this object."""
    return transfer_syntaxes.frame_media_type(header.transfer_syntax)


@dataclass(frozen=True)
class FrameTable:
    """Where each frame lies in the plain stream, so that one is found without walking past the others.

    ``places`` are (offset, length) of fragments, ``bounds`` say which of them are whose; native frames need neither.
    """

    count: int
    offset: int
    length: int
    bits: int
    swapped: bool
    places: NDArray[np.uint64] | None = None
    bounds: NDArray[np.uint32] | None = None

    @property
    def is_direct(self) -> bool:
        """Whether frames are byte ranges of the plain stream as they are: not words to swap, nor bits to shift."""
        return self.places is not None or not (self.swapped or self.bits % 8)

    def ranges(self, index: int) -> list[tuple[int, int]]:
        """(offset, length) of the pieces of frame ``index`` (from 0); for single bits, of the bytes that hold it.

        Raises: PermanentError "no-such-frame", "truncated", "frame-too-large".
        """
        if not 0 <= index < self.count:
            raise PermanentError("no-such-frame", f"frame {index + 1} of {self.count}")
        if self.places is not None and self.bounds is not None:
            chosen = self.places[int(self.bounds[index]) : int(self.bounds[index + 1])].tolist()
            found = [(int(offset), int(length)) for offset, length in chosen]
        else:
            begin, end = index * self.bits // 8, -(-(index + 1) * self.bits // 8)
            if end > self.length:
                raise PermanentError("truncated", f"frame {index + 1} ends at {end} of {self.length} bytes of pixels")
            found = [(self.offset + begin, end - begin)]
        if sum(length for _, length in found) > MAX_FRAME_BYTES and self.bits:
            raise PermanentError("frame-too-large", f"over {MAX_FRAME_BYTES} bytes")
        return found


def frame_table(plain: BinaryIO, header: Header) -> FrameTable:
    """The table of an object, from the stream that ``part10.open_plain`` gives. The one stream of a video is frame 0.

    Raises: PermanentError "no-pixel-data", "invalid-image", "truncated", "ambiguous-fragments", "too-many-elements".
    """
    if header.pixel_offset is None or header.pixel_length is None:
        raise PermanentError("no-pixel-data", "the object has no image")
    if not header.encapsulated:
        shape = layout(header)
        swapped = header.pixel_is_words and shape.bits_allocated == 8 and _is_big_endian(header)
        return FrameTable(shape.frames, header.pixel_offset, header.pixel_length, shape.bits, swapped)
    is_video = transfer_syntaxes.is_video(header.transfer_syntax)
    count = 1 if is_video else frame_count(header)
    frames = _frame_fragments(plain, header, count)
    places = np.array([place for frame in frames for place in frame], np.uint64).reshape(-1, 2)
    bounds = np.cumsum([0, *(len(frame) for frame in frames)], dtype=np.uint32)
    bits = 0 if is_video else 8  # a video is streamed, so it may be long
    return FrameTable(count, header.pixel_offset, header.pixel_length, bits, False, places, bounds)


def frame_bytes(path: Path | str, header: Header, index: int) -> bytes:
    """The stored bytes of frame ``index`` (from 0), without re-encoding; holds one frame in memory at most.

    Native frames are in the byte order of the file, except that bytes in big-endian words come in the order of the
    pixels; 1-bit frames that do not start on a byte are shifted to start on one. Encapsulated ones are the frame's
    fragments joined. A video is one stream, given as frame 0.

    Raises: PermanentError "no-such-frame", "no-pixel-data", "invalid-image", "truncated", "frame-too-large",
        "ambiguous-fragments" (more frames than fragments can be told apart).
    """
    with open(path, "rb") as file, open_plain(file, header) as plain:
        return read_frame(plain, header, index)


def read_frame(plain: BinaryIO, header: Header, index: int) -> bytes:
    """:func:`frame_bytes` from the stream that ``part10.open_plain`` gives."""
    return read_from_table(plain, frame_table(plain, header), index)


def read_from_table(plain: BinaryIO, table: FrameTable, index: int) -> bytes:
    """:func:`read_frame` with a table made before."""
    found = table.ranges(index)
    if sum(length for _, length in found) > MAX_FRAME_BYTES:
        raise PermanentError("frame-too-large", f"over {MAX_FRAME_BYTES} bytes")
    if table.places is not None:
        return _joined(plain, found)
    offset, length = found[0]
    begin = offset - table.offset
    if table.swapped:
        raw = _swapped(plain, table.offset, begin, begin + length)
    else:
        plain.seek(offset)
        raw = plain.read(length)
    if table.bits % 8 == 0:
        return raw
    first = index * table.bits
    shifted = int.from_bytes(raw, "little") >> (first % 8) & ((1 << table.bits) - 1)
    return shifted.to_bytes(-(-table.bits // 8), "little")


def _is_big_endian(header: Header) -> bool:
    return not transfer_syntaxes.is_little_endian(header.transfer_syntax)


def _swapped(plain: BinaryIO, offset: int, begin: int, end: int) -> bytes:
    """Bytes that travel in pairs as big-endian words (PS3.5 8.1.1), in the order of the pixels."""
    first = begin - begin % 2
    plain.seek(offset + first)
    words = bytearray(plain.read(end + end % 2 - first))
    words += bytes(len(words) % 2)
    words[0::2], words[1::2] = words[1::2], words[0::2]
    return bytes(words[begin - first : end - first])


# Fragments


def fragments(plain: BinaryIO, header: Header) -> Iterator[tuple[int, int]]:
    """(offset, length) of every item of encapsulated pixel data, the Basic Offset Table first."""
    order = "<HHL" if transfer_syntaxes.is_little_endian(header.transfer_syntax) else ">HHL"
    position = header.pixel_offset or 0
    end = position + (header.pixel_length or 0)
    while position < end:
        plain.seek(position)
        _, _, length = struct.unpack(order, plain.read(8))
        yield position + 8, length
        position += 8 + length


def _frame_fragments(plain: BinaryIO, header: Header, count: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    items = list(islice(fragments(plain, header), MAX_FRAGMENTS + 1))
    if len(items) > MAX_FRAGMENTS:
        raise PermanentError("too-many-elements", f"over {MAX_FRAGMENTS} fragments")
    if not items:
        raise PermanentError("truncated", "the pixel data has no items")
    table, rest = items[0], items[1:]
    if count == 1:
        return (tuple(rest),)
    starts = _extended_offsets(header) or _basic_offsets(plain, header, table)
    if starts:
        base = rest[0][0] - 8 if rest else 0
        at = {offset - 8 - base: number for number, (offset, _) in enumerate(rest)}
        if len(starts) == count and all(start in at for start in starts) and starts == sorted(set(starts)):
            bounds = [at[start] for start in starts] + [len(rest)]
            return tuple(tuple(rest[a:b]) for a, b in pairwise(bounds))
    if len(rest) == count:
        return tuple((item,) for item in rest)
    return _by_end_of_image(plain, rest, count)


def _basic_offsets(plain: BinaryIO, header: Header, table: tuple[int, int]) -> list[int]:
    offset, length = table
    if length == 0 or length % 4 or length > 4 * 10_000_000:
        return []
    order = "<" if transfer_syntaxes.is_little_endian(header.transfer_syntax) else ">"
    plain.seek(offset)
    return list(struct.unpack(f"{order}{length // 4}L", plain.read(length)))


def _extended_offsets(header: Header) -> list[int]:
    raw = header.dataset.get("ExtendedOffsetTable")
    if not isinstance(raw, bytes) or not raw or len(raw) % 8:
        return []
    return list(struct.unpack(f"<{len(raw) // 8}Q", raw))


def _by_end_of_image(
    plain: BinaryIO, rest: list[tuple[int, int]], count: int
) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Frames told apart where a fragment ends with the JPEG family's end-of-image marker."""
    frames: list[tuple[tuple[int, int], ...]] = []
    current: list[tuple[int, int]] = []
    for offset, length in rest:
        current.append((offset, length))
        tail_length = min(length, 16)
        plain.seek(offset + length - tail_length)
        if b"\xff\xd9" in plain.read(tail_length):
            frames.append(tuple(current))
            current = []
    if current or len(frames) != count:
        raise PermanentError("ambiguous-fragments", f"{len(rest)} fragments without a usable table for {count} frames")
    return tuple(frames)


def iter_frames(plain: BinaryIO, header: Header) -> Iterator[bytes]:
    """Every stored frame in order, one in memory at a time; raises as :func:`frame_bytes`."""
    table = frame_table(plain, header)
    for index in range(table.count):
        yield read_from_table(plain, table, index)


def _joined(plain: BinaryIO, chosen: list[tuple[int, int]]) -> bytes:
    parts = []
    for offset, length in chosen:
        plain.seek(offset)
        part = plain.read(length)
        if len(part) != length:
            raise PermanentError("truncated", f"fragment at {offset}")
        parts.append(part)
    return b"".join(parts)

"""Lookup tables of DICOM: Modality and VOI LUT items, and palettes, segmented ones too.

Source: PS3.3 C.11.1.1, C.11.2.1.1, C.7.6.3.1.5, C.7.9.2
"""

import struct
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from standards.errors import PermanentError

_COLOURS: Final = ("Red", "Green", "Blue")
_MOST_ENTRIES: Final = 1 << 16


@dataclass(frozen=True)
class Lut:
    """A table: input ``first`` gives ``entries[0]``; what lies outside takes the nearest entry."""

    first: int
    entries: NDArray[np.uint16]
    bits: int

    def look_up(self, values: NDArray[Any]) -> NDArray[np.uint16]:
        """The entries of integer ``values``."""
        index = np.clip(values.astype(np.int64) - self.first, 0, len(self.entries) - 1)
        return np.asarray(self.entries[index])


def _cannot(detail: str) -> PermanentError:
    return PermanentError("cannot-render", detail)


def lut_of(item: Dataset, *, signed: bool) -> Lut:
    """The table of a Modality or VOI LUT item; ``signed`` says how its first input value is written.

    Raises: PermanentError("cannot-render").
    """
    count, first, bits = _descriptor(item.get("LUTDescriptor"), signed=signed)
    words = _words(item, "LUTData", count, bits)
    if len(words) < count:
        raise _cannot(f"a table of {count} entries has {len(words)}")
    return Lut(first, words[:count], _real_bits(words[:count], bits))


def _descriptor(value: Any, *, signed: bool) -> tuple[int, int, int]:
    try:
        count, first, bits = (int(part) for part in value)
    except (TypeError, ValueError) as error:
        raise _cannot("a table without a descriptor") from error
    count = (count & 0xFFFF) or _MOST_ENTRIES
    first &= 0xFFFF
    if signed and first > 0x7FFF:
        first -= 0x10000
    if not 1 <= bits <= 16:
        raise _cannot(f"a table of {bits} bits")
    return count, first, bits


def _real_bits(words: NDArray[np.uint16], bits: int) -> int:
    """Many a device says 16 and writes 8 or 12: what the entries need, if the descriptor cannot be true."""
    return max(bits, int(words.max()).bit_length()) if len(words) else bits


def _words(item: Dataset, keyword: str, count: int, bits: int) -> NDArray[np.uint16]:
    """The entries as they are written: words, or bytes where they are packed."""
    value = item.get(keyword)
    if isinstance(value, bytes):
        if bits <= 8 and len(value) < 2 * count:
            return np.frombuffer(value, np.uint8).astype(np.uint16)
        little = item.original_encoding[1] is not False
        return np.frombuffer(value[: len(value) & ~1], "<u2" if little else ">u2").astype(np.uint16)
    if value is None:
        return np.zeros(0, np.uint16)
    listed = [value] if isinstance(value, int) else list(value)
    words = np.array([int(one) & 0xFFFF for one in listed], np.uint16)
    if bits <= 8 and len(words) < count:  # two entries of eight bits a word
        return np.frombuffer(words.astype("<u2").tobytes(), np.uint8).astype(np.uint16)
    return words


def palette_of(dataset: Dataset, *, signed: bool) -> tuple[int, NDArray[np.uint8]]:
    """(first input value, entries × 3 of 8 bits) of a palette, expanded where it is segmented.

    Raises: PermanentError("cannot-render").
    """
    planes = []
    first = 0
    for colour in _COLOURS:
        count, first, bits = _descriptor(dataset.get(f"{colour}PaletteColorLookupTableDescriptor"), signed=signed)
        plain, segmented = f"{colour}PaletteColorLookupTableData", f"Segmented{colour}PaletteColorLookupTableData"
        if dataset.get(plain):
            words = _words(dataset, plain, count, bits)
        elif dataset.get(segmented):
            words = _expanded(_segments(dataset, segmented, bits), wide=bits > 8)
        else:
            raise _cannot(f"no {colour.lower()} palette")
        if len(words) < count:
            raise _cannot(f"a palette of {count} entries has {len(words)}")
        planes.append((words[:count], bits))
    deep = any(bits > 8 for _, bits in planes) and max(int(words.max()) for words, _ in planes) > 255
    made = [(words >> 8 if deep else words).astype(np.uint8) for words, _ in planes]
    if len({len(plane) for plane in made}) > 1:
        raise _cannot("the palettes of the colours differ in length")
    return first, np.stack(made, axis=-1)


def _segments(dataset: Dataset, keyword: str, bits: int) -> list[int]:
    value = dataset.get(keyword)
    if not isinstance(value, bytes):
        return [int(one) & 0xFFFF for one in ([value] if isinstance(value, int) else value)]
    if bits <= 8:
        return list(value)
    order = "<" if dataset.original_encoding[1] is not False else ">"
    return list(struct.unpack(f"{order}{len(value) // 2}H", value[: len(value) & ~1]))


def _expanded(data: list[int], *, wide: bool) -> NDArray[np.uint16]:
    """Discrete, linear and indirect segments as a plain list; ``wide``: of 16 bits. Source: PS3.3 C.7.9.2"""
    entries: list[int] = []
    starts: list[int] = []
    at = 0
    while at + 1 < len(data) and len(entries) <= _MOST_ENTRIES:
        if data[at] == 2:
            _indirect(entries, data, at, starts, wide=wide)
            at += 4 if wide else 6
        elif data[at] in (0, 1):
            starts.append(at)
            at = _plain_segment(entries, data, at)
        elif any(data[at:]):
            raise _cannot(f"a segmented palette with a segment of type {data[at]}")
        else:
            break
    return np.array(entries[:_MOST_ENTRIES], np.uint16)


def _plain_segment(entries: list[int], data: list[int], at: int) -> int:
    length = data[at + 1]
    if data[at] == 0:
        entries += data[at + 2 : at + 2 + length]
        return at + 2 + length
    if not entries or at + 2 >= len(data):
        raise _cannot("a segmented palette begins with a ramp, or ends in one")
    begin, end = entries[-1], data[at + 2]
    entries += [round(begin + (end - begin) * step / length) for step in range(1, length + 1)]
    return at + 3


def _indirect(entries: list[int], data: list[int], at: int, starts: list[int], *, wide: bool) -> None:
    """Repeat segments that were given before. Their place is in bytes; some writers count words."""
    if at + (3 if wide else 5) >= len(data):
        raise _cannot("a segmented palette ends inside a segment")
    digits = data[at + 2 : at + (4 if wide else 6)]
    place = sum(part << ((16 if wide else 8) * number) for number, part in enumerate(digits))
    position = place // 2 if wide and place // 2 in starts else place
    for _ in range(data[at + 1]):
        if position not in starts:
            raise _cannot("a segmented palette repeats what is no segment")
        position = _plain_segment(entries, data, position)
        if len(entries) > _MOST_ENTRIES:
            raise _cannot("a segmented palette without end")

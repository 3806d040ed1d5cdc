"""Walk the elements of a data set of any encoding, checking every length before a byte is read.

Source: PS3.5 7.1, 7.5, A.4
"""

import struct
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import BinaryIO, Final

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.tag import BaseTag

from standards import charsets
from standards.data_dictionary import dictionary_vr, tag_of
from standards.errors import PermanentError

MAX_DEPTH: Final = 64
MAX_KEPT_VALUE: Final = 1 << 20
MAX_OMITTED: Final = 10_000
UNDEFINED: Final = 0xFFFFFFFF

_ITEM: Final = 0xFFFEE000
_ITEM_DELIMITER: Final = 0xFFFEE00D
_SEQUENCE_DELIMITER: Final = 0xFFFEE0DD
_PIXEL_TAGS: Final = {0x7FE00010: "PixelData", 0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData"}
LONG_VRS: Final = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_VRS: Final = LONG_VRS | frozenset(
    {
        b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
        b"ST", b"TM", b"UI", b"UL", b"US",
    }
)  # fmt: skip
_NAMES: Final = {vr: vr.decode() for vr in _VRS}
_SHORT_NAMES: Final = {vr: vr.decode() for vr in _VRS - LONG_VRS}
_WINDOW: Final = 1 << 16


@dataclass
class Budget:
    """What one data set may cost: elements walked, elements and bytes kept, bytes within items whose place is told."""

    walked: int = 8_000_000
    kept_elements: int = 500_000
    kept_bytes: int = 64 << 20
    told_bytes: int = 64 << 20


@dataclass(frozen=True)
class PixelElement:
    """Where the pixel data value lies: for encapsulated data from the first item tag to before the delimiter. With
    ``tell_places`` also where a value within items lies that is too long to keep."""

    keyword: str
    offset: int
    length: int
    encapsulated: bool
    is_words: bool


@dataclass(frozen=True)
class _CharacterSet:
    """A Specific Character Set as it holds for one data set or item."""

    terms: list[str]
    encodings: list[str]

    @classmethod
    @lru_cache(256)
    def of(cls, value: str) -> "_CharacterSet":
        return cls(charsets.terms(value), charsets.python_encodings(value))

    def explains(self, value: bytes) -> bool:
        """Whether pydicom may decode the value by the declared set; otherwise it is guessed here."""
        if b"\x1b" in value:
            return False
        if value.isascii():
            return True
        if len(self.terms) > 1 or not charsets.is_known(self.terms) or self.encodings[0] == "iso8859":
            return False
        try:
            value.decode(self.encodings[0])
        except (UnicodeDecodeError, LookupError):
            return False
        return True


@dataclass(frozen=True)
class _Encoding:
    implicit: bool
    little_endian: bool
    tag_short: struct.Struct = field(init=False)
    tag_long: struct.Struct = field(init=False)
    long: struct.Struct = field(init=False)

    def __post_init__(self) -> None:
        order = "<" if self.little_endian else ">"
        object.__setattr__(self, "tag_short", struct.Struct(order + "HH2sH"))
        object.__setattr__(self, "tag_long", struct.Struct(order + "HHL"))
        object.__setattr__(self, "long", struct.Struct(order + "L"))


_encoding: Final = cache(_Encoding)
_IMPLICIT_LITTLE: Final = _encoding(True, True)


class Walker:
    """One pass over a data set; gives a pydicom Dataset of raw elements and the place of the pixel data."""

    def __init__(
        self,
        stream: BinaryIO,
        start: int,
        *,
        implicit: bool,
        little_endian: bool,
        budget: Budget,
        default_charset: str,
        more_to_come: bool = False,
        tell_places: bool = False,
    ) -> None:
        """``more_to_come``, ``tell_places``: as for ``part10.read_header``; ``position`` is where the data set ends."""
        self._more_to_come = more_to_come
        self._tell_places = tell_places
        self._stream = stream
        self._end = stream.seek(0, 2)
        self._window = b""
        self._window_start = start
        self._encoding = _encoding(implicit, little_endian)
        self._budget = budget
        self._default_charset = default_charset
        self._written_in = charsets.overriding_codec(default_charset)
        self.position = start
        self.pixel: PixelElement | None = None
        self.omitted: list[tuple[int, int, int]] = []
        self.complete = True

    def read_dataset(self, only_group: int | None = None) -> Dataset:
        """The data set from the current position to the end of the stream, or to the first element of another group.

        Raises: PermanentError, see :func:`standards.part10.read_header`.
        """
        return self._elements(self._end, self._encoding, 0, None, only_group=only_group)

    # Bytes

    def _take(self, count: int) -> bytes:
        start = self.position - self._window_start
        if not 0 <= start <= len(self._window) - count:
            if self.position + count > self._end:
                raise PermanentError("truncated", f"{count} bytes wanted at {self.position}, the end is at {self._end}")
            self._stream.seek(self.position)
            self._window = self._stream.read(max(count, _WINDOW))
            self._window_start, start = self.position, 0
            if len(self._window) < count:
                raise PermanentError("truncated", f"the stream ended at {self.position + len(self._window)}")
        self.position += count
        return self._window[start : start + count]

    def _within(self, length: int, limit: int, tag: int) -> int:
        """The end of a value of ``length`` bytes from here."""
        end = self.position + length
        if end > limit:
            if limit == self._end:
                raise PermanentError("truncated", f"({tag:08X}) reaches to {end}, the end is at {self._end}")
            raise PermanentError("length-out-of-bounds", f"({tag:08X}) reaches to {end}, its sequence ends at {limit}")
        return end

    def _count(self) -> None:
        self._budget.walked -= 1
        if self._budget.walked < 0:
            raise PermanentError("too-many-elements", "a data set of this size is not read")

    def _keep(self, length: int) -> bool:
        self._budget.kept_elements -= 1
        self._budget.kept_bytes -= length
        return self._budget.kept_elements >= 0 and self._budget.kept_bytes >= 0

    def _left_out(self, tag: int, vr: str | None, depth: int, place: PixelElement) -> DataElement | None:
        """What stands for a value that is not kept."""
        if depth == 0 and not place.encapsulated:
            self.complete = self.complete and self._tell_places
            self.omitted.append((tag, place.offset, place.length))
            if len(self.omitted) > MAX_OMITTED:
                raise PermanentError("too-many-elements", "a data set of this size is not read")
            return None
        self._budget.told_bytes -= place.length
        if depth and self._tell_places and self._budget.told_bytes >= 0 and self._budget.kept_elements > 0:
            self._budget.kept_elements -= 1
            return DataElement(tag, vr or "UN", place, already_converted=True)
        self.complete = False
        return None

    # Elements

    def _elements(
        self,
        limit: int,
        encoding: _Encoding,
        depth: int,
        parent_charset: _CharacterSet | None,
        *,
        delimited: bool = False,
        only_group: int | None = None,
    ) -> Dataset:
        """Elements up to ``limit``, or with ``delimited`` up to the item delimiter."""
        if depth > MAX_DEPTH:
            raise PermanentError("nesting-too-deep", f"sequences are nested deeper than {MAX_DEPTH}")
        elements: dict[BaseTag, RawDataElement | DataElement] = {}
        charset = parent_charset or _CharacterSet.of(self._default_charset)
        while delimited or self.position < limit:
            if not encoding.implicit and only_group is None:
                self._plain_run(elements, limit, encoding)
                if not delimited and self.position >= limit:
                    break
            start = self.position
            if only_group is not None and self._peek_group() != only_group:
                break
            tag, vr, length = self._element_header(limit, encoding)
            if tag == _ITEM_DELIMITER and delimited:
                break
            if tag >> 16 == 0xFFFE:
                raise PermanentError("length-out-of-bounds", f"({tag:08X}) at {start} is not where a sequence has it")
            if tag == 0 and length == 0 and depth == 0 and self._only_zeros_follow():
                break
            element = self._value(tag, vr, length, limit, encoding, depth, charset)
            if element is not None:
                elements[tag_of(tag)] = element
            if tag == 0x00080005 and isinstance(element, RawDataElement) and not self._written_in:
                value = (element.value or b"").decode("latin-1")
                charset = _CharacterSet.of(value if value.strip(" \0") else self._default_charset)
        dataset = Dataset(elements)
        dataset.set_original_encoding(encoding.implicit, encoding.little_endian, list(charset.encodings))
        return dataset

    def _plain_run(
        self, elements: dict[BaseTag, RawDataElement | DataElement], limit: int, encoding: _Encoding
    ) -> None:
        """Take over the short ASCII elements that lie whole in the window, which most of most headers are.

        It does what the long way does, without a call for each step; what is any harder is left to that.
        """
        unpack, window, base, budget = encoding.tag_short.unpack_from, self._window, self._window_start, self._budget
        little_endian = encoding.little_endian
        position, end = self.position - base, min(len(window), limit - base)
        while 0 <= position <= end - 8:
            group, number, vr, length = unpack(window, position)
            start = position + 8
            stop = start + length
            name = _SHORT_NAMES.get(vr)
            if name is None or stop > end or group == 0xFFFE or (group == 0x0008 and number == 0x0005):
                break
            value = window[start:stop]
            if name in charsets.TEXT_VRS and (b"\x1b" in value or not value.isascii()):
                break
            if budget.walked < 1 or budget.kept_elements < 1 or budget.kept_bytes < length:
                break
            budget.walked -= 1
            budget.kept_elements -= 1
            budget.kept_bytes -= length
            tag = tag_of(group << 16 | number)
            elements[tag] = RawDataElement(tag, name, length, value, base + start, False, little_endian, True, False)
            position = stop
        if position > 0:
            self.position = base + position

    def _element_header(self, limit: int, encoding: _Encoding) -> tuple[int, str | None, int]:
        self._count()
        start = self.position
        head = self._take(8)
        if encoding.implicit:
            group, number, length = encoding.tag_long.unpack(head)
            tag = group << 16 | number
            return tag, dictionary_vr(tag), length
        group, number, vr, length = encoding.tag_short.unpack(head)
        tag = group << 16 | number
        if group == 0xFFFE:
            return tag, None, encoding.long.unpack(head[4:])[0]
        name = _NAMES.get(vr)
        if name is None:
            if head == bytes(8):
                return 0, None, 0
            raise PermanentError("invalid-vr", f"{vr!r} at {start} is not a value representation")
        if vr in LONG_VRS:
            (length,) = encoding.long.unpack(self._take(4))
        return tag, name, length

    def _peek_group(self) -> int:
        group: int = struct.unpack("<H", self._take(2))[0]
        self.position -= 2
        return group

    def _only_zeros_follow(self) -> bool:
        while self.position < self._end:
            chunk = self._take(min(_WINDOW, self._end - self.position))
            if chunk.strip(b"\0"):
                raise PermanentError("not-dicom", "bytes that are no elements follow the data set")
        return True

    def _value(
        self,
        tag: int,
        vr: str | None,
        length: int,
        limit: int,
        encoding: _Encoding,
        depth: int,
        charset: _CharacterSet,
    ) -> RawDataElement | DataElement | None:
        if length == UNDEFINED:
            if tag in _PIXEL_TAGS or vr in ("OB", "OW"):
                return self._encapsulated(tag, limit, encoding, depth)
            if vr not in ("SQ", "UN", None):
                raise PermanentError("length-out-of-bounds", f"({tag:08X}) of VR {vr} has an undefined length")
            # PS3.5 6.2.2: an UN of undefined length is a sequence in Implicit VR Little Endian.
            inner = _IMPLICIT_LITTLE if vr == "UN" else encoding
            return self._sequence(tag, limit, inner, depth, charset, delimited=True)
        if self._more_to_come and depth == 0 and tag in _PIXEL_TAGS:
            end = self.position + length
        else:
            end = self._within(length, limit, tag)
        if vr == "SQ":
            return self._sequence(tag, end, encoding, depth, charset, delimited=False)
        offset = self.position
        if depth == 0 and tag in _PIXEL_TAGS:
            self.pixel = PixelElement(_PIXEL_TAGS[tag], offset, length, False, vr != "OB")
            self.position = end
            return None
        if length > MAX_KEPT_VALUE or not self._keep(length):
            self.position = end
            return self._left_out(tag, vr, depth, PixelElement("", offset, length, False, False))
        value = self._take(length)
        if vr is None or vr == "UN":
            known = dictionary_vr(tag)
            if known and known not in ("SQ", "UN"):
                # Archives write public elements they did not know as UN, in little-endian (PS3.5 6.2.2).
                return RawDataElement(BaseTag(tag), known, length, value, offset, encoding.implicit, True, True, False)
            # Decided here, because pydicom may guess a sequence from its dictionaries and recurse into hostile bytes.
            return DataElement(tag, "UN", value, offset, already_converted=True)
        if vr in charsets.TEXT_VRS and not charset.explains(value):
            return DataElement(tag, vr, self._decoded(value, charset, vr), offset)
        return RawDataElement(
            BaseTag(tag), vr, length, value, offset, encoding.implicit, encoding.little_endian, True, False
        )

    def _decoded(self, value: bytes, charset: _CharacterSet, vr: str) -> str:
        if self._written_in:
            with suppress(UnicodeDecodeError):
                return value.decode(self._written_in).rstrip(" \0")
        return charsets.decode(value, charset.terms, person_name=vr == "PN").rstrip(" \0")

    def _sequence(
        self, tag: int, limit: int, encoding: _Encoding, depth: int, charset: _CharacterSet, *, delimited: bool
    ) -> DataElement:
        items: list[Dataset] = []
        start = self.position
        while delimited or self.position < limit:
            item_tag, length = self._item_header(limit, encoding)
            if item_tag == _SEQUENCE_DELIMITER and delimited:
                break
            if item_tag == _SEQUENCE_DELIMITER and self.position == limit:
                # Some writers close a sequence of known length all the same.
                break
            if item_tag != _ITEM:
                raise PermanentError("length-out-of-bounds", f"({item_tag:08X}) where an item of ({tag:08X}) should be")
            if length == UNDEFINED:
                item = self._elements(limit, encoding, depth + 1, charset, delimited=True)
            else:
                item = self._elements(self._within(length, limit, tag), encoding, depth + 1, charset)
            if self._keep(0):
                items.append(item)
            else:
                self.complete = False
        sequence = DataElement(tag, "SQ", DicomSequence(items), start, already_converted=True)
        sequence.is_undefined_length = delimited
        return sequence

    def _item_header(self, limit: int, encoding: _Encoding) -> tuple[int, int]:
        self._count()
        self._within(8, limit, _ITEM)
        group, number, length = encoding.tag_long.unpack(self._take(8))
        return group << 16 | number, length

    def _encapsulated(self, tag: int, limit: int, encoding: _Encoding, depth: int) -> DataElement | None:
        start = self.position
        while True:
            item_tag, length = self._item_header(limit, encoding)
            if item_tag == _SEQUENCE_DELIMITER:
                break
            if item_tag != _ITEM or length == UNDEFINED:
                raise PermanentError("length-out-of-bounds", f"({item_tag:08X}) of length {length} among fragments")
            self.position = self._within(length, limit, tag)
        place = PixelElement(_PIXEL_TAGS.get(tag, ""), start, self.position - 8 - start, True, False)
        if depth == 0 and tag in _PIXEL_TAGS:
            self.pixel = place
            return None
        return self._left_out(tag, "OB", depth, place)

"""Change single elements of an encoded data set and leave every other byte as it is, pixel data not even looked at.

For instances that pass through: what no rule names must arrive as it was sent. Lengths are checked before they are
believed. Source: PS3.5 7.1, 7.5, A.4
"""

import mmap
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from standards.data_dictionary import dictionary_vr
from standards.element_walker import LONG_VRS, MAX_DEPTH, UNDEFINED
from standards.errors import PermanentError
from standards.transfer_syntaxes import is_deflated, is_implicit, is_little_endian

Data = bytes | memoryview

_LET_GO_EVERY: Final = 8 << 20
_LET_GO_ITEMS: Final = 256
"""The header of each brings the memory around it, 64 KB or so."""

LARGEST_HEAD: Final = 256 << 20
"""What may come before the pixel data; more is not edited."""

_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_PIXELS: Final = 0x7FE00000


def chunks(data: Data, size: int) -> Iterator[memoryview]:
    """``data`` cut into pieces of ``size``. Of a mapped file, memory does not keep what was passed over."""
    view = memoryview(data)
    kept = 0
    for start in range(0, len(view), size):
        yield view[start : start + size]
        kept += size
        if kept >= _LET_GO_EVERY:
            let_go(view)
            kept = 0


def let_go(view: memoryview) -> None:
    """Have memory not keep what was looked at of a mapped file; the file stays."""
    if isinstance(view.obj, mmap.mmap):
        view.obj.madvise(mmap.MADV_DONTNEED)


class _Removed:
    """What a change gives for an element that is to go."""


REMOVE: Final = _Removed()


@dataclass(frozen=True, slots=True)
class Element:
    """An element as it is encoded. ``parents``: tags of the sequences it lies in; ``value``: None of a sequence."""

    tag: int
    vr: str
    value: Data | None
    parents: tuple[int, ...]


Change = Callable[[Element], Data | _Removed | None]
"""The new value (already encoded and even, of a sequence all its items), REMOVE, or None to leave it."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A data set in three parts, of which only the first is edited. ``pixels`` may be empty, and so may ``rest``.

    A deflated data set is inflated here; ``joined`` deflates it again.
    """

    head: bytes
    pixels: Data
    rest: Data
    syntax: str

    def joined(self, head: bytes, *, with_rest: bool = True) -> Iterator[Data]:
        """The whole data set with another head, in pieces."""
        pieces: list[Data] = [head, self.pixels]
        if with_rest:
            pieces.append(self.rest)
        if not is_deflated(self.syntax):
            yield from (piece for piece in pieces if len(piece))
            return
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        packed = b"".join(packer.compress(piece) for piece in pieces) + packer.flush()
        yield packed + b"\0" * (len(packed) % 2)


def parted(data: Data, syntax: str) -> Parts:
    """Find the pixel data. Raises: PermanentError "truncated", "length-out-of-bounds", "invalid-vr", "too-long"."""
    plain: Data = _inflated(data) if is_deflated(syntax) else data
    walk = _Walk(memoryview(plain), syntax)
    start, end = walk.pixels()
    if start > LARGEST_HEAD:
        raise PermanentError("too-long", f"{start} bytes come before the pixel data")
    return Parts(bytes(walk.data[:start]), walk.data[start:end], walk.data[end:], syntax)


def _inflated(data: Data) -> bytes:
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = unpacker.decompress(data, LARGEST_HEAD)
    except zlib.error as error:
        raise PermanentError("invalid-deflate", str(error)) from error
    if not unpacker.eof:
        raise PermanentError("too-long", "a deflated data set that breaks off, or is too long to be edited")
    return plain


def elements(head: bytes, syntax: str) -> list[Element]:
    """All elements, those in sequences too, in their order. Raises: PermanentError as ``parted`` does."""
    found: list[Element] = []

    def note(element: Element) -> None:
        found.append(element)

    edit(head, syntax, note, {})
    return found


def edit(head: bytes, syntax: str, change: Change, additions: Mapping[int, tuple[str, bytes]]) -> bytes:
    """The head with what ``change`` says and with ``additions`` (tag → VR, value) at its top, in place of any before.

    ``change`` is not asked of elements that additions replace. Group lengths, which are retired, go.
    Raises: PermanentError as ``parted`` does, "value-too-long".
    """
    walk = _Walk(memoryview(head), syntax)
    return b"".join(walk.edited(change, dict(sorted(additions.items()))))


class _Walk:
    def __init__(self, data: memoryview, syntax: str) -> None:
        self.data = data
        order = "<" if is_little_endian(syntax) else ">"
        self._implicit = is_implicit(syntax)
        self._tag = struct.Struct(order + "HH")
        self._long = struct.Struct(order + "L")
        self._short = struct.Struct(order + "H")

    def pixels(self) -> tuple[int, int]:
        """Where the first element of group 7FE0 begins and the pixel data ends; the end, twice, without any."""
        position, total = 0, len(self.data)
        start = -1
        while position < total:
            tag, vr, length, value = self._header(position, total, self._implicit)
            if tag >= _PIXELS and start < 0:
                start = position
            if tag >> 16 > 0x7FE0:
                return start, position
            position = self._after(tag, vr, length, value, total, self._implicit, 0)
        return (start, total) if start >= 0 else (total, total)

    def _header(self, position: int, end: int, implicit: bool) -> tuple[int, str, int, int]:
        """Tag, VR, length of value, and where the value begins."""
        if end - position < 8:
            raise PermanentError("truncated", f"an element breaks off in its header at {position}")
        group, number = self._tag.unpack_from(self.data, position)
        tag = group << 16 | number
        if implicit or group == 0xFFFE:
            (length,) = self._long.unpack_from(self.data, position + 4)
            return tag, dictionary_vr(tag) or "UN", length, position + 8
        raw = bytes(self.data[position + 4 : position + 6])
        if not (raw.isalpha() and raw.isupper()):
            raise PermanentError("invalid-vr", f"{raw!r} at {position} is not a value representation")
        if raw not in LONG_VRS:
            (length,) = self._short.unpack_from(self.data, position + 6)
            return tag, raw.decode(), length, position + 8
        if end - position < 12:
            raise PermanentError("truncated", f"an element breaks off in its header at {position}")
        (length,) = self._long.unpack_from(self.data, position + 8)
        return tag, raw.decode(), length, position + 12

    def _after(self, tag: int, vr: str, length: int, value: int, end: int, implicit: bool, depth: int) -> int:
        """Where the element ends."""
        if length != UNDEFINED:
            if value + length > end:
                raise PermanentError("truncated", f"({tag:08X}) reaches to {value + length}, the end is at {end}")
            return value + length
        if depth > MAX_DEPTH:
            raise PermanentError("nesting-too-deep", f"sequences are nested deeper than {MAX_DEPTH}")
        fragments = vr in ("OB", "OW") or tag >> 16 == 0x7FE0
        inner = implicit or vr == "UN"
        position, looked_at = value, 0
        while True:
            item, _, size, inside = self._header(position, end, True)
            looked_at += 1
            if item == _SEQUENCE_END:
                return inside
            if looked_at % _LET_GO_ITEMS == 0:
                let_go(self.data)
            if item != _ITEM:
                raise PermanentError("length-out-of-bounds", f"({item:08X}) where an item of ({tag:08X}) should be")
            if size != UNDEFINED:
                position = self._after(item, "", size, inside, end, inner, depth)
                continue
            if fragments:
                raise PermanentError("length-out-of-bounds", f"a fragment of undefined length in ({tag:08X})")
            position = inside
            while True:
                nested, kind, nested_size, begin = self._header(position, end, inner)
                if nested == _ITEM_END:
                    position = begin
                    break
                position = self._after(nested, kind, nested_size, begin, end, inner, depth + 1)

    # Editing

    def edited(self, change: Change, additions: dict[int, tuple[str, bytes]]) -> list[Data]:
        pieces, _ = self._elements(0, len(self.data), self._implicit, (), change, additions, delimited=False)
        return pieces

    def _elements(
        self,
        position: int,
        end: int,
        implicit: bool,
        parents: tuple[int, ...],
        change: Change,
        additions: dict[int, tuple[str, bytes]],
        *,
        delimited: bool,
    ) -> tuple[list[Data], int]:
        """Edited elements up to ``end``, or up to and with the item delimiter; and where they ended."""
        if len(parents) > MAX_DEPTH:
            raise PermanentError("nesting-too-deep", f"sequences are nested deeper than {MAX_DEPTH}")
        pieces: list[Data] = []
        kept = position
        waiting = list(additions.items())
        while delimited or position < end:
            start = position
            tag, vr, length, value = self._header(position, end, implicit)
            if tag == _ITEM_END and delimited:
                position = value
                break
            new, position = self._element(tag, vr, length, value, end, implicit, parents, change, additions)
            while waiting and waiting[0][0] <= tag:
                added = waiting.pop(0)
                pieces += [self.data[kept:start], self._encoded(added[0], *added[1], implicit)]
                kept = start
            if new is not None:
                pieces += [self.data[kept:start], *new]
                kept = position
        pieces.append(self.data[kept:position])
        pieces += [self._encoded(tag, vr, value, implicit) for tag, (vr, value) in waiting]
        return [piece for piece in pieces if len(piece)], position

    def _element(
        self,
        tag: int,
        vr: str,
        length: int,
        value: int,
        end: int,
        implicit: bool,
        parents: tuple[int, ...],
        change: Change,
        additions: Mapping[int, tuple[str, bytes]],
    ) -> tuple[list[Data] | None, int]:
        """What stands for the element (None: itself), and where it ends."""
        after = self._after(tag, vr, length, value, end, implicit, len(parents))
        if not tag & 0xFFFF or (not parents and tag in additions):
            return [], after
        is_sequence = vr == "SQ" or (length == UNDEFINED and vr == "UN")
        if length == UNDEFINED and not is_sequence:
            return ([] if change(Element(tag, vr, None, parents)) is REMOVE else None), after
        if not is_sequence:
            answer = change(Element(tag, vr, self.data[value:after], parents))
            if answer is None:
                return None, after
            if isinstance(answer, _Removed):
                return [], after
            return [self._encoded(tag, vr, answer, implicit)], after
        answer = change(Element(tag, "SQ", None, parents))
        if answer is not None:
            return ([] if isinstance(answer, _Removed) else [self._encoded(tag, "SQ", answer, implicit)]), after
        inner = implicit or vr == "UN"
        items = self._items(value, after, inner, (*parents, tag), change, undefined=length == UNDEFINED)
        if items is None:
            return None, after
        header = self._encoded(tag, vr, b"", implicit)
        size = UNDEFINED if length == UNDEFINED else sum(len(piece) for piece in items)
        return [header[:-4] + self._long.pack(size), *items], after

    def _items(
        self, position: int, end: int, implicit: bool, parents: tuple[int, ...], change: Change, *, undefined: bool
    ) -> list[Data] | None:
        """The edited items of a sequence; None when all of them stay as they are."""
        pieces: list[Data] = []
        changed = False
        while position < end:
            item, _, size, inside = self._header(position, end, True)
            if item == _SEQUENCE_END:
                pieces.append(self.data[position:inside])
                position = inside
                continue
            if item != _ITEM:
                raise PermanentError("length-out-of-bounds", f"({item:08X}) where an item should be")
            open_end = size == UNDEFINED
            if not open_end and inside + size > end:
                raise PermanentError("length-out-of-bounds", f"an item of {size} bytes at {position}")
            stop = end if open_end else inside + size
            content, after = self._elements(inside, stop, implicit, parents, change, {}, delimited=open_end)
            total = sum(len(piece) for piece in content)
            untouched = (
                len(content) <= 1
                and total == after - inside
                and all(isinstance(piece, memoryview) for piece in content)
            )
            if untouched:
                pieces.append(self.data[position:after])
            else:
                changed = True
                header = self._tag.pack(_ITEM >> 16, _ITEM & 0xFFFF) + self._long.pack(UNDEFINED if open_end else total)
                pieces += [header, *content]
            position = after
        return pieces if changed else None

    def _encoded(self, tag: int, vr: str, value: Data, implicit: bool) -> bytes:
        head = self._tag.pack(tag >> 16, tag & 0xFFFF)
        if implicit:
            return head + self._long.pack(len(value)) + bytes(value)
        if vr.encode() in LONG_VRS:
            return head + vr.encode() + b"\0\0" + self._long.pack(len(value)) + bytes(value)
        if len(value) > 0xFFFE:
            raise PermanentError("value-too-long", f"({tag:08X}) of VR {vr} cannot have {len(value)} bytes")
        return head + vr.encode() + self._short.pack(len(value)) + bytes(value)

"""The file meta group of a Part 10 file as it stands in the bytes, found without decoding a data set.

Source: PS3.10 7.1
"""

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO, Final

from standards.element_walker import LONG_VRS
from standards.errors import PermanentError

_MOST: Final = 64 << 20


@dataclass(frozen=True)
class FileMeta:
    """The elements of group 2 by element number, values as stored; the data set begins at ``dataset_offset``."""

    elements: dict[int, bytes]
    dataset_offset: int

    def uid(self, number: int) -> str:
        """The value of (0002,number) as a UID, "" if absent."""
        return self.elements.get(number, b"").decode("ascii", "replace").rstrip("\0 ")

    @property
    def transfer_syntax_uid(self) -> str:
        """(0002,0010)"""
        return self.uid(0x0010)

    @property
    def sop_instance_uid(self) -> str:
        """(0002,0003)"""
        return self.uid(0x0003)


def read_file_meta(file: BinaryIO) -> FileMeta:
    """The file meta group of a seekable Part 10 file.

    Raises: PermanentError "not-dicom", "truncated", "invalid-vr", "length-out-of-bounds".
    """
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    if file.read(132)[128:] != b"DICM":
        raise PermanentError("not-dicom", "no DICM after a preamble of 128 bytes")
    elements: dict[int, bytes] = {}
    position = 132
    while position < end:
        file.seek(position)
        head = file.read(12)
        if head[:2] != b"\x02\x00":
            break
        if len(head) < 8:
            raise PermanentError("truncated", "the file meta group breaks off")
        if not head[4:6].isalpha():
            raise PermanentError("invalid-vr", f"{head[4:6]!r} at {position} is not a value representation")
        long = head[4:6] in LONG_VRS and len(head) == 12
        length = struct.unpack("<L", head[8:12])[0] if long else struct.unpack("<H", head[6:8])[0]
        position += 12 if long else 8
        if length > _MOST:
            raise PermanentError("length-out-of-bounds", f"{length} bytes in the file meta group")
        file.seek(position)
        elements[struct.unpack("<H", head[2:4])[0]] = file.read(length)
        position += length
    if position > end:
        raise PermanentError("truncated", "the file meta group breaks off")
    return FileMeta(elements, position)

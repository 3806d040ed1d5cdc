"""The three SHA-256 digests of an instance, and the one of a series' manifest. All are lower-case hexadecimal.

``dataset``
    Every byte after the file meta group, as received.
``pixels``
    The value of the pixel data element as encoded. Native: the value. Encapsulated: from the tag of the first item (the
    Basic Offset Table) up to, and without, the sequence delimiter. In a deflated data set: of the inflated bytes.
``frames``
    The decoded frames in order, each little-endian, row by row, samples of a pixel beside each other, in as many bytes
    a sample as Bits Allocated says (one for 1 bit), bits above Bits Stored replaced by zeros or the sign, in the colour
    space the codec yields without conversion; native YBR_FULL_422 at full chroma resolution. So the same image has one
    digest in native, big-endian, RLE, JPEG-LS, JPEG lossless and JPEG 2000 lossless encodings.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from standards import transfer_syntaxes
from standards.errors import PermanentError
from standards.file_meta import read_file_meta
from standards.frames import iter_frames, layout
from standards.part10 import Header, open_plain, read_header
from standards.pixels import decode_stored

_CHUNK: Final = 1 << 20


Bytes = bytes | bytearray | memoryview


class _Writable(Protocol):
    def write(self, data: Bytes, /) -> object: ...


@dataclass(frozen=True)
class Digests:
    """The digests of one instance; objects without pixels, or that cannot be decoded without loss, have fewer."""

    dataset: str
    pixels: str | None = None
    frames: str | None = None


class DigestWriter:
    """A binary file that hashes what is written to it after :meth:`write_meta`."""

    def __init__(self, file: _Writable) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.length = 0
        """Bytes of the data set written so far."""

    def write_meta(self, meta: bytes) -> None:
        """Write the preamble and the file meta group, which no digest covers."""
        self._file.write(meta)

    def write(self, data: Bytes) -> int:
        """Write and hash a piece of the data set (bytes, bytearray or memoryview)."""
        self._file.write(data)
        self._hash.update(data)
        self.length += len(data)
        return len(data)

    def hexdigest(self) -> str:
        """``Digests.dataset`` of what has been written."""
        return self._hash.hexdigest()


def dataset_sha256(source: Path | str | BinaryIO) -> str:
    """The digest of all bytes after the file meta group; only that group is parsed, so a damaged object has one too.

    Raises: PermanentError "not-dicom", "truncated", "invalid-vr", "length-out-of-bounds".
    """
    if isinstance(source, Path | str):
        with open(source, "rb") as file:
            return dataset_sha256(file)
    source.seek(read_file_meta(source).dataset_offset)
    digest = hashlib.sha256()
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def pixel_sha256(fileobj: BinaryIO, header: Header) -> str | None:
    """``Digests.pixels``, or None without pixel data.

    Raises: PermanentError("truncated").
    """
    if header.pixel_offset is None or header.pixel_length is None:
        return None
    digest = hashlib.sha256()
    with open_plain(fileobj, header) as plain:
        plain.seek(header.pixel_offset)
        left = header.pixel_length
        while left:
            chunk = plain.read(min(_CHUNK, left))
            if not chunk:
                raise PermanentError("truncated", f"{left} bytes of pixel data are missing")
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def frames_sha256(source: Path | str | BinaryIO, header: Header | None = None) -> str | None:
    """``Digests.frames``: None without pixels, for a lossy transfer syntax, or where this machine cannot decode it.

    Holds one frame in memory at a time. Raises as ``part10.read_header`` if ``header`` is not given.
    """
    if isinstance(source, Path | str):
        with open(source, "rb") as file:
            return frames_sha256(file, header)
    known = header or read_header(source)
    if known.pixel_offset is None or transfer_syntaxes.is_lossy(known.transfer_syntax):
        return None
    digest = hashlib.sha256()
    try:
        layout(known)
        with open_plain(source, known) as plain:
            for stored in iter_frames(plain, known):
                digest.update(decode_stored(stored, known).data)
    except PermanentError:
        # By contract no third digest: the object is still whole by the other two.
        return None
    return digest.hexdigest()


def digests(source: Path | str | BinaryIO, header: Header | None = None) -> Digests:
    """All digests of a Part 10 file."""
    if isinstance(source, Path | str):
        with open(source, "rb") as file:
            return digests(file, header)
    known = header or read_header(source)
    return Digests(dataset_sha256(source), pixel_sha256(source, known), frames_sha256(source, known))


def root_hash(entries: Iterable[tuple[str, str]]) -> str:
    """The hash of a manifest of (SOP Instance UID, data set digest), whatever the order of the entries.

    SHA-256 of the lines ``<uid> <digest>\\n``, sorted as ASCII; an entry given twice counts once.
    """
    digest = hashlib.sha256()
    for uid, whole in sorted(set(entries)):
        digest.update(f"{uid} {whole}\n".encode("ascii"))
    return digest.hexdigest()

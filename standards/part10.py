"""Reading the header of a DICOM file or data set that may be hostile, in bounded memory.

The walker here visits every element to the end of the stream, so truncation and false lengths are noticed wherever they
are; pydicom only ever decodes single values of a size that was checked first.

Source: PS3.5 7, PS3.10 7.1
"""

import io
import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from tempfile import SpooledTemporaryFile
from typing import IO, BinaryIO, Final

import pydicom.config
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.tag import BaseTag

from standards import charsets, transfer_syntaxes
from standards.data_dictionary import tag_of
from standards.element_walker import LONG_VRS, Budget, PixelElement, Walker
from standards.errors import PermanentError
from standards.uids import named, validated_uid
from standards.version import VERSION

# pydicom's warnings quote values, and values are patients; what cannot be read is judged here instead.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

IMPLEMENTATION_CLASS_UID: Final = "2.25.163437028573984623419846215873265481937"
IMPLEMENTATION_VERSION_NAME: Final = "_".join(["REGIS", *VERSION.split(".")[:2]])
PROVENANCE_UID: Final = "2.25.302718449862035172950413377462908125521"
"""Creator of the private information in the meta group of stored files: JSON, see :class:`Provenance`."""
DIGEST_TO_COME: Final = b"?" * 64
"""Stands in a new meta group for the digest, which is known when the last byte is there."""

IDENTIFYING: Final = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
MAX_INFLATED: Final = 4 << 30
_INFLATED_IN_MEMORY: Final = 8 << 20
_CHUNK: Final = 1 << 16
UNREADABLE: Final = (
    ValueError, TypeError, AttributeError, LookupError, NotImplementedError, OverflowError, BytesLengthException,
)  # fmt: skip
"""What pydicom raises for a value that is not what its VR says; what it says then quotes the value."""
_PLAIN_VRS: Final = frozenset({"AE", "AS", "CS", "DA", "DT", "IS", "LO", "SH", "TM", "UI"})


@dataclass(frozen=True)
class Header:
    """What is known of a stored data set without its bulk data.

    Offsets count bytes. ``dataset_offset`` is in the file. ``pixel_offset`` is in the stream that :func:`open_plain`
    gives: the file itself, except for a deflated one, where it is the inflated data set. ``pixel_length`` is the
    element's value; encapsulated, from the first item tag to before the sequence delimiter. Both are None without pixel
    data. UIDs are validated; one that is absent and was not required is "".
    """

    dataset: Dataset
    file_meta: Dataset
    transfer_syntax: str
    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    dataset_offset: int
    pixel_offset: int | None
    pixel_length: int | None
    encapsulated: bool
    pixel_keyword: str
    """``PixelData``, ``FloatPixelData``, ``DoubleFloatPixelData``, or "" without pixels."""
    pixel_is_words: bool
    """Whether native pixel data is OW, which big-endian files swap even for 8-bit samples."""
    total_length: int
    omitted: tuple[tuple[int, int, int], ...]
    """Top-level elements too long to keep: (tag, offset, length) in the plain stream, pixel data not among them."""
    complete: bool
    """False if anything besides the pixel data was left out of ``dataset`` for its size and no place told instead."""


def read_header(
    fileobj: BinaryIO,
    transfer_syntax: str | None = None,
    *,
    start: int = 0,
    required: Sequence[str] = IDENTIFYING,
    default_charset: str = "",
    more_to_come: bool = False,
    max_inflated: int = MAX_INFLATED,
    tell_places: bool = False,
) -> Header:
    """Read a Part 10 file from a seekable binary file, or with ``transfer_syntax`` a bare data set from ``start`` on.

    ``required`` names the UIDs that must be present. ``default_charset`` is what an absent (0008,0005) means here, or
    what texts are written in whatever it says (``charsets.overriding``); "": what a stored file's provenance says.
    Memory stays bounded whatever the input: values over 1 MiB and all pixel data are skipped, not read.
    ``more_to_come``: the file is still being received; ``total_length`` tells where it should end, if native pixel data
    is its last element. Only when it ends there the header holds. ``max_inflated``: see :func:`inflate`.
    ``tell_places``: within items, pixels of an encapsulated picture and values too long to keep are in ``dataset`` as
    the ``PixelElement`` that says where they lie.

    Raises: PermanentError "not-dicom", "truncated", "invalid-vr", "unknown-transfer-syntax", "missing-uid",
        "invalid-uid", "nesting-too-deep", "length-out-of-bounds", "too-many-elements", "invalid-deflate".
    """
    total = fileobj.seek(0, io.SEEK_END)
    if transfer_syntax is None:
        file_meta, start = _meta_group(fileobj)
        syntax = text(file_meta, "TransferSyntaxUID")
        default_charset = default_charset or Provenance.of(file_meta).default_character_set
    else:
        file_meta, syntax = Dataset(), transfer_syntax.rstrip("\0 ")
    if not transfer_syntaxes.is_known(syntax):
        raise PermanentError("unknown-transfer-syntax", named(syntax) or "none is named")
    with _plain(fileobj, start, syntax, max_inflated) as (plain, begin):
        walker = _walker(plain, begin, syntax, default_charset, more_to_come=more_to_come, tell_places=tell_places)
        dataset = walker.read_dataset()
    if more_to_come:
        total = walker.position
    uids = {keyword: _uid(dataset, keyword, keyword in required) for keyword in IDENTIFYING}
    pixel: PixelElement | None = walker.pixel
    return Header(
        dataset=dataset,
        file_meta=file_meta,
        transfer_syntax=syntax,
        sop_class_uid=uids["SOPClassUID"],
        sop_instance_uid=uids["SOPInstanceUID"],
        study_instance_uid=uids["StudyInstanceUID"],
        series_instance_uid=uids["SeriesInstanceUID"],
        dataset_offset=start,
        pixel_offset=pixel.offset if pixel else None,
        pixel_length=pixel.length if pixel else None,
        encapsulated=pixel.encapsulated if pixel else False,
        pixel_keyword=pixel.keyword if pixel else "",
        pixel_is_words=pixel.is_words if pixel else False,
        total_length=total,
        omitted=tuple(walker.omitted),
        complete=walker.complete,
    )


def read_identifier(encoded: bytes, transfer_syntax: str, *, default_charset: str = "") -> Dataset:
    """The data set of a query or retrieve request. Its UIDs are keys, maybe lists or empty: matching judges them.

    Raises: PermanentError as :func:`read_header` does, but "missing-uid" and "invalid-uid".
    """
    syntax = transfer_syntax.rstrip("\0 ")
    if not transfer_syntaxes.is_known(syntax):
        raise PermanentError("unknown-transfer-syntax", named(syntax) or "none is named")
    with _plain(io.BytesIO(encoded), 0, syntax) as (plain, begin):
        return _walker(plain, begin, syntax, default_charset).read_dataset()


def _walker(
    plain: BinaryIO,
    begin: int,
    syntax: str,
    default_charset: str,
    *,
    more_to_come: bool = False,
    tell_places: bool = False,
) -> Walker:
    return Walker(
        plain,
        begin,
        implicit=transfer_syntaxes.is_implicit(syntax),
        little_endian=transfer_syntaxes.is_little_endian(syntax),
        budget=Budget(),
        default_charset=default_charset,
        more_to_come=more_to_come,
        tell_places=tell_places,
    )


def text(dataset: Dataset, keyword: str) -> str:
    """The value of an element as text, several values joined by backslashes; "" if absent, empty or unreadable."""
    tag = _tag(keyword)
    raw = dataset._dict.get(tag)
    if raw is None:
        return ""
    if isinstance(raw, RawDataElement) and raw.VR in _PLAIN_VRS and raw.value and raw.value.isascii():
        plain = raw.value.decode("ascii").strip(" \0")  # what the long way below gives, at a tenth of its cost
        if "\\" not in plain:
            return plain
    try:
        value = dataset[tag].value
    except UNREADABLE:
        # One broken value must not cost the instance; the stored bytes keep it as it came.
        return ""
    if value is None:
        return ""
    if isinstance(value, list | tuple) or type(value).__name__ == "MultiValue":
        return "\\".join(str(item) for item in value)
    return str(value).strip(" \0")


@cache
def _tag(keyword: str) -> BaseTag:
    """Raises: KeyError for what is no keyword of the dictionary."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return tag_of(tag)


def _uid(dataset: Dataset, keyword: str, is_required: bool) -> str:
    value = text(dataset, keyword)
    if not value:
        if is_required:
            raise PermanentError("missing-uid", keyword)
        return ""
    return validated_uid(value)


def _meta_group(fileobj: BinaryIO) -> tuple[Dataset, int]:
    fileobj.seek(0)
    if fileobj.read(132)[128:] != b"DICM":
        raise PermanentError("not-dicom", "no DICM after a preamble of 128 bytes")
    walker = Walker(fileobj, 132, implicit=False, little_endian=True, budget=Budget(), default_charset="")
    # The group length is often wrong, so the group itself tells where it ends.
    file_meta = walker.read_dataset(only_group=0x0002)
    if any(element.VR == "SQ" for element in file_meta._dict.values()):
        raise PermanentError("invalid-vr", "a sequence in the file meta group, which has none")  # PS3.10 7.1
    return file_meta, walker.position


@contextmanager
def _plain(
    fileobj: BinaryIO, start: int, syntax: str, max_inflated: int = MAX_INFLATED
) -> Iterator[tuple[BinaryIO, int]]:
    if not transfer_syntaxes.is_deflated(syntax):
        yield fileobj, start
        return
    with SpooledTemporaryFile(max_size=_INFLATED_IN_MEMORY) as inflated:
        for chunk in inflate(fileobj, start, max_inflated):
            inflated.write(chunk)
        inflated.seek(0)
        yield inflated, 0  # type: ignore[misc]


@contextmanager
def open_plain(fileobj: BinaryIO, header: Header) -> Iterator[BinaryIO]:
    """The stream in which ``header.pixel_offset`` counts: ``fileobj``, or for a deflated data set a temporary file.

    Raises: PermanentError "truncated", "invalid-deflate", "length-out-of-bounds".
    """
    with _plain(fileobj, header.dataset_offset, header.transfer_syntax) as (plain, _):
        yield plain


def inflate(fileobj: IO[bytes], start: int, most: int = MAX_INFLATED) -> Iterator[bytes]:
    """The inflated data set from ``start`` on, in chunks of at most 64 KiB.

    Raises: PermanentError "truncated" (the stream stops early), "invalid-deflate", "length-out-of-bounds" (more bytes
        than ``most``).
    """
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    fileobj.seek(start)
    produced = 0
    while not decompressor.eof:
        raw = decompressor.unconsumed_tail or fileobj.read(_CHUNK)
        if not raw:
            raise PermanentError("truncated", "the deflated data set ends before its last block")
        try:
            chunk = decompressor.decompress(raw, _CHUNK)
        except zlib.error as error:
            raise PermanentError("invalid-deflate", str(error)) from error
        produced += len(chunk)
        if produced > most:
            raise PermanentError("length-out-of-bounds", f"the deflated data set inflates beyond {most} bytes")
        yield chunk


@dataclass(frozen=True)
class Provenance:
    """Who brought a data set, what was assumed where it is silent, and its digest: in the file's own meta group.

    So a stored file alone tells all that the index knows of it, and whether it is still what was received.
    """

    sending_ae_title: str = ""
    receiving_ae_title: str = ""
    default_character_set: str = ""
    default_issuer: str = ""
    dataset_sha256: str = ""

    @classmethod
    def of(cls, file_meta: Dataset) -> "Provenance":
        """What :func:`write_file_meta` wrote; of files from elsewhere, what their meta group says."""
        said: dict[str, object] = {}
        if text(file_meta, "PrivateInformationCreatorUID") == PROVENANCE_UID:
            with suppress(ValueError, TypeError):
                said = dict(json.loads(bytes(file_meta.PrivateInformation).rstrip(b" \0")))
        return cls(
            text(file_meta, "SendingApplicationEntityTitle"),
            text(file_meta, "ReceivingApplicationEntityTitle"),
            str(said.get("default_character_set", "")),
            str(said.get("default_issuer", "")),
            str(said.get("dataset_sha256", "")).strip("?"),
        )

    def elements(self) -> dict[int, tuple[bytes, bytes]]:
        """Element number → VR and value in group 2. Source: PS3.10 7.1"""
        private = {
            "default_character_set": self.default_character_set,
            "default_issuer": self.default_issuer,
            "dataset_sha256": self.dataset_sha256 or DIGEST_TO_COME.decode(),
        }
        return {
            0x0017: (b"AE", _ascii(self.sending_ae_title)),
            0x0018: (b"AE", _ascii(self.receiving_ae_title)),
            0x0100: (b"UI", PROVENANCE_UID.encode()),
            0x0102: (b"OB", json.dumps({key: value for key, value in private.items() if value}).encode()),
        }


def _ascii(value: str) -> bytes:
    return value[:16].encode("ascii", "replace")


def write_file_meta(
    sop_class_uid: str, sop_instance_uid: str, transfer_syntax: str, provenance: Provenance | None = None
) -> bytes:
    """Preamble, DICM and group 2, after which a received data set can be stored byte for byte.

    Raises: PermanentError("invalid-uid").
    """
    before, behind = _around_instance(sop_class_uid, transfer_syntax, provenance)
    body = before + _meta_element(0x0003, b"UI", validated_uid(sop_instance_uid).encode()) + behind
    return bytes(128) + b"DICM" + _meta_element(0x0000, b"UL", struct.pack("<L", len(body))) + body


@lru_cache(256)
def _around_instance(sop_class_uid: str, transfer_syntax: str, provenance: Provenance | None) -> tuple[bytes, bytes]:
    """The elements before and behind the instance's UID, which all have in common that a sender sends of a class."""
    elements = {
        0x0010: (b"UI", validated_uid(transfer_syntax).encode()),
        0x0012: (b"UI", IMPLEMENTATION_CLASS_UID.encode()),
        0x0013: (b"SH", IMPLEMENTATION_VERSION_NAME.encode()),
        **(provenance.elements() if provenance else {}),
    }
    before = _meta_element(0x0001, b"OB", b"\0\1") + _meta_element(0x0002, b"UI", validated_uid(sop_class_uid).encode())
    return before, b"".join(_meta_element(number, *elements[number]) for number in sorted(elements))


def dataset_offset(head: bytes) -> int:
    """Where the data set begins in a Part 10 file of which ``head`` is the beginning, with all of its meta group.

    Raises: PermanentError "not-dicom", "truncated", "invalid-vr", "length-out-of-bounds".
    """
    return _meta_group(io.BytesIO(head))[1]


def read_meta(head: bytes) -> Dataset:
    """The meta group of a Part 10 file of which ``head`` is the beginning. Raises: PermanentError as above."""
    return _meta_group(io.BytesIO(head))[0]


def _meta_element(number: int, vr: bytes, value: bytes) -> bytes:
    long = vr in LONG_VRS
    if len(value) % 2:
        value += b"\0" if long or vr == b"UI" else b" "
    if long:
        return struct.pack("<HH2s2xL", 0x0002, number, vr, len(value)) + value
    return struct.pack("<HH2sH", 0x0002, number, vr, len(value)) + value


def is_charset_known(dataset: Dataset) -> bool:
    """Whether (0008,0005) of the data set has only terms of the standard (absent counts as known)."""
    return charsets.is_known(text(dataset, "SpecificCharacterSet"))

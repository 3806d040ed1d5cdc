"""STOW-RS of metadata and bulk data: instances as DICOM JSON or XML, their long values as parts of their own.

Bulk parts are kept in files while the message is read; each instance then is written as a Part 10 file and taken in as
any other. Source: PS3.18 10.5.2, 8.6.1.2.2
"""

import base64
import json
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any, Final, Protocol

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from pacs_node.storage.stores import storage
from standards import transfer_syntaxes
from standards.dicom_json import from_json
from standards.dicom_xml import MEDIA_TYPE as XML
from standards.dicom_xml import from_xml
from standards.errors import PermanentError
from standards.media_types import DICOM_JSON, OCTET_STREAM, parse
from standards.part10 import write_file_meta

MEDIA_TYPES: Final = (DICOM_JSON, XML)
_MOST_METADATA: Final = 64 << 20
_MOST_INLINE: Final = 16 << 20
_IN_MEMORY: Final = 1 << 20
_PIXEL_TAG: Final = "7FE00010"
_SYNTAXES: Final = {
    "image/jpeg": transfer_syntaxes.JPEG_BASELINE,
    "image/jls": transfer_syntaxes.JPEG_LS_LOSSLESS,
    "image/jp2": transfer_syntaxes.JPEG_2000_LOSSLESS,
    "image/jphc": transfer_syntaxes.HTJ2K_LOSSLESS,
    "image/jxl": transfer_syntaxes.JPEG_XL_LOSSLESS,
    "image/dicom-rle": transfer_syntaxes.RLE_LOSSLESS,
    "video/mp4": "1.2.840.10008.1.2.4.102",
}


class _Incoming(Protocol):
    """A part, or a body that is one by itself."""

    headers: dict[str, str]

    @property
    def content_type(self) -> str: ...

    def read(self, size: int = ...) -> bytes: ...


@dataclass
class _Bulk:
    """The parts of one Content-Location in their order: one value, or a frame each."""

    type: str
    transfer_syntax: str
    files: list[IO[bytes]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)


class MetadataMessage:
    """A message being read: the instances it describes, and the bulk data it brings."""

    def __init__(self, media_type: str) -> None:
        self._type = media_type
        self._models: list[dict[str, Any]] = []
        self._bulk: dict[str, _Bulk] = {}
        self._files = ExitStack()

    def __enter__(self) -> "MetadataMessage":
        return self

    def __exit__(self, *_error: object) -> None:
        self._files.close()

    def take(self, part: _Incoming) -> None:
        """Read one part.

        Raises: PermanentError "invalid-dicom-json", "invalid-dicom-xml", "payload-too-large", "truncated".
        """
        media = (parse(part.content_type) or parse(OCTET_STREAM))[0]
        if media.type in (self._type, "application/json"):
            document = self._read_document(part)
            self._models += _models(document, self._type)
            return
        location = part.headers.get("content-location", "")
        bulk = self._bulk.setdefault(location, _Bulk(media.type, media.parameter("transfer-syntax")))
        file: IO[bytes] = self._files.enter_context(
            SpooledTemporaryFile(max_size=_IN_MEMORY, dir=str(storage().incoming))  # noqa: SIM115
        )
        length = 0
        while piece := part.read():
            file.write(piece)
            length += len(piece)
        bulk.files.append(file)
        bulk.lengths.append(length)

    def _read_document(self, part: _Incoming) -> bytes:
        document = bytearray()
        while piece := part.read():
            document += piece
            if len(document) > _MOST_METADATA:
                raise PermanentError("payload-too-large", f"Metadata are at most {_MOST_METADATA >> 20} MB.")
        return bytes(document)

    def instances(self) -> Iterator["Described"]:
        """What the message describes, in its order."""
        for model in self._models:
            yield Described(model, self._bulk)


def _models(document: bytes, media_type: str) -> list[dict[str, Any]]:
    if media_type == XML:
        return [from_xml(document)]
    try:
        found = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise PermanentError("invalid-dicom-json", str(error)[:200]) from error
    models = found if isinstance(found, list) else [found]
    if not all(isinstance(model, dict) for model in models):
        raise PermanentError("invalid-dicom-json", "not a list of objects")
    return models


@dataclass
class Described:
    """One instance of a message, to be written as a Part 10 file."""

    model: dict[str, Any]
    bulk: dict[str, _Bulk]

    def uid(self, tag: str) -> str:
        """A UID that the model names, "" if it does not."""
        entry = self.model.get(tag)
        values = entry.get("Value") if isinstance(entry, dict) else None
        return str(values[0]) if isinstance(values, list) and values else ""

    @contextmanager
    def file(self) -> Iterator[Path]:
        """The instance in a file on the storage, gone afterwards.

        Raises: PermanentError "invalid-dicom-json", "bulk-data-missing", "missing-uid", "invalid-uid";
            TransientError("storage-full").
        """
        path = storage().new_incoming()
        try:
            with path.open("xb") as file:
                self._write(file)
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _write(self, file: IO[bytes]) -> None:
        model = {tag: entry for tag, entry in self.model.items() if not tag.startswith("0002") and tag != _PIXEL_TAG}
        entry = self.model.get(_PIXEL_TAG)
        pixels = self._pixels(entry) if isinstance(entry, dict) else None
        syntax = transfer_syntaxes.EXPLICIT_VR_LITTLE_ENDIAN
        if pixels is not None and pixels.type != OCTET_STREAM:
            syntax = pixels.transfer_syntax or self.uid("00020010") or _SYNTAXES.get(pixels.type, "")
            if not transfer_syntaxes.is_encapsulated(syntax):
                raise PermanentError("unknown-transfer-syntax", f"of {pixels.type[:40]}")
        dataset = from_json(self._with_values(model))
        for tag in [tag for tag in dataset.keys() if tag.element == 0]:  # noqa: SIM118
            del dataset[tag]
        file.write(write_file_meta(self.uid("00080016"), self.uid("00080018"), syntax))
        file.write(_encoded(dataset[:0x7FE00010]))
        if pixels is not None:
            _write_pixels(file, pixels, int(dataset.get("BitsAllocated") or 16))
        file.write(_encoded(dataset[0x7FE00011:]))

    def _pixels(self, entry: dict[str, Any]) -> _Bulk | None:
        if "InlineBinary" in entry:
            raw = _decoded(str(entry["InlineBinary"]))
            inline = SpooledTemporaryFile(max_size=_MOST_METADATA)  # noqa: SIM115
            inline.write(raw)
            return _Bulk(OCTET_STREAM, "", [inline], [len(raw)])
        return self._found(str(entry["BulkDataURI"])) if "BulkDataURI" in entry else None

    def _found(self, uri: str) -> _Bulk:
        bulk = self.bulk.get(uri)
        if bulk is None:
            raise PermanentError("bulk-data-missing", f"{uri[:200]} is not a part of the message")
        return bulk

    def _with_values(self, model: dict[str, Any]) -> dict[str, Any]:
        """The model with the bulk data of other elements than pixels put in."""
        made: dict[str, Any] = {}
        for tag, entry in model.items():
            if not isinstance(entry, dict):
                raise PermanentError("invalid-dicom-json", f"{tag[:20]!r} is no element")
            if entry.get("vr") == "SQ":
                items = [self._with_values(item) for item in entry.get("Value") or [] if isinstance(item, dict)]
                made[tag] = {**entry, "Value": items}
            elif "BulkDataURI" in entry:
                bulk = self._found(str(entry["BulkDataURI"]))
                if sum(bulk.lengths) > _MOST_INLINE:
                    raise PermanentError("payload-too-large", f"({tag}) is over {_MOST_INLINE >> 20} MB")
                raw = b"".join(_pieces(bulk.files))
                made[tag] = {"vr": entry["vr"], "InlineBinary": base64.b64encode(raw).decode("ascii")}
            else:
                made[tag] = entry
        return made


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise PermanentError("invalid-dicom-json", "InlineBinary is not base64") from error


def _pieces(files: Iterable[IO[bytes]]) -> Iterator[bytes]:
    for file in files:
        file.seek(0)
        while piece := file.read(1 << 18):
            yield piece


def _encoded(dataset: Dataset) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    try:
        write_dataset(buffer, dataset)
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, NotImplementedError, struct.error) as error:
        raise PermanentError("invalid-dicom-json", str(error)[:200]) from error
    return bytes(buffer.getvalue())


def _write_pixels(file: IO[bytes], pixels: _Bulk, bits_allocated: int) -> None:
    if pixels.type == OCTET_STREAM:
        length = sum(pixels.lengths)
        vr = b"OW" if bits_allocated > 8 else b"OB"
        file.write(struct.pack("<HH2s2xL", 0x7FE0, 0x0010, vr, length + length % 2))
        for piece in _pieces(pixels.files):
            file.write(piece)
        file.write(bytes(length % 2))
        return
    file.write(struct.pack("<HH2s2xL", 0x7FE0, 0x0010, b"OB", 0xFFFFFFFF))
    file.write(struct.pack("<HHL", 0xFFFE, 0xE000, 0))
    for one, length in zip(pixels.files, pixels.lengths, strict=True):
        file.write(struct.pack("<HHL", 0xFFFE, 0xE000, length + length % 2))
        for piece in _pieces([one]):
            file.write(piece)
        file.write(bytes(length % 2))
    file.write(struct.pack("<HHL", 0xFFFE, 0xE0DD, 0))

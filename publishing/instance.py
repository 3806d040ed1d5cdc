"""One source file made fit for a disc: parsed in full, checked for completeness, encoded as the medium demands."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom._dicom_dict import DicomDictionary
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import correct_ambiguous_vr, dcmwrite, write_dataset
from pydicom.hooks import raw_element_vr
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import STR_VR

from publishing.contract import Medium
from standards.errors import PermanentError
from standards.part10 import (
    IDENTIFYING,
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    Header,
    read_header,
    text,
)
from standards.sop_classes import MEDIA_STORAGE_DIRECTORY
from standards.transfer_syntaxes import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    HTJ2K,
    IMPLICIT_VR_LITTLE_ENDIAN,
    JPEG_2000,
    is_encapsulated,
    is_lossy,
    is_video,
)

KEPT_COMPRESSED = frozenset(f"1.2.840.10008.1.2.4.{last}" for last in ("50", "51", "70", "90", "91"))
"""JPEG and JPEG 2000 as the DVD and USB profiles allow them. Source: PS3.11 Annexes H and J."""

_WORD_SIZES = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}


@dataclass(frozen=True)
class Instance:
    """A parsed source.

    ``header`` has its texts as a person would read them; ``dataset`` is what goes on the disc, ``encoded`` its bytes
    after the file meta group.
    """

    source: Path
    header: Dataset
    dataset: FileDataset
    encoded: bytes
    transfer_syntax_uid: str
    source_digest: str

    @property
    def dataset_digest(self) -> str:
        """SHA-256 of the encoded data set, hexadecimal."""
        return hashlib.sha256(self.encoded).hexdigest()


def looks_like_dicom(start: bytes) -> bool:
    """Whether these first 132 bytes are DICOM's: the DICM mark, or a bare data set that begins with group 2 or 8."""
    return start[128:132] == b"DICM" or (start[:2] in (b"\x02\x00", b"\x08\x00") and start[3:4] == b"\x00")


def parse(content: bytes) -> Header:
    """Walk a whole DICOM file to its last byte. A bare data set without file meta is understood too.

    Raises: PermanentError "not-dicom", "truncated" and the others of ``read_header``; "media-directory" for a DICOMDIR.
    """
    if not looks_like_dicom(content[:132]):
        raise PermanentError("not-dicom", "no DICOM header")
    bare = None if content[128:132] == b"DICM" else _bare_syntax(content)
    header = read_header(io.BytesIO(content), bare, required=())
    if MEDIA_STORAGE_DIRECTORY in (header.sop_class_uid, text(header.file_meta, "MediaStorageSOPClassUID")):
        raise PermanentError("media-directory", "the DICOMDIR of another disc; its files are taken one by one")
    for keyword in IDENTIFYING:
        validated = text(header.dataset, keyword)
        if not validated:
            raise PermanentError("missing-uid", f"no {keyword}")
    return header


def load(source: Path, content: bytes, medium: Medium) -> Instance:
    """Parse ``content`` and encode it for ``medium``: Explicit VR Little Endian, or kept JPEG/JPEG 2000 on DVD and USB.

    Raises: PermanentError as ``parse`` does, or "video-not-allowed", "undecodable-pixels", "unencodable".
    """
    header = parse(content)
    syntax = header.transfer_syntax
    body = content[header.dataset_offset :]
    digest = hashlib.sha256(body).hexdigest()
    if is_video(syntax):
        raise PermanentError("video-not-allowed", "video cannot be put on a general purpose disc")
    try:
        dataset = dcmread(io.BytesIO(content), force=True)
    except Exception as error:  # pydicom raises whatever its parsers meet on hostile bytes
        raise PermanentError("corrupt", f"{type(error).__name__}: {error}"[:300]) from error
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    _check_native_length(dataset)
    sound = not _has_needless_unknowns(dataset)
    if (syntax == ExplicitVRLittleEndian and sound) or (medium != "cd" and syntax in KEPT_COMPRESSED):
        return Instance(source, header.dataset, dataset, body, syntax, digest)
    if is_encapsulated(syntax):
        _decompress(dataset, syntax)
    elif syntax == EXPLICIT_VR_BIG_ENDIAN:
        _swap_words(dataset)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return Instance(source, header.dataset, dataset, _encode(dataset), str(ExplicitVRLittleEndian), digest)


def write(instance: Instance, target: Path) -> str:
    """Write the instance as a DICOM file with a fresh file meta group; returns SHA-256 of the file, hexadecimal."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = instance.dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = instance.dataset.SOPInstanceUID
    meta.TransferSyntaxUID = UID(instance.transfer_syntax_uid)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    header = file_header(meta)
    digest = hashlib.sha256(header)
    digest.update(instance.encoded)
    with target.open("wb") as stream:
        stream.write(header)
        stream.write(instance.encoded)
    return digest.hexdigest()


def file_header(meta: FileMetaDataset) -> bytes:
    """The preamble, the DICM mark and the file meta group, as bytes."""
    buffer = io.BytesIO()
    empty = Dataset()
    empty.file_meta = meta
    dcmwrite(buffer, empty, implicit_vr=False, little_endian=True, enforce_file_format=True)
    return buffer.getvalue()


def _bare_syntax(content: bytes) -> str:
    # An explicit VR is two capital letters; in Implicit VR these are the low bytes of a length.
    explicit = content[4:6].isalpha() and content[4:6].isupper()
    return EXPLICIT_VR_LITTLE_ENDIAN if explicit else IMPLICIT_VR_LITTLE_ENDIAN


def _check_native_length(dataset: Dataset) -> None:
    """Native pixel data must hold all its frames. Raises: PermanentError("truncated")."""
    if "PixelData" not in dataset or is_encapsulated(str(dataset.file_meta.TransferSyntaxUID)):
        return
    have, expected = len(dataset.PixelData or b""), (_pixel_bits(dataset) + 7) // 8
    if have < expected:
        raise PermanentError("truncated", f"pixel data has {have} of {expected} bytes")


def _pixel_bits(dataset: Dataset) -> int:
    """Bits that the native pixel data of all frames take. Raises: PermanentError("corrupt")."""
    try:
        samples = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel", 1))
        bits = samples * int(dataset.BitsAllocated) * int(dataset.get("NumberOfFrames") or 1)
    except (AttributeError, TypeError, ValueError) as error:
        raise PermanentError("corrupt", f"pixel data without its description: {error}") from error
    return bits * 2 // 3 if dataset.get("PhotometricInterpretation") == "YBR_FULL_422" else bits


def _decompress(dataset: FileDataset, syntax: str) -> None:
    if "PixelData" not in dataset:
        return
    try:
        dataset.decompress(as_rgb=True, generate_instance_uid=False)
    except Exception as error:  # each codec has its own exceptions; whichever it is, the file is named and left out
        raise PermanentError("undecodable-pixels", f"{type(error).__name__}: {error}"[:300]) from error
    if int(dataset.get("BitsAllocated", 8)) == 1:
        # The codecs give a byte a pixel; native pixel data of one bit has eight of them in a byte, frames back to back.
        bits = np.frombuffer(dataset.PixelData, np.uint8)[: _pixel_bits(dataset)]
        packed = np.packbits(bits, bitorder="little").tobytes()
        dataset.PixelData = packed + b"\0" * (len(packed) % 2)
    expected = (_pixel_bits(dataset) + 7) // 8
    if len(dataset.PixelData) != expected + expected % 2:
        raise PermanentError("undecodable-pixels", f"{len(dataset.PixelData)} bytes were decoded, not {expected}")
    if is_lossy(syntax) and syntax not in (JPEG_2000, HTJ2K):
        dataset.LossyImageCompression = "01"


def _has_needless_unknowns(dataset: Dataset) -> bool:
    """Whether elements of the standard came as VR UN, which directories and workstations then fail to read."""
    return any(dataset.get_item(tag).VR == "UN" and tag in DicomDictionary for tag in sorted(dataset.keys()))


def _swap_words(dataset: Dataset) -> None:
    """Turn the word streams of a big-endian data set into little-endian ones; all other VRs are values already."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                _swap_words(item)
        elif element.VR in _WORD_SIZES and isinstance(element.value, bytes):
            _swap(element, _WORD_SIZES[element.VR])
        elif element.tag == 0x7FE00010 and int(dataset.get("BitsAllocated", 8)) == 16:
            _swap(element, 2)


def _swap(element: DataElement, size: int) -> None:
    whole = len(element.value) // size * size
    element.value = np.frombuffer(element.value[:whole], dtype=f">u{size}").astype(f"<u{size}").tobytes()


def _make_explicit(dataset: Dataset) -> None:
    """Give every little-endian element its VR, leaving the bytes of all texts as they came.

    Decoding and encoding a text again would spoil what is not in the character set it claims to be in.
    """
    for tag in sorted(dataset.keys()):
        raw: DataElement | RawDataElement | None = dataset.get_item(tag)
        if isinstance(raw, RawDataElement):
            found: dict[str, str] = {}
            raw_element_vr(raw, found, ds=dataset)
            if found["VR"] in STR_VR:
                dataset[tag] = raw._replace(VR=found["VR"])
                continue
        element = dataset[tag]
        if element.VR == "SQ":
            for item in element.value:
                _make_explicit(item)
    correct_ambiguous_vr(dataset, True)
    dataset.set_original_encoding(False, True, dataset.original_character_set)


def _encode(dataset: FileDataset) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    try:
        if dataset.original_encoding[1]:
            _make_explicit(dataset)
        write_dataset(buffer, dataset)
    except Exception as error:  # values that no writer accepts come in every kind of exception
        raise PermanentError("unencodable", f"{type(error).__name__}: {error}"[:300]) from error
    return bytes(buffer.getvalue())

"""The DICOMDIR of a disc, written record by record in linear time."""

import io
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian

from publishing.instance import file_header
from standards import charsets
from standards.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from standards.sop_classes import MEDIA_STORAGE_DIRECTORY, sop_class_name
from standards.uids import new_uid

_SR_KEYS = (
    "InstanceNumber",
    "CompletionFlag",
    "VerificationFlag",
    "ContentDate",
    "ContentTime",
    "VerificationDateTime",
    "ConceptNameCodeSequence",
    "ContentSequence",
)
_CONTENT = ("InstanceNumber", "ContentLabel", "ContentDescription", "ContentCreatorName")
_DATED = ("InstanceNumber", "ContentDate", "ContentTime")

# The keys of each record type, Source: PS3.3 F.5. Those in _REQUIRED are type 1 there and made up when absent.
_KEYS: dict[str, tuple[str, ...]] = {
    "PATIENT": ("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex"),
    "STUDY": (
        "StudyDate",
        "StudyTime",
        "StudyDescription",
        "StudyInstanceUID",
        "StudyID",
        "AccessionNumber",
        "ReferringPhysicianName",
    ),
    "SERIES": (
        "Modality",
        "SeriesInstanceUID",
        "SeriesNumber",
        "SeriesDescription",
        "InstitutionName",
        "PerformingPhysicianName",
    ),
    "IMAGE": ("InstanceNumber", "ImageType", "ReferencedImageSequence"),
    "RT DOSE": ("InstanceNumber", "DoseSummationType"),
    "RT STRUCTURE SET": ("InstanceNumber", "StructureSetLabel", "StructureSetDate", "StructureSetTime"),
    "RT PLAN": ("InstanceNumber", "RTPlanLabel", "RTPlanDate", "RTPlanTime"),
    "RT TREAT RECORD": ("InstanceNumber", "TreatmentDate", "TreatmentTime"),
    "PRESENTATION": (
        *_CONTENT,
        "PresentationCreationDate",
        "PresentationCreationTime",
        "ReferencedSeriesSequence",
        "BlendingSequence",
    ),
    "WAVEFORM": _DATED,
    "SR DOCUMENT": _SR_KEYS,
    "KEY OBJECT DOC": ("InstanceNumber", "ContentDate", "ContentTime", "ConceptNameCodeSequence", "ContentSequence"),
    "SPECTROSCOPY": (
        "ImageType",
        "ContentDate",
        "ContentTime",
        "InstanceNumber",
        "NumberOfFrames",
        "Rows",
        "Columns",
        "DataPointRows",
        "DataPointColumns",
    ),
    "RAW DATA": _DATED,
    "REGISTRATION": (*_DATED, *_CONTENT[1:]),
    "FIDUCIAL": (*_DATED, *_CONTENT[1:]),
    "HANGING PROTOCOL": (
        "HangingProtocolName",
        "HangingProtocolDescription",
        "HangingProtocolLevel",
        "HangingProtocolCreator",
        "HangingProtocolCreationDateTime",
        "HangingProtocolDefinitionSequence",
        "NumberOfPriorsReferenced",
    ),
    "PALETTE": ("ContentLabel", "ContentDescription"),
    "ENCAP DOC": (
        "InstanceNumber",
        "ContentDate",
        "ContentTime",
        "DocumentTitle",
        "HL7InstanceIdentifier",
        "ConceptNameCodeSequence",
        "MIMETypeOfEncapsulatedDocument",
    ),
    "VALUE MAP": (*_DATED, *_CONTENT[1:]),
    "STEREOMETRIC": ("InstanceNumber",),
    "SURFACE": (*_DATED, *_CONTENT[1:]),
    "SURFACE SCAN": ("ContentDate", "ContentTime"),
    "TRACT": (*_DATED, *_CONTENT[1:]),
    "MEASUREMENT": ("InstanceNumber", "ContentDate", "ContentTime"),
    "ANNOTATION": (*_DATED, *_CONTENT[1:]),
}
_EMPTY_ALLOWED = {
    "PatientName",
    "StudyDescription",
    "AccessionNumber",
    "ConceptNameCodeSequence",
    "DocumentTitle",
    "ContentDescription",
    "ContentCreatorName",
}
_OPTIONAL = {
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "ReferringPhysicianName",
    "SeriesDescription",
    "InstitutionName",
    "PerformingPhysicianName",
    "ImageType",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "VerificationDateTime",
    "ContentSequence",
    "ReferencedSeriesSequence",
    "ReferencedImageSequence",
    "BlendingSequence",
    "HL7InstanceIdentifier",
    "DataPointRows",
    "DataPointColumns",
    "StructureSetDate",
    "StructureSetTime",
}
_DEFAULTS = {
    "InstanceNumber": "0",
    "SeriesNumber": "0",
    "StudyID": "1",
    "Modality": "OT",
    "StudyDate": "19000101",
    "StudyTime": "000000",
    "ContentDate": "19000101",
    "ContentTime": "000000",
    "PresentationCreationDate": "19000101",
    "PresentationCreationTime": "000000",
    "ContentLabel": "UNNAMED",
    "CompletionFlag": "PARTIAL",
    "VerificationFlag": "UNVERIFIED",
    "DoseSummationType": "PLAN",
    "StructureSetLabel": "UNNAMED",
    "RTPlanLabel": "UNNAMED",
    "MIMETypeOfEncapsulatedDocument": "application/pdf",
}
_ALTERNATIVES = {
    "StudyDate": ("SeriesDate", "AcquisitionDate", "ContentDate", "InstanceCreationDate"),
    "StudyTime": ("SeriesTime", "AcquisitionTime", "ContentTime", "InstanceCreationTime"),
    "ContentDate": ("AcquisitionDate", "SeriesDate", "InstanceCreationDate", "StudyDate"),
    "ContentTime": ("AcquisitionTime", "SeriesTime", "InstanceCreationTime", "StudyTime"),
}  # fmt: skip
_DATE = re.compile(r"\d{4}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])", re.ASCII)
_TIME = re.compile(r"\d{2}(?:\d{2}(?:\d{2}(?:\.\d{1,6})?)?)?", re.ASCII)
_DOCUMENT_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.104.1": "ENCAP DOC",
    "1.2.840.10008.5.1.4.1.1.104.2": "ENCAP DOC",
    "1.2.840.10008.5.1.4.1.1.104.3": "ENCAP DOC",
    "1.2.840.10008.5.1.4.1.1.104.4": "ENCAP DOC",
    "1.2.840.10008.5.1.4.1.1.104.5": "ENCAP DOC",
    "1.2.840.10008.5.1.4.1.1.88.59": "KEY OBJECT DOC",
    "1.2.840.10008.5.1.4.1.1.481.2": "RT DOSE",
    "1.2.840.10008.5.1.4.1.1.481.3": "RT STRUCTURE SET",
    "1.2.840.10008.5.1.4.1.1.481.5": "RT PLAN",
    "1.2.840.10008.5.1.4.1.1.481.8": "RT PLAN",
    "1.2.840.10008.5.1.4.1.1.481.4": "RT TREAT RECORD",
    "1.2.840.10008.5.1.4.1.1.481.6": "RT TREAT RECORD",
    "1.2.840.10008.5.1.4.1.1.481.7": "RT TREAT RECORD",
    "1.2.840.10008.5.1.4.1.1.481.9": "RT TREAT RECORD",
    "1.2.840.10008.5.1.4.1.1.4.2": "SPECTROSCOPY",
    "1.2.840.10008.5.1.4.1.1.66": "RAW DATA",
    "1.2.840.10008.5.1.4.1.1.66.1": "REGISTRATION",
    "1.2.840.10008.5.1.4.1.1.66.2": "FIDUCIAL",
    "1.2.840.10008.5.1.4.1.1.66.3": "REGISTRATION",
    "1.2.840.10008.5.1.4.1.1.66.5": "SURFACE",
    "1.2.840.10008.5.1.4.1.1.66.6": "TRACT",
    "1.2.840.10008.5.1.4.1.1.67": "VALUE MAP",
    "1.2.840.10008.5.1.4.1.1.68.1": "SURFACE SCAN",
    "1.2.840.10008.5.1.4.1.1.68.2": "SURFACE SCAN",
    "1.2.840.10008.5.1.4.1.1.77.1.5.3": "STEREOMETRIC",
    "1.2.840.10008.5.1.4.1.1.91.1": "ANNOTATION",
}
_BY_PREFIX = (
    ("1.2.840.10008.5.1.4.1.1.88.", "SR DOCUMENT"),
    ("1.2.840.10008.5.1.4.1.1.9.", "WAVEFORM"),
    ("1.2.840.10008.5.1.4.1.1.11.", "PRESENTATION"),
    ("1.2.840.10008.5.1.4.1.1.78.", "MEASUREMENT"),
    ("1.2.840.10008.5.1.4.1.1.79.", "MEASUREMENT"),
)


def record_type(sop_class_uid: str) -> str | None:
    """The directory record type of a composite SOP class; None for those that lie outside the patient's tree.

    Source: PS3.3 F.4 (Table F.4-1)
    """
    if sop_class_uid in _DOCUMENT_CLASSES:
        return _DOCUMENT_CLASSES[sop_class_uid]
    for prefix, kind in _BY_PREFIX:
        if sop_class_uid.startswith(prefix):
            return kind
    if sop_class_uid.startswith(("1.2.840.10008.5.1.4.38.", "1.2.840.10008.5.1.4.39.", "1.2.840.10008.5.1.4.43.")):
        return None
    return "IMAGE"


@dataclass
class Record:
    """A directory record and those below it. ``keys`` are its attributes without the offsets."""

    keys: Dataset
    lower: list["Record"] = field(default_factory=list)


def keys_of(kind: str, dataset: Dataset, *, number: int = 0) -> Dataset:
    """The keys of a ``kind`` record, taken from an instance; required ones that it lacks are made up.

    ``number`` stands in for an absent instance or series number.
    """
    keys = Dataset()
    keys.DirectoryRecordType = kind
    for keyword in _KEYS[kind]:
        _copy(dataset, keys, keyword, number)
    if keys.get("PatientSex") not in (None, "M", "F", "O"):
        del keys.PatientSex
    if keys.get("VerificationFlag") == "VERIFIED" and not keys.get("VerificationDateTime"):
        keys.VerificationDateTime = f"{keys.ContentDate}{keys.ContentTime}"
    declared = charsets.terms(dataset.get("SpecificCharacterSet"))
    if charsets.is_known(declared):
        candidate = charsets.encode_dataset(keys, declared)
        if _texts(_decoded(_encoded(candidate))) == _texts(keys):
            return candidate
    return charsets.encode_dataset(keys, "ISO_IR 192")


def instance_keys(dataset: Dataset, file_id: str, transfer_syntax_uid: str, *, number: int) -> Dataset:
    """The keys of the lowest record, with the reference to the file. ``file_id`` parts are separated by ``/``."""
    kind = record_type(str(dataset.SOPClassUID)) or "IMAGE"
    keys = keys_of(kind, dataset, number=number)
    keys.ReferencedFileID = file_id.split("/")
    keys.ReferencedSOPClassUIDInFile = dataset.SOPClassUID
    keys.ReferencedSOPInstanceUIDInFile = dataset.SOPInstanceUID
    keys.ReferencedTransferSyntaxUIDInFile = UID(transfer_syntax_uid)
    return keys


def encode(patients: Iterable[Record], file_set_id: str) -> bytes:
    """The DICOMDIR file, Explicit VR Little Endian, with every offset counted from its first byte.

    Source: PS3.3 F.3, PS3.10 8.6
    """
    roots = list(patients)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(MEDIA_STORAGE_DIRECTORY)
    meta.MediaStorageSOPInstanceUID = UID(new_uid())
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    head = file_header(meta)
    name = file_set_id.encode("ascii")[:16]
    name += b" " * (len(name) % 2)
    # Before the first item: (0004,1130) CS, (0004,1200) UL, (0004,1202) UL, (0004,1212) US, and the SQ header of 12.
    first = len(head) + 8 + len(name) + 12 + 12 + 10 + 12
    bodies: list[bytes] = []
    offsets: dict[int, int] = {}
    position = first
    ordered = list(_walk(roots))
    for record in ordered:
        body = _encoded(record.keys)
        bodies.append(body)
        offsets[id(record)] = position
        position += 8 + 12 + 10 + 12 + len(body)
    following = _following(roots)
    items = bytearray()
    for record, body in zip(ordered, bodies, strict=True):
        after = following.get(id(record))
        items += struct.pack("<HHL", 0xFFFE, 0xE000, 34 + len(body))
        items += _ul(0x1400, offsets[id(after)] if after else 0)
        items += struct.pack("<HH2sHH", 0x0004, 0x1410, b"US", 2, 0xFFFF)
        items += _ul(0x1420, offsets[id(record.lower[0])] if record.lower else 0)
        items += body
    file_set = struct.pack("<HH2sH", 0x0004, 0x1130, b"CS", len(name)) + name
    file_set += _ul(0x1200, offsets[id(roots[0])] if roots else 0) + _ul(0x1202, offsets[id(roots[-1])] if roots else 0)
    file_set += struct.pack("<HH2sHH", 0x0004, 0x1212, b"US", 2, 0)
    file_set += struct.pack("<HH2sHL", 0x0004, 0x1220, b"SQ", 0, len(items))
    return head + file_set + bytes(items)


def _texts(keys: Dataset) -> list[str]:
    return [str(element.value) for element in keys.iterall() if element.VR in charsets.TEXT_VRS]


def _decoded(encoded: bytes) -> Dataset:
    return read_dataset(io.BytesIO(encoded), is_implicit_VR=False, is_little_endian=True)


def _copy(dataset: Dataset, keys: Dataset, keyword: str, number: int) -> None:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    element: DataElement | None = dataset.get(tag, None)
    if keyword == "ContentSequence":
        _copy_concept_modifiers(dataset, keys)
        return
    if keyword == "ReferencedSeriesSequence" and element is None:
        return
    if element is not None and not element.is_empty:
        if element.VR not in ("DA", "TM"):
            keys.add(element)
            return
        # Old objects write 1999.05.24 and 10:52:34; the directory is new and follows today's form.
        plain = str(element.value).translate(
            {ord("."): None, ord(":"): None} if element.VR == "DA" else {ord(":"): None}
        )
        if (_DATE if element.VR == "DA" else _TIME).fullmatch(plain):
            setattr(keys, keyword, plain)
            return
    for other in _ALTERNATIVES.get(keyword, ()):
        value = str(dataset.get(other) or "")
        if (_DATE if keyword.endswith("Date") else _TIME).fullmatch(value):
            setattr(keys, keyword, value)
            return
    if keyword in _OPTIONAL:
        return
    if keyword in _EMPTY_ALLOWED:
        setattr(keys, keyword, Sequence() if keyword.endswith("Sequence") else "")
    elif keyword == "PatientID":
        keys.PatientID = f"NOID{number:06d}"
    elif keyword in ("InstanceNumber", "SeriesNumber"):
        setattr(keys, keyword, str(number))
    elif keyword in _DEFAULTS:
        setattr(keys, keyword, _DEFAULTS[keyword])


def _copy_concept_modifiers(dataset: Dataset, keys: Dataset) -> None:
    """An SR record repeats only what modifies the document's title. Source: PS3.3 F.5.25"""
    modifiers = [
        item for item in dataset.get("ContentSequence") or () if item.get("RelationshipType") == "HAS CONCEPT MOD"
    ]
    if modifiers:
        keys.ContentSequence = Sequence(modifiers)


def _walk(records: Iterable[Record]) -> Iterator[Record]:
    for record in records:
        yield record
        yield from _walk(record.lower)


def _following(records: list[Record]) -> dict[int, Record]:
    pairs = {id(one): after for one, after in pairwise(records)}
    for record in records:
        pairs |= _following(record.lower)
    return pairs


def _encoded(keys: Dataset) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, keys)
    return bytes(buffer.getvalue())


def _ul(element: int, value: int) -> bytes:
    return struct.pack("<HH2sHL", 0x0004, element, b"UL", 4, value)


def describe(sop_class_uid: str) -> str:
    """The SOP class in words, without the word Storage."""
    return sop_class_name(sop_class_uid).removesuffix(" Storage")

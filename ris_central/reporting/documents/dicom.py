"""A signed report as DICOM: Encapsulated PDF and Basic Text SR, in UTF-8, of the study it is about.

Source: PS3.3 A.45.1 (Encapsulated PDF), PS3.3 A.35.1 (Basic Text SR), PS3.16 TID 2000
"""

import hashlib
import io
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from zoneinfo import ZoneInfo

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian

from standards.sop_classes import BASIC_TEXT_SR, ENCAPSULATED_PDF

_IMPLEMENTATION = UID("2.25.309338612837465910928374650192837465")


@dataclass(frozen=True)
class Subject:
    """Whose and which study a document is of; values as DICOM wants them."""

    patient_name: str
    patient_id: str
    issuer_of_patient_id: str
    patient_birth_date: str
    patient_sex: str
    study_instance_uid: str
    study_date: str
    study_time: str
    study_id: str
    study_description: str
    accession_number: str
    referring_physician_name: str
    institution_name: str


@dataclass(frozen=True)
class SignedText:
    """What was signed, by whom and when, and the instances it was written about, by series."""

    title: str
    findings: str
    conclusion: str
    addenda: tuple[str, ...]
    author: str
    signed_at: datetime
    evidence: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """Series UID → (SOP class, SOP instance)."""
    predecessors: tuple[tuple[str, str], ...] = ()
    """(series UID, SOP instance UID) of the SR that this one follows."""
    language: str = "ru"


def derived_uid(*parts: object) -> str:
    """A UID under 2.25 that is the same for the same parts, so that a repeated step makes no second object."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def encapsulated_pdf(
    pdf: bytes, subject: Subject, *, title: str, at: datetime, zone: ZoneInfo, series_uid: str, uid: str, number: int
) -> bytes:
    """A Part 10 file that carries ``pdf``; the same arguments give the same bytes."""
    dataset = _dataset(subject, ENCAPSULATED_PDF, "DOC", at, zone, series_uid, uid, number, 9001)
    dataset.ConversionType = "WSD"
    dataset.SeriesDescription = title[:64]
    dataset.DocumentTitle = title
    dataset.BurnedInAnnotation = "YES"
    dataset.ConceptNameCodeSequence = Sequence([_code("18748-4", "LN", "Diagnostic imaging report")])
    dataset.AcquisitionDateTime = _dt(at, zone)
    dataset.MIMETypeOfEncapsulatedDocument = "application/pdf"
    dataset.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
    dataset.EncapsulatedDocumentLength = len(pdf)
    return _written(dataset)


def basic_text_sr(
    text: SignedText, subject: Subject, *, zone: ZoneInfo, series_uid: str, uid: str, number: int
) -> bytes:
    """A Part 10 Basic Text SR with findings, conclusions and addenda, verified by who signed."""
    dataset = _dataset(subject, BASIC_TEXT_SR, "SR", text.signed_at, zone, series_uid, uid, number, 9002)
    dataset.SeriesDescription = text.title[:64]
    dataset.ReferencedPerformedProcedureStepSequence = Sequence()
    dataset.PerformedProcedureCodeSequence = Sequence()
    dataset.CompletionFlag = "COMPLETE"
    dataset.VerificationFlag = "VERIFIED"
    verifier = Dataset()
    verifier.VerifyingObserverName = text.author
    verifier.VerifyingObserverIdentificationCodeSequence = Sequence()
    verifier.VerifyingOrganization = subject.institution_name
    verifier.VerificationDateTime = _dt(text.signed_at, zone)
    dataset.VerifyingObserverSequence = Sequence([verifier])
    if text.predecessors:
        dataset.PredecessorDocumentsSequence = Sequence(
            [_study_reference(subject, {series: [(BASIC_TEXT_SR, sop)]}) for series, sop in text.predecessors]
        )
    if text.evidence:
        dataset.CurrentRequestedProcedureEvidenceSequence = Sequence([_study_reference(subject, text.evidence)])
    dataset.ValueType = "CONTAINER"
    dataset.ContinuityOfContent = "SEPARATE"
    dataset.ConceptNameCodeSequence = Sequence([_code("18748-4", "LN", "Diagnostic imaging report")])
    template = Dataset()
    template.MappingResource = "DCMR"
    template.TemplateIdentifier = "2000"
    dataset.ContentTemplateSequence = Sequence([template])
    dataset.ContentSequence = Sequence(_content(text))
    return _written(dataset)


def _content(text: SignedText) -> list[Dataset]:
    language = _item("HAS CONCEPT MOD", "CODE", _code("121049", "DCM", "Language of Content Item and Descendants"))
    name = {"ru": "Russian", "en": "English"}.get(text.language, text.language)
    language.ConceptCodeSequence = Sequence([_code(text.language, "RFC5646", name)])
    observer_type = _item("HAS OBS CONTEXT", "CODE", _code("121005", "DCM", "Observer Type"))
    observer_type.ConceptCodeSequence = Sequence([_code("121006", "DCM", "Person")])
    observer = _item("HAS OBS CONTEXT", "PNAME", _code("121008", "DCM", "Person Observer Name"))
    observer.PersonName = text.author
    items = [language, observer_type, observer]
    if text.findings.strip():
        items.append(_section("121070", "Findings", [("121071", "Finding", text.findings)]))
    items.append(_section("121076", "Conclusions", [("121077", "Conclusion", text.conclusion)]))
    if text.addenda:
        items.append(
            _section("55107-7", "Addendum Document", [("121106", "Comment", one) for one in text.addenda], "LN")
        )
    return items


def _section(code: str, meaning: str, texts: list[tuple[str, str, str]], scheme: str = "DCM") -> Dataset:
    section = _item("CONTAINS", "CONTAINER", _code(code, scheme, meaning))
    section.ContinuityOfContent = "SEPARATE"
    children = []
    for child_code, child_meaning, value in texts:
        child = _item("CONTAINS", "TEXT", _code(child_code, "DCM", child_meaning))
        child.TextValue = value.strip().replace("\r\n", "\n").replace("\n", "\r\n")
        children.append(child)
    section.ContentSequence = Sequence(children)
    return section


def _item(relationship: str, value_type: str, concept: Dataset) -> Dataset:
    item = Dataset()
    item.RelationshipType = relationship
    item.ValueType = value_type
    item.ConceptNameCodeSequence = Sequence([concept])
    return item


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _study_reference(subject: Subject, series: dict[str, list[tuple[str, str]]]) -> Dataset:
    study = Dataset()
    study.StudyInstanceUID = subject.study_instance_uid
    items = []
    for series_uid, instances in series.items():
        item = Dataset()
        item.SeriesInstanceUID = series_uid
        references = []
        for sop_class, sop_instance in instances:
            reference = Dataset()
            reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = sop_class, sop_instance
            references.append(reference)
        item.ReferencedSOPSequence = Sequence(references)
        items.append(item)
    study.ReferencedSeriesSequence = Sequence(items)
    return study


def _dataset(
    subject: Subject,
    sop_class: str,
    modality: str,
    at: datetime,
    zone: ZoneInfo,
    series_uid: str,
    uid: str,
    number: int,
    series_number: int,
) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(sop_class)
    meta.MediaStorageSOPInstanceUID = UID(uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _IMPLEMENTATION
    meta.ImplementationVersionName = "REGIS"
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    local = at.astimezone(zone)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.InstanceCreationDate = dataset.ContentDate = dataset.SeriesDate = f"{local:%Y%m%d}"
    dataset.InstanceCreationTime = dataset.ContentTime = dataset.SeriesTime = f"{local:%H%M%S}"
    dataset.SOPClassUID, dataset.SOPInstanceUID = UID(sop_class), UID(uid)
    dataset.StudyDate, dataset.StudyTime = subject.study_date, subject.study_time
    dataset.AccessionNumber = subject.accession_number[:16]
    dataset.Modality = modality
    dataset.Manufacturer = "Regis"
    dataset.InstitutionName = subject.institution_name[:64]
    dataset.ReferringPhysicianName = subject.referring_physician_name
    if subject.study_description:
        dataset.StudyDescription = subject.study_description[:64]
    dataset.PatientName = subject.patient_name
    dataset.PatientID = subject.patient_id
    if subject.issuer_of_patient_id:
        dataset.IssuerOfPatientID = subject.issuer_of_patient_id
    dataset.PatientBirthDate, dataset.PatientSex = subject.patient_birth_date, subject.patient_sex
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = UID(subject.study_instance_uid), UID(series_uid)
    dataset.StudyID = subject.study_id[:16]
    dataset.SeriesNumber, dataset.InstanceNumber = series_number, number
    return dataset


def _dt(at: datetime, zone: ZoneInfo) -> str:
    return at.astimezone(zone).strftime("%Y%m%d%H%M%S%z")


def _written(dataset: FileDataset) -> bytes:
    output = io.BytesIO()
    dcmwrite(output, dataset, enforce_file_format=True)
    return output.getvalue()

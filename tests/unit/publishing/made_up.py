"""Made-up objects of a plainly fictional patient, written as real DICOM files."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian

from publishing.image import ImageReader
from standards.uids import new_uid

CT = "1.2.840.10008.5.1.4.1.1.2"
US_MULTIFRAME = "1.2.840.10008.5.1.4.1.1.3.1"
BASIC_TEXT_SR = "1.2.840.10008.5.1.4.1.1.88.11"
ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"

PATIENT = "Щёголев-Ящуржинский^Пётр^Ёжикович"
FINDING = "Очаговых изменений не выявлено <b>& всё ясно</b>"

PDF = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
)


def composite(
    sop_class: str, modality: str, *, study: str, series: str, number: int = 1, series_number: int = 1
) -> Dataset:
    """The patient, study and series attributes that every object shares."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 144"
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, new_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
    ds.PatientName, ds.PatientID = PATIENT, "FICTION-1"
    ds.PatientBirthDate, ds.PatientSex = "19500229", "M"
    ds.StudyDate, ds.StudyTime, ds.StudyID = "20261120", "101500", "1"
    ds.StudyDescription, ds.AccessionNumber = "КТ грудной клетки", "A26-000001"
    ds.ReferringPhysicianName = "Лекарев^Лев"
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = modality, series_number, number
    ds.Manufacturer = "Regis tests"
    ds.ContentDate, ds.ContentTime = "20261120", "101501"
    return ds


def ct_slice(study: str, series: str, number: int, *, size: int = 64) -> Dataset:
    """A CT slice of a disc that grows with the slice number, signed stored values with HU -1000 outside."""
    ds = composite(CT, "CT", study=study, series=series, number=number)
    ds.SeriesDescription = "Нативная"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = f"{study}.1", ""
    ds.ImagePositionPatient = [-32, -32, number * 2]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing, ds.SliceThickness, ds.KVP, ds.AcquisitionNumber = [1, 1], 2, 120, 1
    y, x = np.mgrid[:size, :size] - size / 2
    pixels = np.where(x * x + y * y < (8 + number) ** 2, 40 + x.astype(int) % 7, -1000).astype("<i2")
    ds.Rows = ds.Columns = size
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, 0, "HU"
    ds.WindowCenter, ds.WindowWidth = 40, 400
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def us_cine(study: str, *, frames: int = 5) -> Dataset:
    """A colour loop of a bright square that wanders to the right."""
    ds = composite(US_MULTIFRAME, "US", study=study, series=new_uid(), series_number=2)
    ds.SeriesDescription = "Эхо"
    ds.NumberOfFrames, ds.FrameTime, ds.FrameIncrementPointer = frames, 40, 0x00181063
    pixels = np.zeros((frames, 48, 64, 3), np.uint8)
    for frame in range(frames):
        pixels[frame, 10:30, 5 + frame * 5 : 20 + frame * 5] = (200, 80, 20)
    ds.Rows, ds.Columns = 48, 64
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OB"
    return ds


def code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def text_report(study: str) -> Dataset:
    """A signed Basic Text SR with one finding."""
    ds = composite(BASIC_TEXT_SR, "SR", study=study, series=new_uid(), series_number=3)
    ds.ValueType, ds.ContinuityOfContent = "CONTAINER", "SEPARATE"
    ds.ConceptNameCodeSequence = Sequence([code("18748-4", "LN", "Описание исследования")])
    ds.CompletionFlag, ds.VerificationFlag = "COMPLETE", "UNVERIFIED"
    ds.ReferencedPerformedProcedureStepSequence = Sequence()
    ds.PerformedProcedureCodeSequence = Sequence()
    finding = Dataset()
    finding.RelationshipType, finding.ValueType, finding.TextValue = "CONTAINS", "TEXT", FINDING
    finding.ConceptNameCodeSequence = Sequence([code("121071", "DCM", "Находка")])
    ds.ContentSequence = Sequence([finding])
    return ds


def pdf_report(study: str) -> Dataset:
    ds = composite(ENCAPSULATED_PDF, "DOC", study=study, series=new_uid(), series_number=4)
    ds.DocumentTitle, ds.MIMETypeOfEncapsulatedDocument = "Заключение рентгенолога", "application/pdf"
    ds.ConceptNameCodeSequence = Sequence()
    ds.ConversionType, ds.BurnedInAnnotation, ds.AcquisitionDateTime = "WSD", "YES", ""
    ds.EncapsulatedDocumentLength = len(PDF)
    ds.EncapsulatedDocument = PDF + b"\0" * (len(PDF) % 2)
    return ds


def save(ds: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write the object as a DICOM file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds.save_as(path, enforce_file_format=True)
    return path


def unpacked(image: Path, folder: Path) -> Path:
    with ImageReader(image) as reader:
        for name in reader.names():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as stream:
                reader.copy(name, stream)
    return folder

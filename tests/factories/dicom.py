"""Small real DICOM objects of patients who do not exist: an ellipse of a head with structures inside, and reports."""

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    SecondaryCaptureImageStorage,
)

from standards.uids import new_uid

SHCHYOGOLEV = "Щёголев-Ящуржинский^Пётр^Ёжикович"


@dataclass
class Patient:
    """A fictional patient."""

    name: str = SHCHYOGOLEV
    patient_id: str = "TEST-1001"
    birth_date: str = "19700229"
    sex: str = "M"


@dataclass
class Study:
    """What the instances of one study share."""

    patient: Patient = field(default_factory=Patient)
    study_instance_uid: str = field(default_factory=new_uid)
    accession_number: str = "A-1"
    date: str = "20261121"
    time: str = "101500"
    description: str = "КТ головы"
    character_set: str = "ISO_IR 192"


def head_slice(position: float = 0.5, size: int = 64) -> np.ndarray:
    """One slice of a head: HU + 1024, ``size``×``size`` uint16; ``position`` 0 is the chin, 1 the crown."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    height = float(np.sqrt(max(1 - (2 * position - 1) ** 2, 0.05)))
    pixels = np.zeros((size, size), np.float64)
    skull = (x / (0.8 * height)) ** 2 + (y / (0.95 * height)) ** 2
    pixels[skull < 1] = 1024 + 900
    pixels[skull < 0.85] = 1024 + 35
    for side in (-1, 1):
        pixels[((x - side * 0.15) / 0.08) ** 2 + (y / 0.3) ** 2 < height * 0.5] = 1024 + 5
    noise = np.random.default_rng(int(position * 1000)).normal(0, 6, pixels.shape)
    return np.clip(pixels + noise * (pixels > 0), 0, 4095).astype(np.uint16)


def _base(study: Study, sop_class: str, modality: str, series_instance_uid: str, number: int) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = new_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128), is_implicit_VR=False, is_little_endian=True)
    if study.character_set:
        dataset.SpecificCharacterSet = study.character_set
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.StudyDate, dataset.StudyTime = study.date, study.time
    dataset.SeriesDate, dataset.SeriesTime = study.date, study.time
    dataset.ContentDate, dataset.ContentTime = study.date, study.time
    dataset.AccessionNumber = study.accession_number
    dataset.Modality = modality
    dataset.Manufacturer = "Regis tests"
    dataset.ReferringPhysicianName = ""
    dataset.StudyDescription = study.description
    dataset.PatientName = study.patient.name
    dataset.PatientID = study.patient.patient_id
    dataset.PatientBirthDate = study.patient.birth_date
    dataset.PatientSex = study.patient.sex
    dataset.StudyInstanceUID = study.study_instance_uid
    dataset.SeriesInstanceUID = series_instance_uid
    dataset.StudyID = "1"
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = number
    return dataset


def _set_pixels(dataset: Dataset, pixels: np.ndarray, bits_stored: int) -> None:
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = pixels.dtype.itemsize * 8
    dataset.BitsStored, dataset.HighBit = bits_stored, bits_stored - 1
    dataset.PixelRepresentation = 0
    dataset.PixelData = pixels.tobytes()


def ct_series(
    count: int = 3, *, study: Study | None = None, size: int = 64, description: str = "Head"
) -> list[FileDataset]:
    """A CT series of ``count`` slices."""
    study = study or Study()
    series = new_uid()
    frame_of_reference = new_uid()
    instances = []
    for index in range(count):
        dataset = _base(study, CTImageStorage, "CT", series, index + 1)
        dataset.SeriesDescription = description
        dataset.BodyPartExamined = "HEAD"
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.FrameOfReferenceUID = frame_of_reference
        dataset.PositionReferenceIndicator = ""
        dataset.ImagePositionPatient = [-112, -112, 5 * index]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing = [224 / size, 224 / size]
        dataset.SliceThickness = 5
        dataset.KVP = 120
        dataset.AcquisitionNumber = 1
        dataset.RescaleIntercept, dataset.RescaleSlope = -1024, 1
        dataset.WindowCenter, dataset.WindowWidth = 40, 80
        _set_pixels(dataset, head_slice((index + 1) / (count + 1), size), 12)
        instances.append(dataset)
    return instances


def ct_instance(*, study: Study | None = None, size: int = 64) -> FileDataset:
    """One CT slice."""
    return ct_series(1, study=study, size=size)[0]


def secondary_capture(*, study: Study | None = None) -> FileDataset:
    """A small grey screenshot."""
    dataset = _base(study or Study(), SecondaryCaptureImageStorage, "OT", new_uid(), 1)
    dataset.ConversionType = "WSD"
    _set_pixels(dataset, (head_slice(0.5, 32) >> 4).astype(np.uint8), 8)
    return dataset


def encapsulated_pdf(document: bytes = b"%PDF-1.4 fictional", *, study: Study | None = None) -> FileDataset:
    """A document without pixels."""
    dataset = _base(study or Study(), EncapsulatedPDFStorage, "DOC", new_uid(), 1)
    dataset.DocumentTitle = "Протокол"
    dataset.MIMETypeOfEncapsulatedDocument = "application/pdf"
    dataset.BurnedInAnnotation = "YES"
    dataset.EncapsulatedDocument = document + b"\0" * (len(document) % 2)
    return dataset


def compressed(dataset: FileDataset) -> FileDataset:
    """The same image in JPEG-LS lossless, under the same UID (another content, as for Regis)."""
    dataset.compress(JPEGLSLossless, generate_instance_uid=False)
    return dataset


def implicit(dataset: FileDataset) -> FileDataset:
    """The same object to be written in Implicit VR Little Endian."""
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return dataset


def part10(dataset: FileDataset) -> bytes:
    """The object as a Part 10 file."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def write(dataset: FileDataset, path: Path) -> Path:
    """Write the object to ``path`` and give it back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(part10(dataset))
    return path


def write_all(datasets: list[FileDataset], folder: Path) -> list[Path]:
    """Write each object to ``folder`` as 0001.dcm and so on."""
    return [write(dataset, folder / f"{number:04}.dcm") for number, dataset in enumerate(datasets, start=1)]

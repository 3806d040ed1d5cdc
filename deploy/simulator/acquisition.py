"""What a scanner makes of a worklist entry: complete SOP instances with the scheduled attributes copied over."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    MRImageStorage,
    UltrasoundMultiFrameImageStorage,
)

from deploy.simulator import phantoms
from standards.uids import new_uid

SCHEDULED = ["PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "AccessionNumber"]


DX_IMAGE = {
    "PresentationIntentType": "FOR PRESENTATION",
    "PixelIntensityRelationship": "LOG",
    "PixelIntensityRelationshipSign": -1,
    "RescaleIntercept": 0,
    "RescaleSlope": 1,
    "RescaleType": "US",
    "PresentationLUTShape": "IDENTITY",
    "LossyImageCompression": "00",
    "BurnedInAnnotation": "NO",
}
"""What every projection image for presentation says of itself. Source: PS3.3 C.8.11.1, C.8.11.3."""


def acquire(scheduled: Dataset, *, images: int, station: str, time_zone: str = "Europe/Moscow") -> Iterator[Dataset]:
    """The instances of one examination for a Modality Worklist answer, in the character set of that answer.

    ``images`` is the number of slices (CT, MR) or frames (US); a DX examination is one image.
    Source: PS3.17 Annex J.6 (what a modality copies from the worklist).
    """
    step = scheduled.ScheduledProcedureStepSequence[0]
    modality = str(step.Modality)
    series_instance_uid, now = new_uid(), datetime.now(ZoneInfo(time_zone))
    for number, attributes in enumerate(MAKERS[modality](images), start=1):
        instance = Dataset()
        instance.SpecificCharacterSet = scheduled.get("SpecificCharacterSet", "ISO_IR 6")
        for keyword in SCHEDULED:
            setattr(instance, keyword, scheduled.get(keyword, ""))
        instance.StudyInstanceUID = scheduled.StudyInstanceUID
        instance.SeriesInstanceUID, instance.SOPInstanceUID = series_instance_uid, new_uid()
        instance.StudyDate = instance.SeriesDate = instance.ContentDate = now.strftime("%Y%m%d")
        instance.StudyTime = instance.SeriesTime = instance.ContentTime = now.strftime("%H%M%S")
        instance.StudyID = str(scheduled.get("RequestedProcedureID", ""))
        instance.StudyDescription = scheduled.get("RequestedProcedureDescription", "")
        instance.ReferringPhysicianName = scheduled.get("ReferringPhysicianName", "")
        instance.Modality, instance.SeriesNumber, instance.InstanceNumber = modality, 1, number
        instance.Manufacturer, instance.StationName = "Regis demo", station
        request = Dataset()
        request.RequestedProcedureID = scheduled.get("RequestedProcedureID", "")
        request.ScheduledProcedureStepID = step.get("ScheduledProcedureStepID", "")
        instance.RequestAttributesSequence = [request]
        for keyword, value in attributes.items():
            setattr(instance, keyword, value)
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = instance.SOPClassUID
        meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        instance.file_meta = meta
        yield instance


def _pixels(array: np.ndarray[Any, Any], *, bits_stored: int) -> dict[str, Any]:
    """The Image Pixel module of one grey frame. Source: PS3.3 C.7.6.3."""
    return {
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": array.shape[0],
        "Columns": array.shape[1],
        "BitsAllocated": 16,
        "BitsStored": bits_stored,
        "HighBit": bits_stored - 1,
        "PixelRepresentation": int(array.dtype.kind == "i"),
        "PixelData": array.astype(array.dtype.newbyteorder("<")).tobytes(),
    }


def _slice_geometry(index: int, spacing: float, thickness: float, size: int, frame_of_reference: str) -> dict[str, Any]:
    half = -spacing * size / 2
    return {
        "FrameOfReferenceUID": frame_of_reference,
        "PositionReferenceIndicator": "",
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [half, half, index * thickness],
        "SliceThickness": thickness,
        "SliceLocation": index * thickness,
        "PixelSpacing": [spacing, spacing],
    }


def _ct(images: int) -> Iterator[dict[str, Any]]:
    frame_of_reference = new_uid()
    for index, hounsfield in enumerate(phantoms.head_ct(images)):
        yield {
            "SOPClassUID": CTImageStorage,
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "BodyPartExamined": "HEAD",
            "SeriesDescription": "Head 5.0",
            "PatientPosition": "HFS",
            "KVP": 120,
            "AcquisitionNumber": 1,
            "RescaleIntercept": -1024,
            "RescaleSlope": 1,
            "RescaleType": "HU",
            "WindowCenter": 40,
            "WindowWidth": 120,
            **_slice_geometry(index, 0.48, 5.0, hounsfield.shape[0], frame_of_reference),
            **_pixels((hounsfield.astype(np.int32) + 1024).astype(np.uint16), bits_stored=12),
        }


def _mr(images: int) -> Iterator[dict[str, Any]]:
    frame_of_reference = new_uid()
    for index, signal in enumerate(phantoms.knee_mr(images)):
        yield {
            "SOPClassUID": MRImageStorage,
            "ImageType": ["ORIGINAL", "PRIMARY", "OTHER"],
            "BodyPartExamined": "KNEE",
            "SeriesDescription": "PD sag",
            "PatientPosition": "FFS",
            "ScanningSequence": "SE",
            "SequenceVariant": "NONE",
            "ScanOptions": "",
            "MRAcquisitionType": "2D",
            "EchoTime": 30,
            "RepetitionTime": 2500,
            "EchoTrainLength": 1,
            "WindowCenter": 480,
            "WindowWidth": 960,
            **_slice_geometry(index, 0.5, 3.5, signal.shape[0], frame_of_reference),
            **_pixels(signal, bits_stored=16),
        }


def _dx(images: int) -> Iterator[dict[str, Any]]:
    picture = phantoms.chest_dx()
    yield {
        "SOPClassUID": DigitalXRayImageStorageForPresentation,
        "ImageType": ["ORIGINAL", "PRIMARY", ""],
        "BodyPartExamined": "CHEST",
        "SeriesDescription": "Chest PA",
        "ViewPosition": "PA",
        "PatientOrientation": ["L", "F"],
        "ImageLaterality": "U",
        **DX_IMAGE,
        "ImagerPixelSpacing": [0.29, 0.29],
        "WindowCenter": 1300,
        "WindowWidth": 2600,
        **_pixels(picture, bits_stored=12),
    }


def _cr(images: int) -> Iterator[dict[str, Any]]:
    yield {
        "SOPClassUID": ComputedRadiographyImageStorage,
        "BodyPartExamined": "CHEST",
        "SeriesDescription": "Chest PA",
        "ViewPosition": "PA",
        "PatientOrientation": ["L", "F"],
        "ImagerPixelSpacing": [0.29, 0.29],
        "WindowCenter": 1300,
        "WindowWidth": 2600,
        **_pixels(phantoms.chest_dx(seed=5), bits_stored=12),
    }


def _mg(images: int) -> Iterator[dict[str, Any]]:
    for laterality in "RL":
        for view, code in (("CC", "R-10242"), ("MLO", "R-10226")):
            angle = Dataset()
            angle.CodeValue, angle.CodingSchemeDesignator = code, "SNM3"
            angle.CodeMeaning = "cranio-caudal" if view == "CC" else "medio-lateral oblique"
            angle.ViewModifierCodeSequence = []
            yield {
                "SOPClassUID": DigitalMammographyXRayImageStorageForPresentation,
                "ImageType": ["ORIGINAL", "PRIMARY", ""],
                "BodyPartExamined": "BREAST",
                "SeriesDescription": "Mammography",
                "ViewPosition": view,
                "ImageLaterality": laterality,
                "ViewCodeSequence": [angle],
                "PatientOrientation": ["P" if laterality == "R" else "A", "L" if view == "CC" else "F"],
                **DX_IMAGE,
                "ImagerPixelSpacing": [0.1, 0.1],
                "WindowCenter": 2048,
                "WindowWidth": 4096,
                **_pixels(phantoms.breast_mg(mirrored=laterality == "R"), bits_stored=12),
            }


def _us(images: int) -> Iterator[dict[str, Any]]:
    cine = phantoms.heart_us(images)
    yield {
        "SOPClassUID": UltrasoundMultiFrameImageStorage,
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "BodyPartExamined": "HEART",
        "SeriesDescription": "A4C",
        "NumberOfFrames": cine.shape[0],
        "FrameTime": 40,
        "FrameIncrementPointer": 0x00181063,
        "SamplesPerPixel": 3,
        "PhotometricInterpretation": "RGB",
        "PlanarConfiguration": 0,
        "Rows": cine.shape[1],
        "Columns": cine.shape[2],
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "LossyImageCompression": "00",
        "PixelData": cine.tobytes(),
    }


MAKERS = {"CT": _ct, "MR": _mr, "CR": _cr, "DX": _dx, "MG": _mg, "US": _us}

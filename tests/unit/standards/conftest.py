"""Small DICOM files made on the spot."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian

from standards.uids import new_uid


def make_image(**attributes: object) -> Dataset:
    """A 4×6 image of 12 bits in 16 with a fictional Russian patient; attributes replace its own."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.SOPInstanceUID = new_uid()
    dataset.StudyInstanceUID = new_uid()
    dataset.SeriesInstanceUID = new_uid()
    dataset.PatientName = "Щёголев-Ящуржинский^Пётр^Ёжикович"
    dataset.PatientID = "К-1"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 4, 6, 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation, dataset.PhotometricInterpretation = 0, "MONOCHROME2"
    dataset.PixelData = (np.arange(24, dtype="<u2") * 100).tobytes()
    dataset["PixelData"].VR = "OW"
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def part10_bytes(dataset: Dataset, transfer_syntax: str = ExplicitVRLittleEndian) -> bytes:
    """The data set as a Part 10 file in a native transfer syntax."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(transfer_syntax)
    meta.MediaStorageSOPClassUID = UID(dataset.get("SOPClassUID") or "1.2")
    meta.MediaStorageSOPInstanceUID = UID(dataset.get("SOPInstanceUID") or "1.2")
    dataset.file_meta = meta
    if transfer_syntax == ExplicitVRBigEndian and "PixelData" in dataset:
        # pydicom writes pixel data as it is given.
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@pytest.fixture
def image_file() -> Callable[..., io.BytesIO]:
    """Make a Part 10 file in memory of an image with the given attributes."""

    def make(transfer_syntax: str = ExplicitVRLittleEndian, **attributes: object) -> io.BytesIO:
        return io.BytesIO(part10_bytes(make_image(**attributes), transfer_syntax))

    return make

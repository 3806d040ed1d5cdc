"""Objects in Explicit VR Little Endian: the same values, the same pixels, another encoding."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from standards.dicom_json import to_json
from standards.dicom_xml import from_xml, to_xml
from standards.errors import PermanentError, RegisError
from standards.frames import iter_frames
from standards.part10 import Header, open_plain, read_header
from standards.pixels import decode_stored
from standards.transcoding import as_explicit
from tests.unit.standards.conftest import make_image, part10_bytes

ImageFile = Callable[..., io.BytesIO]
NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
CHANGED = frozenset({"00280004", "00280006", "00282110", "7FE00001", "7FE00002"})


def explicit(file: io.BytesIO) -> bytes:
    made = as_explicit(file, read_header(file, required=()))
    content = b"".join(made.chunks)
    assert len(content) == made.length
    return content


@pytest.mark.parametrize("syntax", NATIVE)
def test_values_and_pixels_survive(image_file: ImageFile, syntax: str) -> None:
    inner = Dataset()
    inner.CodeValue = "Т-1"
    table = Dataset()
    table.LUTDescriptor = [2, 0, 16]
    table.add_new(0x00283006, "OW", b"\1\2\3\4")
    made = image_file(
        syntax, ConceptNameCodeSequence=[inner], VOILUTSequence=[table], SliceThickness="1.5", FrameTime="33"
    )
    source = dcmread(made)
    made.seek(0)
    back = dcmread(io.BytesIO(explicit(made)))
    assert back.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    pixels = {"7FE00010": to_json(back)["7FE00010"]}
    assert to_json(back) == to_json(read_header(made).dataset) | pixels
    assert np.array_equal(back.pixel_array, source.pixel_array)


def test_a_value_too_long_to_hold_is_carried_over(image_file: ImageFile) -> None:
    document = bytes(range(256)) * 8192 + b"x"
    back = dcmread(io.BytesIO(explicit(image_file("1.2.840.10008.1.2", EncapsulatedDocument=document))))
    assert back.EncapsulatedDocument == document + b"\0"
    assert back.Rows == 4


def test_a_text_too_long_to_hold_and_for_its_representation_is_carried_over(image_file: ImageFile) -> None:
    back = dcmread(io.BytesIO(explicit(image_file("1.2.840.10008.1.2", ImageComments="x" * (1 << 21)))))
    assert len(back.ImageComments) == 1 << 21


@pytest.mark.parametrize("syntax", NATIVE)
def test_a_long_value_within_an_item_is_carried_over(image_file: ImageFile, syntax: str) -> None:
    waveform = Dataset()
    waveform.WaveformBitsAllocated = 16
    samples = np.arange(1 << 20, dtype="<u2")
    stored = samples.astype(">u2") if syntax == "1.2.840.10008.1.2.2" else samples
    waveform.add_new(0x54001010, "OW", stored.tobytes())
    made = image_file(syntax, WaveformSequence=[waveform], EncapsulatedDocument=bytes(1 << 21))
    back = dcmread(io.BytesIO(explicit(made)))
    assert back.WaveformSequence[0].WaveformData == samples.tobytes()
    assert len(back.EncapsulatedDocument) == 1 << 21


def with_icon(rows: int = 2) -> io.BytesIO:
    """An RLE image whose icon is RLE too."""
    icon = make_image()
    for keyword in ("SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        del icon[keyword]
    icon.Rows, icon.Columns = rows, 3
    icon.BitsAllocated, icon.BitsStored, icon.HighBit = 8, 8, 7
    image = make_image(IconImageSequence=[icon])
    segment = struct.pack("<16L", 1, 64, *[0] * 14) + bytes([5, *range(6), 0])
    icon.PixelData, icon["PixelData"].VR = encapsulate([segment]), "OB"
    icon["PixelData"].is_undefined_length = True
    low, high = (bytes(image.PixelData[start::2]) for start in (0, 1))
    rest = bytes([23, *high]), bytes([23, *low])
    image.PixelData = encapsulate([struct.pack("<16L", 2, 64, 89, *[0] * 13) + rest[0] + rest[1]])
    image["PixelData"].VR = "OB"
    image["PixelData"].is_undefined_length = True
    return io.BytesIO(part10_bytes(image, "1.2.840.10008.1.2.5"))


def test_a_compressed_icon_is_decoded_with_its_image() -> None:
    back = dcmread(io.BytesIO(explicit(with_icon())))
    assert np.array_equal(back.pixel_array, np.arange(24).reshape(4, 6) * 100)
    assert back.IconImageSequence[0].PixelData == bytes(range(6))
    assert not back.IconImageSequence[0]["PixelData"].is_undefined_length


def test_a_mammogram_with_compressed_icons_has_an_uncompressed_form(sample_data: Path) -> None:
    file = io.BytesIO((sample_data / "mg" / "ge_senographe_jpegll.dcm").read_bytes())
    back = dcmread(io.BytesIO(explicit(file)))
    icon = back.IconImageSequence[0]
    assert len(icon.PixelData) == icon.Rows * icon.Columns
    assert len(set(icon.PixelData)) > 10
    assert np.array_equal(back.pixel_array, frames(file)[0])


def test_an_icon_that_cannot_be_decoded_is_named_and_never_dropped() -> None:
    with pytest.raises(PermanentError, match="cannot-decode"):
        explicit(with_icon(rows=20))


def test_a_video_has_no_such_form(image_file: ImageFile) -> None:
    file = image_file()
    header = read_header(file)
    video = Header(**{**header.__dict__, "transfer_syntax": "1.2.840.10008.1.2.4.102"})
    with pytest.raises(PermanentError, match="cannot-transcode"):
        as_explicit(file, video)


def frames(file: io.BytesIO) -> list[np.ndarray]:
    header = read_header(file, required=())
    with open_plain(file, header) as plain:
        return [decode_stored(stored, header) for stored in iter_frames(plain, header)]


@pytest.mark.parametrize(
    "folder", ["ct", "cr_dx", "mr", "us_cine", "xa_rf_nm_pt", "transfer_syntaxes", "charsets", "sr_pdf_ps", "rt"]
)
def test_every_sample_says_and_shows_the_same(sample_data: Path, folder: str) -> None:
    compared = 0
    for path in sorted((sample_data / folder).rglob("*")):
        file = io.BytesIO(path.read_bytes() if path.is_file() else b"")
        try:
            header = read_header(file, required=())
            content = explicit(file)
        except RegisError:
            continue
        before = to_json(header.dataset)
        after = to_json(read_header(io.BytesIO(content), required=()).dataset)
        assert {tag: value for tag, value in after.items() if tag not in CHANGED} == {
            tag: value for tag, value in before.items() if tag not in CHANGED
        }, path
        if header.pixel_offset is not None:
            shown = frames(io.BytesIO(content))
            assert all(np.array_equal(a, b) for a, b in zip(shown, frames(file), strict=True)), path
        assert from_xml(to_xml(after)).keys() == after.keys(), path
        compared += 1
    assert compared > 1


def test_a_data_set_becomes_xml_and_comes_back() -> None:
    inner = Dataset()
    inner.CodeValue = "A&B<C>"
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName = "Щёголев^Пётр^^д-р=山田^太郎"
    dataset.ImageType = ["ORIGINAL", "", "AXIAL"]
    dataset.Rows = 4
    dataset.SliceThickness = "1.5"
    dataset.FrameIncrementPointer = 0x00181063
    dataset.PatientComments = "one\r\n two \x0b"
    dataset.ConceptNameCodeSequence = [inner, Dataset()]
    dataset.add_new(0x00091010, "OB", b"\1\2")
    dataset.add_new(0x00090010, "LO", 'MAKER "1"')
    model = to_json(dataset)
    document = to_xml(model)
    assert b"privateCreator='MAKER \"1\"'" in document
    back = from_xml(document)
    assert back.pop("00104000")["Value"][0].startswith("one\r\n two ")
    model.pop("00104000")
    assert back == model


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<x/>",
        b"<NativeDicomModel><DicomAttribute tag='x' vr='LO'/></NativeDicomModel>",
        b"<NativeDicomModel><DicomAttribute vr='LO'/></NativeDicomModel>",
        b"<NativeDicomModel><Value>1</Value></NativeDicomModel>",
        b"<!DOCTYPE n [<!ENTITY a 'aaaa'>]><NativeDicomModel>&a;</NativeDicomModel>",
        b"<NativeDicomModel>" + b'<DicomAttribute tag="00081140" vr="SQ"><Item number="1">' * 200,
        b"<NativeDicomModel><DicomAttribute tag='00280010' vr='US'><Value number='999999999'>1</Value>",
    ],
)
def test_xml_that_is_no_data_set_is_refused(document: bytes) -> None:
    with pytest.raises(PermanentError, match="invalid-dicom-xml"):
        from_xml(document)

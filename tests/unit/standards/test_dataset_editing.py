"""Single elements of an encoded data set are changed, every other byte stays; broken input is refused by name."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import dcmread, read_dataset
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from standards.dataset_editing import REMOVE, Element, edit, elements, parted
from standards.errors import PermanentError
from tests.factories.dicom import ct_series, part10

SYNTAXES = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]


def written(dataset: Dataset, syntax: str) -> bytes:
    """A data set as it travels."""
    buffer = DicomBytesIO()
    buffer.is_little_endian = syntax != ExplicitVRBigEndian
    buffer.is_implicit_VR = syntax == ImplicitVRLittleEndian
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def read(encoded: bytes, syntax: str) -> Dataset:
    return read_dataset(
        io.BytesIO(encoded), syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian, bytelength=len(encoded)
    )


def sample(undefined: bool = False) -> Dataset:
    """A data set with sequences in sequences."""
    inner = Dataset()
    inner.PatientName, inner.CodeValue = "A^B", "C1"
    middle = Dataset()
    middle.CodeMeaning = "M"
    middle.ConceptNameCodeSequence = [inner]
    middle["ConceptNameCodeSequence"].is_undefined_length = undefined
    middle.is_undefined_length_sequence_item = undefined
    top = Dataset()
    top.PatientName, top.PatientID, top.Rows = "Q^R", "ID", 7
    top.RequestAttributesSequence = [middle, Dataset()]
    top["RequestAttributesSequence"].is_undefined_length = undefined
    top.PixelData = bytes(range(16))
    top["PixelData"].VR = "OB"
    return top


def nothing(_: Element) -> None:
    return None


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [False, True])
def test_nothing_asked_nothing_changed(syntax: str, undefined: bool) -> None:
    encoded = written(sample(undefined), syntax)
    parts = parted(encoded, syntax)
    assert b"".join(parts.joined(edit(parts.head, syntax, nothing, {}))) == encoded


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [False, True])
def test_values_change_at_every_depth_and_lengths_follow(syntax: str, undefined: bool) -> None:
    encoded = written(sample(undefined), syntax)
    parts = parted(encoded, syntax)

    def longer(element: Element) -> bytes | None:
        return b"Longer^Name " if element.vr == "PN" else None

    changed = b"".join(parts.joined(edit(parts.head, syntax, longer, {0x00100040: ("CS", b"F ")})))
    expected = sample(undefined)
    expected.PatientName = "Longer^Name"
    expected.PatientSex = "F"
    expected.RequestAttributesSequence[0].ConceptNameCodeSequence[0].PatientName = "Longer^Name"
    assert read(changed, syntax) == read(written(expected, syntax), syntax)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_elements_and_sequences_are_removed(syntax: str) -> None:
    encoded = written(sample(), syntax)
    parts = parted(encoded, syntax)
    gone = edit(parts.head, syntax, lambda element: REMOVE if element.tag in (0x00400275, 0x00100020) else None, {})
    left = read(gone, syntax)
    assert "RequestAttributesSequence" not in left
    assert "PatientID" not in left
    assert left.Rows == 7


def test_a_deflated_data_set_is_opened_and_closed_again() -> None:
    dataset = ct_series(1)[0]
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    whole = part10(dataset)
    start = 144 + int.from_bytes(whole[140:144], "little")
    parts = parted(whole[start:], DeflatedExplicitVRLittleEndian)
    new = edit(parts.head, DeflatedExplicitVRLittleEndian, nothing, {0x00100020: ("LO", b"OTHER ")})
    again = dcmread(io.BytesIO(whole[:start] + b"".join(parts.joined(new))))
    assert (again.PatientID, again.pixel_array.shape) == ("OTHER", (64, 64))


def test_encapsulated_pixels_are_not_touched() -> None:
    pixels = b"\xfe\xff\x00\xe0\0\0\0\0" + b"\xfe\xff\x00\xe0\x04\0\0\0abcd" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    head = written(Dataset(), ExplicitVRLittleEndian) + b"\x10\0\x20\0LO\x02\0AB"
    encoded = head + b"\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff" + pixels + b"\xfc\xff\xfc\xffOB\0\0\x02\0\0\0xx"
    parts = parted(encoded, ExplicitVRLittleEndian)
    assert (parts.head, bytes(parts.rest)) == (head, b"\xfc\xff\xfc\xffOB\0\0\x02\0\0\0xx")
    assert bytes(parts.pixels).endswith(pixels)
    assert [element.tag for element in elements(parts.head, ExplicitVRLittleEndian)] == [0x00100020]


@given(st.binary(max_size=300), st.sampled_from(SYNTAXES))
def test_bytes_that_are_no_data_set_are_refused_by_name_or_kept(encoded: bytes, syntax: str) -> None:
    try:
        parts = parted(encoded, syntax)
        new = edit(parts.head, syntax, nothing, {})
    except PermanentError:
        return
    assert len(new) <= len(parts.head)  # group lengths, which are retired, go


@given(st.integers(0, 400), st.integers(0, 255), st.sampled_from(SYNTAXES))
def test_a_damaged_data_set_never_breaks_out(at: int, value: int, syntax: str) -> None:
    encoded = bytearray(written(sample(undefined=True), syntax))
    encoded[at % len(encoded)] = value
    try:
        elements(parted(bytes(encoded), syntax).head, syntax)
    except PermanentError:
        return

"""Every stretch of every object comes back byte for byte; what is no such body is refused by name."""

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

from gateway import encoding
from standards.errors import TransientError
from standards.uids import new_uid

SAMPLES = Path(os.environ.get("REGIS_SAMPLE_DATA", Path(__file__).parent.parent.parent.parent / "shared" / "data"))


def stored(
    *,
    rows: int = 40,
    columns: int = 33,
    frames: int = 1,
    samples: int = 1,
    bits: int = 16,
    signed: bool = False,
    planar: int = 0,
    syntax: str = ExplicitVRLittleEndian,
    noise: int = 3,
    trailing: bytes = b"",
    seed: int = 1,
) -> bytes:
    """A Part 10 file with smooth pixels."""
    random = np.random.default_rng(seed)
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = UID(syntax)
    image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID, image.StudyInstanceUID, image.SeriesInstanceUID = new_uid(), new_uid(), new_uid()
    image.Rows, image.Columns, image.SamplesPerPixel = rows, columns, samples
    image.BitsAllocated = image.BitsStored = bits
    image.HighBit = bits - 1
    image.PixelRepresentation = int(signed)
    image.PhotometricInterpretation = "RGB" if samples == 3 else "MONOCHROME2"
    if samples == 3:
        image.PlanarConfiguration = planar
    if frames > 1:
        image.NumberOfFrames = frames
    count = rows * columns * samples * frames
    smooth = np.cumsum(random.integers(-noise, noise + 1, count))
    kind = f"{'i' if signed else 'u'}{bits // 8}"
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    raw = smooth.astype(kind).astype(f"{order}{kind}").tobytes()
    image.PixelData = raw + bytes(len(raw) % 2)
    image["PixelData"].VR = "OW" if bits == 16 else "OB"
    if trailing:
        image.add_new(0xFFFCFFFC, "OB", trailing)
    file = io.BytesIO()
    image.save_as(file, enforce_file_format=True)
    return file.getvalue()


def refusal(body: bytes) -> str:
    """The code by which a body is refused, "" when it is none; whatever else is raised passes."""
    try:
        encoding.decode(body)
    except TransientError as error:
        return error.code
    return ""


def there_and_back(raw: bytes, size: int) -> int:
    """Encode and decode in stretches of ``size``; how many bytes went."""
    pixels, went = encoding.pixels_of(io.BytesIO(raw)), 0
    for start in range(0, len(raw), size):
        stretch = raw[start : start + size]
        body = encoding.encode(stretch, start, pixels)
        assert encoding.decode(body) == stretch
        went += len(body)
    return went


@settings(deadline=None, max_examples=150)
@given(
    rows=st.integers(1, 60),
    columns=st.integers(1, 60),
    frames=st.integers(1, 4),
    samples=st.sampled_from([1, 3]),
    bits=st.sampled_from([8, 16]),
    signed=st.booleans(),
    planar=st.integers(0, 1),
    syntax=st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]),
    noise=st.sampled_from([0, 3, 30_000]),
    trailing=st.sampled_from([b"", b"\0" * 200, b"ab"]),
    size=st.integers(7, 20_000),
)
def test_every_native_image_comes_back_whatever_the_stretches(size: int, **shape: object) -> None:
    there_and_back(stored(**shape), size)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60)
@given(raw=st.binary(max_size=3000), size=st.integers(1, 3000))
def test_what_is_no_dicom_comes_back_as_well(raw: bytes, size: int) -> None:
    there_and_back(raw, size)


@pytest.mark.parametrize("signed", [False, True])
def test_smooth_images_become_less_than_half(signed: bool) -> None:
    raw = stored(rows=256, columns=256, signed=signed)
    assert there_and_back(raw, 4 << 20) < 0.45 * len(raw)


def test_frames_in_chunks_that_know_nothing_of_each_other_become_shorter_too() -> None:
    raw = stored(rows=128, columns=128, frames=20)
    assert there_and_back(raw, 100_003) < 0.5 * len(raw)


def test_noise_is_sent_as_it_is() -> None:
    raw = stored(rows=128, columns=128, noise=32_000)
    assert there_and_back(raw, 4 << 20) <= len(raw) + 200


def test_what_is_compressed_already_goes_as_it_is() -> None:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID, image.StudyInstanceUID, image.SeriesInstanceUID = new_uid(), new_uid(), new_uid()
    image.Rows = image.Columns = 8
    image.PixelData = b"\xfe\xff\0\xe0\0\0\0\0" + b"\xfe\xff\0\xe0" + (20_000).to_bytes(4, "little") + bytes(20_000)
    image["PixelData"].VR = "OB"
    image["PixelData"].is_undefined_length = True
    file = io.BytesIO()
    image.save_as(file, enforce_file_format=True)
    raw = file.getvalue()
    assert encoding.pixels_of(io.BytesIO(raw)).is_compressed
    assert there_and_back(raw, 4 << 20) > 20_000, "nobody tried"


@settings(deadline=None, max_examples=200)
@given(position=st.integers(0), bit=st.integers(0, 7))
def test_a_damaged_body_gives_other_bytes_or_a_named_error_and_nothing_else(position: int, bit: int) -> None:
    raw = stored(rows=24, columns=24)
    body = bytearray(encoding.encode(raw, 0, encoding.pixels_of(io.BytesIO(raw))))
    body[position % len(body)] ^= 1 << bit
    assert refusal(bytes(body)) in ("", "not-restored")


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_body_or_refused_by_name(body: bytes) -> None:
    assert refusal(body) in ("", "not-restored")


@settings(deadline=None, max_examples=60)
@given(size=st.integers(50, 5000), stretch=st.integers(500, 20_000), trailing=st.binary(max_size=200))
def test_a_body_of_any_length_is_restored_as_it_comes_and_a_cut_one_is_refused(
    size: int, stretch: int, trailing: bytes
) -> None:
    raw = stored(frames=3, trailing=trailing)
    pixels = encoding.pixels_of(io.BytesIO(raw))
    body = b"".join(encoding.encode(raw[at : at + stretch], at, pixels) for at in range(0, len(raw), stretch))
    target = io.BytesIO()
    encoding.restore((body[at : at + size] for at in range(0, len(body), size)), target)
    assert target.getvalue() == raw
    with pytest.raises(TransientError, match="not-restored: a segment is cut short"):
        encoding.restore([body[:-1]], io.BytesIO())


def test_a_segment_that_would_fill_the_memory_is_refused_before_it_comes() -> None:
    for raw_length, length in ((10, 0xFFFFFFFF), (0xFFFFFFFF, 10)):
        with pytest.raises(TransientError, match="not-restored"):
            encoding.restore([b"\x01\x00" + struct.pack("<LL", raw_length, length)], io.BytesIO())


def test_a_body_that_promises_more_than_is_taken_is_refused() -> None:
    body = encoding.encode(bytes(1 << 20), 0, encoding.NO_PIXELS)
    assert len(body) < 1000
    with pytest.raises(TransientError, match="not-restored"):
        encoding.decode(body, (1 << 20) - 1)


def test_the_sample_images_come_back() -> None:
    if not SAMPLES.is_dir():
        pytest.skip("no sample data here: set REGIS_SAMPLE_DATA")
    paths = [path for path in sorted(SAMPLES.rglob("*")) if path.is_file() and path.stat().st_size < 3_000_000][::7]
    assert paths
    for path in paths:
        there_and_back(path.read_bytes(), 1 << 18)

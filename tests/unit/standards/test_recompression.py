"""Recompression of any small image: the received file is always had back, or the image is refused by name."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from standards.errors import PermanentError
from standards.file_meta import read_file_meta
from standards.lossless import ENCODINGS
from standards.recompression import Recipe, chunks, received, recompress
from tests.factories.dicom import ct_instance, part10


@st.composite
def images(draw: st.DrawFn) -> bytes:
    """A Part 10 file with an image of any depth, sign, shape and arrangement of samples."""
    dataset = ct_instance()
    allocated = draw(st.sampled_from([8, 16]))
    stored = draw(st.integers(1 if allocated == 8 else 9, allocated))
    samples = draw(st.sampled_from([1, 1, 3])) if allocated == 8 else 1
    rows, columns, frames = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 3))
    signed = draw(st.booleans()) and samples == 1
    values = np.random.default_rng(draw(st.integers(0, 999))).integers(
        -(1 << stored - 1) if signed else 0, 1 << (stored - 1 if signed else stored), (frames, rows, columns, samples)
    )
    pixels = values.astype(f"<{'i' if signed else 'u'}{allocated // 8}").tobytes()
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = rows, columns, frames
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, stored, stored - 1
    dataset.PixelRepresentation, dataset.SamplesPerPixel = int(signed), samples
    if samples == 3:
        dataset.PhotometricInterpretation = "RGB"
        dataset.PlanarConfiguration = draw(st.sampled_from([0, 1]))
    dataset.PixelData = pixels + b"\0" * (len(pixels) % 2)
    return part10(dataset)


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
@given(original=images())
@settings(max_examples=60, deadline=None)
def test_any_image_comes_back_byte_for_byte_or_is_refused(encoding: str, original: bytes) -> None:
    stored = io.BytesIO()
    try:
        recompress(io.BytesIO(original), stored, ENCODINGS[encoding])
    except PermanentError as error:
        if error.code in ("cannot-recompress", "cannot-encode"):
            return
        raise
    try:
        with received(stored) as again:
            back = b"".join(chunks(again))
    except PermanentError as error:
        if error.code == "cannot-decode":  # the policy decodes before it replaces, and leaves it alone
            return
        raise
    assert back == original


@given(st.binary(max_size=200))
def test_a_damaged_recipe_is_refused_by_name(rubbish: bytes) -> None:
    stored = io.BytesIO()
    recompress(io.BytesIO(part10(ct_instance())), stored, ENCODINGS["jpeg-ls"])
    meta = read_file_meta(stored)
    assert Recipe.of(meta) is not None
    meta.elements[0x0102] = rubbish
    if rubbish:
        with pytest.raises(PermanentError, match="recipe-damaged"):
            Recipe.of(meta)


def test_a_file_that_is_no_recompressed_one_is_given_as_it_is() -> None:
    original = part10(ct_instance())
    with received(io.BytesIO(original)) as file:
        assert file.read() == original

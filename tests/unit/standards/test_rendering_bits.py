"""Pictures of objects that keep their values, overlays and tables in unusual places."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import RLELosslessEncoder
from pydicom.sequence import Sequence
from pydicom.uid import RLELossless

from standards.errors import PermanentError
from standards.part10 import read_header
from standards.render import render
from standards.transcoding import as_explicit
from standards.viewports import Viewport

Make = Callable[..., Path]


@pytest.fixture
def image(tmp_path: Path, image_file: Callable[..., io.BytesIO]) -> Make:
    """Write an image of ``values`` (rows × columns, or × 3 for colours) with further attributes to a file."""

    def make(values: np.ndarray, **attributes: object) -> Path:
        bits = values.dtype.itemsize * 8
        shape = {"Rows": values.shape[0], "Columns": values.shape[1], "PixelData": values.tobytes()}
        depth: dict[str, object] = {"BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1}
        if values.ndim == 3:
            depth |= {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
        path = tmp_path / "image.dcm"
        path.write_bytes(image_file(**(shape | depth | attributes)).getvalue())
        return path

    return make


def seen(path: Path, viewport: Viewport | None = None) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(render(path, 0, media_type="image/png", viewport=viewport)))).astype(int)


def plane(path: Path, bits: np.ndarray) -> Path:
    """Give the object an overlay plane of its own data."""
    dataset = dcmread(path)
    values = {0x0010: bits.shape[0], 0x0011: bits.shape[1], 0x0100: 1, 0x0102: 0}
    for element, value in values.items():
        dataset.add_new((0x6000, element), "US", value)
    dataset.add_new((0x6000, 0x0040), "CS", "G")
    dataset.add_new((0x6000, 0x0050), "SS", [1, 1])
    dataset.add_new((0x6000, 0x3000), "OW", np.packbits(bits.ravel(), bitorder="little").tobytes())
    dataset.save_as(path)
    return path


def ramp(rows: int = 16) -> np.ndarray:
    return np.arange(rows * 16, dtype="<u2").reshape(rows, 16)


def corner(rows: int, columns: int) -> np.ndarray:
    bits = np.zeros((rows, columns), np.uint8)
    bits[: rows // 2, : columns // 2] = 1
    return bits


def test_overlays_and_shutters_lie_over_native_colours(image: Make) -> None:
    colours = np.full((16, 16, 3), (10, 200, 30), np.uint8)
    shown = seen(plane(image(colours), corner(16, 16)))
    assert (shown[:8, :8] == 255).all()
    assert (shown[8:, 8:] == (10, 200, 30)).all()
    shown = seen(image(colours, ShutterShape="CIRCULAR", CenterOfCircularShutter=[8, 8], RadiusOfCircularShutter=4))
    assert (shown[0, 0] == 0).all()
    assert (shown[8, 8] == (10, 200, 30)).all()


def test_an_overlay_of_a_large_image_is_drawn_whatever_its_length(image: Make) -> None:
    bits = corner(3072, 3072)  # more than a megabyte
    shown = seen(plane(image(np.zeros((3072, 3072), "u1")), bits))
    assert (shown == bits * 255).all()


@pytest.mark.parametrize("slope", ["0.5", "2"])
def test_a_voi_table_is_looked_up_after_any_rescaling(image: Make, slope: str) -> None:
    table = Dataset()
    table.add_new(0x00283002, "US", [512, 0, 8])
    table.add_new(0x00283006, "US", [255 - entry // 2 for entry in range(512)])
    shown = seen(image(ramp(), RescaleSlope=slope, RescaleIntercept="0", VOILUTSequence=Sequence([table])))
    entries = np.rint(ramp() * float(slope)).astype(int)
    assert (shown == 255 - entries // 2).all()


def test_values_that_lie_in_high_bits_are_brought_down(image: Make) -> None:
    window = {"WindowCenter": "128", "WindowWidth": "256"}
    plain = seen(image(ramp(), BitsStored=12, HighBit=11, **window))
    assert (seen(image(ramp() << 4, BitsStored=12, HighBit=15, **window)) == plain).all()
    signed = {"BitsStored": 12, "PixelRepresentation": 1, "WindowCenter": "0", "WindowWidth": "256"}
    values = ramp().astype("<i2") - 128
    plain = seen(image(values, HighBit=11, **signed))
    assert (seen(image(values << 4, HighBit=15, **signed)) == plain).all()


def with_bits_above(image: Make) -> tuple[Path, np.ndarray]:
    """An RLE image whose overlay is in the bits above its 12, and what it stores."""
    stored = ramp() | corner(16, 16).astype("<u2") << 12
    path = image(stored, BitsStored=12, HighBit=11, WindowCenter="128", WindowWidth="256")
    dataset = dcmread(path)
    for element, value in {0x0010: 16, 0x0011: 16, 0x0100: 16, 0x0102: 12}.items():
        dataset.add_new((0x6000, element), "US", value)
    dataset.add_new((0x6000, 0x0040), "CS", "G")
    dataset.add_new((0x6000, 0x0050), "SS", [1, 1])
    frame = RLELosslessEncoder.encode(
        stored,
        rows=16,
        columns=16,
        samples_per_pixel=1,
        bits_allocated=16,
        bits_stored=16,
        pixel_representation=0,
        number_of_frames=1,
        photometric_interpretation="MONOCHROME2",
    )
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.save_as(path)
    return path, stored


def test_an_overlay_in_the_unused_bits_of_rle_is_drawn(image: Make) -> None:
    shown = seen(with_bits_above(image)[0])
    assert (shown[:8, :8] == 255).all()
    assert (shown[8:, 8:].ravel() == ramp()[8:, 8:].ravel()).all()


def test_decoding_keeps_the_bits_that_overlays_lie_in(image: Make) -> None:
    path, stored = with_bits_above(image)
    with path.open("rb") as file:
        plain = b"".join(as_explicit(file, read_header(file)).chunks)
    assert dcmread(io.BytesIO(plain)).PixelData == stored.tobytes()


def test_bytes_without_a_window_are_shades_as_they_are(image: Make) -> None:
    values = ramp().astype("u1") // 4
    assert (seen(image(values)) == values).all()
    segments = seen(image(values, SegmentSequence=Sequence([Dataset()])))
    assert (segments.min(), segments.max()) == (0, 255)


@pytest.mark.parametrize(("kind", "keyword"), [("<f4", "Float"), ("<f8", "DoubleFloat")])
def test_padding_of_float_pixels_is_no_part_of_their_range(image: Make, kind: str, keyword: str) -> None:
    values = ramp().astype(kind)
    values[0] = -1e30
    path = image(values, **{f"{keyword}PixelPaddingValue": -1e30, f"{keyword}PixelPaddingRangeLimit": -1e29})
    dataset = dcmread(path)
    dataset[f"{keyword}PixelData"] = DataElement(
        f"{keyword}PixelData", "OF" if kind == "<f4" else "OD", values.tobytes()
    )
    for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(dataset, name)
    dataset.save_as(path)
    shown = seen(path)
    assert (shown[0] == 0).all()
    assert (shown[1, 0], shown[-1, -1]) == (0, 255)
    assert abs(shown[8, 0] - 255 * (128 - 16) / (255 - 16)) <= 1


def test_a_region_beyond_the_image_is_cut_off_at_its_edge(image: Make) -> None:
    values = ramp().astype("u1")
    path = image(values)
    assert (seen(path, Viewport(8, 8, (-8, -8, 16, 16))) == values[:8, :8]).all()
    assert (seen(path, Viewport(8, 8, (8, 8, 100, 100))) == values[8:, 8:]).all()
    with pytest.raises(PermanentError) as raised:
        seen(path, Viewport(8, 8, (16, 0, 4, 4)))
    assert raised.value.code == "invalid-parameter"

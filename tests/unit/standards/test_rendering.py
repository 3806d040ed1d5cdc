"""Pictures of frames: grey values are what the standard's formulas give, colours are right."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from standards.errors import PermanentError
from standards.part10 import read_header
from standards.render import Window, render

ImageFile = Callable[..., io.BytesIO]


def grey(path: Path, window: Window | tuple[float, float] | None = None, frame: int = 0) -> list[int]:
    """The pixels of the picture, row by row, without loss."""
    picture = Image.open(io.BytesIO(render(path, frame, window=window, media_type="image/png")))
    assert picture.mode == "L"
    return [int(value) for value in np.asarray(picture).ravel()]


@pytest.fixture
def image(tmp_path: Path, image_file: ImageFile) -> Callable[..., Path]:
    """Write an image of the values 0, 100, … 2300 with the given attributes to a file."""

    def make(**attributes: object) -> Path:
        path = tmp_path / "image.dcm"
        path.write_bytes(image_file(**attributes).getvalue())
        return path

    return make


def test_without_a_window_the_whole_range_is_shown(image: Callable[..., Path]) -> None:
    shown = grey(image())
    assert (shown[0], shown[-1]) == (0, 255)
    assert shown == sorted(shown)


def test_a_linear_window_follows_its_formula(image: Callable[..., Path]) -> None:
    shown = grey(image(), Window(1000, 801))
    expected = [min(255.0, max(0.0, ((value - 999.5) / 800 + 0.5) * 255)) for value in range(0, 2400, 100)]
    assert shown == [round(value) for value in expected]


def test_the_other_functions_follow_theirs(image: Callable[..., Path]) -> None:
    values = np.arange(0, 2400, 100)
    exact = np.rint(np.clip((values - 1000) / 800 + 0.5, 0, 1) * 255)
    assert grey(image(), Window(1000, 800, "LINEAR_EXACT")) == list(exact)
    sigmoid = np.rint(255 / (1 + np.exp(-4 * (values - 1000) / 800)))
    assert grey(image(), Window(1000, 800, "SIGMOID")) == list(sigmoid)


def test_the_objects_own_window_and_rescale_are_used(image: Callable[..., Path]) -> None:
    plain = grey(image(), (1000, 800))
    own = image(RescaleSlope="2", RescaleIntercept="-1024", WindowCenter=["976", "1"], WindowWidth=["1600", "1"])
    assert max(abs(a - b) for a, b in zip(grey(own), plain, strict=True)) <= 1


def test_monochrome1_is_inverted(image: Callable[..., Path]) -> None:
    upright = grey(image(), (1000, 800))
    assert grey(image(PhotometricInterpretation="MONOCHROME1"), (1000, 800)) == [255 - value for value in upright]


def test_signed_values_are_signed(image: Callable[..., Path]) -> None:
    values = np.linspace(-1000, 1000, 24).astype("<i2")
    shown = grey(image(PixelData=values.tobytes(), PixelRepresentation=1, BitsStored=16, HighBit=15))
    assert shown == sorted(shown)
    assert (shown[0], shown[-1]) == (0, 255)


def test_a_voi_table_is_looked_up(image: Callable[..., Path]) -> None:
    table = Dataset()
    table.LUTDescriptor = [4, 0, 8]
    table.add_new(0x00283006, "US", [0, 50, 200, 255])
    values = np.tile(np.array([0, 1, 2, 3], "<u2"), 6)
    assert grey(image(PixelData=values.tobytes(), VOILUTSequence=[table]))[:4] == [0, 50, 200, 255]


def test_a_frame_has_its_own_window(image: Callable[..., Path]) -> None:
    groups = []
    for center in ("500", "1500"):
        voi = Dataset()
        voi.WindowCenter, voi.WindowWidth = center, "800"
        group = Dataset()
        group.FrameVOILUTSequence = [voi]
        groups.append(group)
    values = (np.arange(24, dtype="<u2") * 100).tobytes()
    path = image(PixelData=values * 2, NumberOfFrames="2", PerFrameFunctionalGroupsSequence=groups)
    assert grey(path, frame=1) == grey(path, (1500, 800), frame=1)
    assert grey(path, frame=0) != grey(path, frame=1)


def test_a_viewport_bounds_the_picture_and_keeps_its_shape(image: Callable[..., Path]) -> None:
    path = image()
    small = Image.open(io.BytesIO(render(path, 0, viewport=(3, 3))))
    assert small.size == (3, 2)
    assert Image.open(io.BytesIO(render(path, 0, viewport=(1000, 1000)))).size == (6, 4)
    assert (small.format, Image.open(io.BytesIO(render(path, 0, media_type="image/webp"))).format) == ("JPEG", "WEBP")


def test_what_cannot_be_rendered_is_named(image: Callable[..., Path]) -> None:
    path = image()
    refused: dict[str, list[Callable[[], bytes]]] = {
        "cannot-render": [
            lambda: render(path, 0, media_type="image/bmp"),
            lambda: render(path, 0, window=(1, 0)),
            lambda: render(path, 0, window=Window(1, 10, "CUBIC")),
            lambda: render(image(RescaleSlope="nan"), 0),
        ],
        "no-such-frame": [lambda: render(path, 1)],
        "invalid-image": [lambda: render(image(BitsAllocated=12), 0)],
        "truncated": [lambda: render(image(Rows=4000), 0)],
    }
    for code, attempts in refused.items():
        for attempt in attempts:
            with pytest.raises(PermanentError, match=code):
                attempt()


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_dcmtk_+eb+cy+n1.dcm",
        "SC_rgb_dcmtk_+eb+cy+s4.dcm",
        "SC_rgb_dcmtk_+eb+cr.dcm",
        "SC_rgb_gdcm_KY.dcm",
        "SC_rgb_jls_lossy_line.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "SC_rgb_rle.dcm",
        "SC_rgb_rle_16bit.dcm",
        "SC_rgb_rle_32bit.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
    ],
)
def test_colours_are_the_same_in_every_encoding(sample_data: Path, name: str) -> None:
    folder = sample_data / "transfer_syntaxes" / "colour"
    header = read_header(io.BytesIO((folder / name).read_bytes()), required=())
    picture = Image.open(io.BytesIO(render(folder / name, 0, media_type="image/png", header=header)))
    assert picture.mode == "RGB"
    # The test card's bands from above: red, light red, green, light green, blue, light blue, black, greys, white.
    expected = [(255, 0, 0), (255, 128, 128), (0, 255, 0), (128, 255, 128), (0, 0, 255), (128, 128, 255), (0, 0, 0)]
    for band, colour in enumerate(expected):
        found = picture.getpixel((50, band * 10 + 5))
        assert isinstance(found, tuple)
        assert max(abs(a - b) for a, b in zip(found, colour, strict=True)) <= 6, (name, band)


def test_a_palette_gives_colours(sample_data: Path) -> None:
    path = sample_data / "transfer_syntaxes" / "colour_testpattern" / "TestPattern_Palette_16.dcm"
    plain = sample_data / "transfer_syntaxes" / "colour_testpattern" / "TestPattern_JPEG-LS-Lossless.dcm"
    ours, truth = (np.asarray(Image.open(io.BytesIO(render(p, 0, media_type="image/png")))) for p in (path, plain))
    assert ours.shape == truth.shape
    assert np.abs(ours.astype(int) - truth).mean() < 20

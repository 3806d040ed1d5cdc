"""Pictures against an independent decoder (DCMTK's dcmj2pnm), and by what each attribute says must be seen.

DCMTK cuts off where the standard's formulas round, so a shade may differ by one; resampling and colour conversion may
differ a little more. The tolerance of each comparison is stated.
"""

import hashlib
import io
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset

from standards.part10 import read_header, text
from standards.render import render
from standards.viewports import Viewport

ImageFile = Callable[..., io.BytesIO]
Make = Callable[..., Path]


@pytest.fixture
def image(tmp_path: Path, image_file: ImageFile) -> Make:
    """Write a small image of ``values`` (rows × columns, 0 to 4095 unless told otherwise) to a file."""

    def make(values: np.ndarray, **attributes: object) -> Path:
        path = tmp_path / "image.dcm"
        bits = values.dtype.itemsize * 8
        shape = {"Rows": values.shape[0], "Columns": values.shape[1], "PixelData": values.tobytes()}
        depth = {"BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1}
        sign = {"PixelRepresentation": int(values.dtype.kind == "i")}
        path.write_bytes(image_file(**(shape | depth | sign | attributes)).getvalue())
        return path

    return make


def seen(path: Path, viewport: Viewport | None = None) -> np.ndarray:
    picture = render(path, 0, media_type="image/png", viewport=viewport)
    return np.asarray(Image.open(io.BytesIO(picture))).astype(int)


def ramp(kind: str = "<u2", first: int = 0, step: int = 16) -> np.ndarray:
    return (np.arange(256) * step + first).astype(kind).reshape(16, 16)


def need(tool: str) -> None:
    """Skip, by name, when the peer ``tool`` is not installed."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")


def by_dcmtk(path: Path, *options: str) -> np.ndarray:
    target = path.parent / "theirs.png"
    subprocess.run(["dcmj2pnm", "+on", "+F", "1", *options, str(path), str(target)], check=True, capture_output=True)
    return np.asarray(Image.open(target)).astype(int)


def table(first: int, entries: list[int], bits: int) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.add_new(0x00283006, "OW", np.array(entries, "<u2").tobytes())
    item.ModalityLUTType = "US"
    return item


LINEAR: dict[str, object] = {"WindowCenter": "2000", "WindowWidth": "3000"}
GREY: dict[str, tuple[np.ndarray, dict[str, object], tuple[str, ...]]] = {
    "unsigned": (ramp(), LINEAR, ("+Wi", "1")),
    "signed": (ramp("<i2", -2048), {"WindowCenter": "0", "WindowWidth": "3000"}, ("+Wi", "1")),
    "eight bits": (ramp("u1", 0, 1), {"WindowCenter": "128", "WindowWidth": "100"}, ("+Wi", "1")),
    "twelve of sixteen bits, signed": (
        ramp("<i2", -2048) & 0x0FFF,
        {"BitsStored": 12, "HighBit": 11, "WindowCenter": "0", "WindowWidth": "3000"},
        ("+Wi", "1"),
    ),
    "rescaled": (
        ramp(),
        {"RescaleSlope": "2", "RescaleIntercept": "-1000", "WindowCenter": "500", "WindowWidth": "4000"},
        ("+Wi", "1"),
    ),
    "inverse": (ramp(), {"PhotometricInterpretation": "MONOCHROME1", **LINEAR}, ("+Wi", "1")),
    "inverse by shape": (ramp(), {"PresentationLUTShape": "INVERSE", **LINEAR}, ("+Wi", "1")),
    "sigmoid": (ramp(), {"VOILUTFunction": "SIGMOID", **LINEAR}, ("+Wi", "1", "+Wfs")),
    "full range": (ramp(), {}, ("+Wm",)),
    "voi table": (
        ramp(),
        {"VOILUTSequence": [table(500, [int(255 * (n / 2999) ** 2) for n in range(3000)], 8)]},
        ("+Wl", "1"),
    ),
    "modality table": (
        ramp("u1", 0, 1),
        {
            "ModalityLUTSequence": [table(10, [4095 - 16 * n for n in range(200)], 12)],
            "WindowCenter": "2048",
            "WindowWidth": "4096",
        },
        ("+Wi", "1"),
    ),
}


@pytest.mark.parametrize("name", GREY)
def test_grey_values_are_those_of_an_independent_decoder(image: Make, name: str) -> None:
    need("dcmj2pnm")
    values, attributes, options = GREY[name]
    path = image(values, **attributes)
    assert np.abs(seen(path) - by_dcmtk(path, *options)).max() <= 1


def palette(bits: int, count: int = 256) -> dict[str, object]:
    made: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, power in (("Red", 1.0), ("Green", 2.0), ("Blue", 0.5)):
        entries = (((np.arange(count) / (count - 1)) ** power) * ((1 << bits) - 1)).astype("<u2")
        made[f"{colour}PaletteColorLookupTableDescriptor"] = [count, 0, bits]
        made[f"{colour}PaletteColorLookupTableData"] = entries.tobytes()
    return made


@pytest.mark.parametrize("bits", [8, 16])
def test_palettes_are_those_of_an_independent_decoder(image: Make, bits: int) -> None:
    need("dcmj2pnm")
    path = image(ramp("u1", 0, 1), **palette(bits))
    assert np.abs(seen(path) - by_dcmtk(path)).max() <= 1


def test_a_segmented_palette_is_expanded(image: Make) -> None:
    plain = palette(16)
    segmented = dict(plain)
    for colour in ("Red", "Green", "Blue"):
        del segmented[f"{colour}PaletteColorLookupTableData"]
        # Two entries, a ramp of 98, the first segment again (at byte 0), the ramp again (at byte 8), then to the end.
        words = [0, 2, 0, 100, 1, 98, 65535, 2, 2, 0, 0, 1, 56, 20000]
        segmented[f"Segmented{colour}PaletteColorLookupTableData"] = np.array(words, "<u2").tobytes()
    shown = seen(image(ramp("u1", 0, 1), **segmented)).reshape(256, 3)
    ramped = [0, 100, *(round(100 + (65535 - 100) * n / 98) for n in range(1, 99))]
    expected = ramped * 2 + [round(65535 + (20000 - 65535) * n / 56) for n in range(1, 57)]
    assert shown[:, 0].tolist() == [value >> 8 for value in expected]
    assert (shown[:, 0] == shown[:, 2]).all()


def test_padding_is_black_and_no_part_of_the_range(image: Make) -> None:
    values = ramp("<i2", -1000)
    values[0] = -32768
    values[1] = -32760
    shown = seen(image(values, PixelPaddingValue=-32768, PixelPaddingRangeLimit=-32760))
    assert (shown[:2] == 0).all()
    assert (shown[2, 0], shown[-1, -1]) == (0, 255)
    inverse = seen(
        image(values, PixelPaddingValue=-32768, PixelPaddingRangeLimit=-32760, PhotometricInterpretation="MONOCHROME1")
    )
    assert (inverse[:2] == 0).all()
    assert (inverse[2, 0], inverse[-1, -1]) == (255, 0)


def test_an_overlay_is_drawn_where_it_belongs(image: Make) -> None:
    need("dcmj2pnm")
    bits = np.zeros((4, 8), np.uint8)
    bits[1, :] = bits[:, 2] = 1
    data = np.packbits(bits.ravel(), bitorder="little").tobytes()

    def over(top: int, left: int) -> dict[str, object]:
        return {
            "OverlayRows": 4, "OverlayColumns": 8, "OverlayType": "G", "OverlayOrigin": [top, left],
            "OverlayBitsAllocated": 1, "OverlayBitPosition": 0, "OverlayData": data,
        }  # fmt: skip

    for top, left in ((3, 5), (0, -1), (15, 12)):
        path = with_overlay(image, over(top, left))
        shown = seen(path)
        assert np.abs(shown - by_dcmtk(path, "+Wi", "1")).max() <= 1
        assert (shown == 255).any()


def with_overlay(image: Make, values: dict[str, object], pixels: np.ndarray | None = None) -> Path:
    numbers = {
        "OverlayRows": (0x10, "US"), "OverlayColumns": (0x11, "US"), "OverlayType": (0x40, "CS"),
        "OverlayOrigin": (0x50, "SS"), "OverlayBitsAllocated": (0x100, "US"), "OverlayBitPosition": (0x102, "US"),
        "OverlayData": (0x3000, "OW"),
    }  # fmt: skip
    window = {"WindowCenter": "1000", "WindowWidth": "9000"}
    path = image(ramp() & 0x0FFF if pixels is None else pixels, BitsStored=12, HighBit=11, **window)
    stored = Dataset()
    for name, (number, vr) in numbers.items():
        if name in values:
            stored.add_new(0x60000000 | number, vr, values[name])
    return add_elements(path, stored)


def add_elements(path: Path, more: Dataset) -> Path:
    from_file = dcmread(path)
    from_file.update(more)
    from_file.save_as(path)
    return path


def test_an_overlay_in_the_unused_bits_is_drawn(image: Make) -> None:
    pixels = (ramp() & 0x0FFF).copy()
    pixels[4:8, 4:8] |= 0x8000
    path = with_overlay(
        image,
        {
            "OverlayRows": 16, "OverlayColumns": 16, "OverlayType": "G", "OverlayOrigin": [1, 1],
            "OverlayBitsAllocated": 16, "OverlayBitPosition": 15,
        },
        pixels,
    )  # fmt: skip
    shown = seen(path)
    assert (shown[4:8, 4:8] == 255).all()
    assert (np.delete(shown.ravel(), [r * 16 + c for r in range(4, 8) for c in range(4, 8)]) < 255).all()


def test_of_a_region_of_interest_only_the_outline_is_drawn(image: Make) -> None:
    bits = np.zeros((16, 16), np.uint8)
    bits[4:9, 4:9] = 1
    data = np.packbits(bits.ravel(), bitorder="little").tobytes()
    shown = seen(with_overlay(image, {
        "OverlayRows": 16, "OverlayColumns": 16, "OverlayType": "R", "OverlayOrigin": [1, 1],
        "OverlayBitsAllocated": 1, "OverlayBitPosition": 0, "OverlayData": data,
    }))  # fmt: skip
    assert (shown[4, 4:9] == 255).all()
    assert (shown[5:8, 5:8] < 255).all()


BRIGHT = np.full((20, 20), 4000, "<u2")


def test_shutters_hide_what_is_outside_of_them(image: Make) -> None:
    rectangle = {
        "ShutterShape": "RECTANGULAR", "ShutterUpperHorizontalEdge": 5, "ShutterLowerHorizontalEdge": 10,
        "ShutterLeftVerticalEdge": 3, "ShutterRightVerticalEdge": 8,
    }  # fmt: skip
    shown = seen(image(BRIGHT, WindowCenter="2000", WindowWidth="1000", **rectangle))
    expected = np.zeros((20, 20), int)
    expected[4:10, 2:8] = 255
    assert (shown == expected).all()
    circle = {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [10, 10], "RadiusOfCircularShutter": 5}
    shown = seen(image(BRIGHT, WindowCenter="2000", WindowWidth="1000", **circle))
    assert (shown[9, 4:15] == 255).all()
    assert (shown[9, 3], shown[5, 5], shown[0, 0]) == (0, 0, 0)
    triangle = {
        "ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [1, 1, 1, 20, 20, 1],
        "ShutterPresentationValue": 0x8000,
    }  # fmt: skip
    shown = seen(image(BRIGHT, WindowCenter="2000", WindowWidth="1000", **triangle))
    assert (shown[2, 2], shown[18, 18]) == (255, 128)


def test_pixels_are_shown_square(image: Make) -> None:
    assert seen(image(BRIGHT, PixelSpacing=["2", "1"])).shape == (40, 20)
    assert seen(image(BRIGHT, PixelAspectRatio=["1", "2"])).shape == (20, 40)
    assert seen(image(BRIGHT, PixelSpacing=["0.5", "0.5"])).shape == (20, 20)


def test_a_region_can_be_shown_larger_and_mirrored(image: Make) -> None:
    path = image(ramp("u1", 0, 1), WindowCenter="128", WindowWidth="256")
    part = seen(path, Viewport(8, 8, (4, 4, 8, 8)))
    assert (part == seen(path)[4:12, 4:12]).all()
    assert seen(path, Viewport(64, 32)).shape == (32, 32)
    mirrored = seen(path, Viewport(8, 8, (4, 4, -8, 8)))
    assert (mirrored == part[:, ::-1]).all()


@pytest.mark.parametrize(
    ("kind", "pixel", "colour"),
    [
        ("RGB", (10, 200, 30), (10, 200, 30)),
        ("YBR_FULL", (76, 85, 255), (254, 0, 0)),
        ("YBR_PARTIAL_422", (235, 128, 128), (255, 255, 255)),
        ("YBR_FULL_422", (150, 44, 21), (0, 255, 1)),
    ],
)
def test_colours_of_native_pixels_are_right(image: Make, kind: str, pixel: tuple[int, ...], colour: object) -> None:
    subsampled = kind.endswith("422")
    raw = bytes((pixel[0], pixel[0], *pixel[1:])) * 8 if subsampled else bytes(pixel) * 16
    path = image(
        np.zeros((4, 4), "u1"), PhotometricInterpretation=kind, SamplesPerPixel=3, PlanarConfiguration=0, PixelData=raw
    )
    shown = seen(path).reshape(-1, 3)
    assert np.abs(shown - np.array(colour)).max() <= 1
    if kind.startswith("YBR_FULL"):
        need("dcmj2pnm")
        assert np.abs(shown - by_dcmtk(path).reshape(-1, 3)).max() <= 3


GOLDEN = json.loads(Path(__file__).with_name("golden_pictures.json").read_text(encoding="utf-8"))
"""SHA-256 of the pixels of pictures that were looked at and agreed with DCMTK; of real ones, those without loss."""


def digest(path: Path) -> str:
    shown = seen(path).astype(np.uint8)
    return hashlib.sha256(repr(shown.shape).encode() + shown.tobytes()).hexdigest()


@pytest.mark.parametrize("name", [*GREY, "palette of 8 bits", "palette of 16 bits"])
def test_pictures_stay_as_they_were_approved(image: Make, name: str) -> None:
    if name in GREY:
        values, attributes, _ = GREY[name]
    else:
        values, attributes = ramp("u1", 0, 1), palette(8 if " 8 " in name else 16)
    assert digest(image(values, **attributes)) == GOLDEN["made"][name]


@pytest.mark.parametrize("name", GOLDEN["samples"])
def test_real_pictures_stay_as_they_were_approved(sample_data: Path, name: str) -> None:
    assert digest(sample_data / name) == GOLDEN["samples"][name]


SAMPLES = (
    "cr_dx/CR-ModalitySequenceLUT.dcm", "cr_dx/konica_monochrome1_jpeg.dcm", "mg/ge_senographe_jpegll.dcm",
    "mg/siemens_mammomat_out_of_bounds_overlay.dcm", "ct/single/picker_pq5000_head.dcm", "us_cine/US-PAL-8-10x-echo",
    "us_cine/philips_clearvue_palette_implicit.dcm", "us_cine/sonosite_turbo_30fr_jpeg.dcm",
    "xa_rf_nm_pt/xa_rubo_96fr_jpeg_fragmented.dcm", "xa_rf_nm_pt/pt_ge_discovery_st_jpegll.dcm",
    "xa_rf_nm_pt/NM-MONO2-16-13x-heart", "transfer_syntaxes/lut/vlut_04.dcm", "sr_pdf_ps/pr_clunie/overlay.dcm",
    "transfer_syntaxes/colour/SC_rgb_rle_32bit.dcm", "transfer_syntaxes/small/image_dfl.dcm",
    "transfer_syntaxes/small/MR_small_bigendian.dcm", "rt/rtdose.dcm",
)  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
def test_real_images_look_as_an_independent_decoder_shows_them(sample_data: Path, tmp_path: Path, name: str) -> None:
    need("dcmj2pnm")
    path = tmp_path / "image.dcm"
    path.write_bytes((sample_data / name).read_bytes())
    dataset = read_header(io.BytesIO(path.read_bytes()), required=()).dataset
    options: tuple[str, ...] = ("+Wm",)
    if text(dataset, "WindowCenter") and text(dataset, "WindowWidth"):
        options = ("+Wi", "1")
    elif dataset.get("VOILUTSequence"):
        options = ("+Wl", "1")
    shown, theirs = seen(path), by_dcmtk(path, *options)
    assert shown.shape == theirs.shape
    assert np.abs(shown - theirs).max() <= 1

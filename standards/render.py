"""One frame as an ordinary picture: modality and VOI transformations, colour, size, JPEG or PNG.

Source: PS3.3 C.11.1, C.11.2
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi, convert_color_space

from standards import transfer_syntaxes
from standards.errors import PermanentError
from standards.frames import number, read_frame
from standards.part10 import Header, open_plain, read_header, text
from standards.pixels import Frame, decode_with_colour_space

_FORMATS: Final = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP"}
MEDIA_TYPES: Final = tuple(_FORMATS)
MAX_VIEWPORT: Final = 16_384
_FUNCTIONS: Final = ("LINEAR", "LINEAR_EXACT", "SIGMOID")

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Window:
    """A VOI window; ``function`` is LINEAR, LINEAR_EXACT or SIGMOID."""

    center: float
    width: float
    function: str = "LINEAR"


def render(
    path: Path | str,
    frame: int,
    *,
    window: Window | tuple[float, float] | None = None,
    viewport: tuple[int, int] | None = None,
    quality: int = 90,
    media_type: str = "image/jpeg",
    header: Header | None = None,
) -> bytes:
    """Frame ``frame`` (from 0) of a Part 10 file as a picture of 8 bits a sample.

    ``window`` replaces the object's own; without either the full range of the frame is shown. ``viewport`` is (width,
    height) in pixels into which the picture is fitted, its proportions kept, never enlarged.

    Raises: PermanentError "cannot-render", "cannot-decode", "no-pixel-data", "no-such-frame", "frame-too-large",
        "invalid-image", and those of ``part10.read_header``.
    """
    if media_type not in _FORMATS:
        raise PermanentError("cannot-render", f"{media_type} is not one of {', '.join(_FORMATS)}")
    with open(path, "rb") as file:
        known = header or read_header(file)
        if transfer_syntaxes.is_video(known.transfer_syntax):
            raise PermanentError("cannot-render", "the object is a video")
        with open_plain(file, known) as plain:
            stored = read_frame(plain, known, frame)
    array, colour_space = decode_with_colour_space(stored, known)
    chosen = Window(*window) if isinstance(window, tuple) else window
    picture = Image.fromarray(picture_of(array, colour_space, known.dataset, frame, chosen))
    if viewport:
        width, height = (max(1, min(MAX_VIEWPORT, side)) for side in viewport)
        picture.thumbnail((width, height), Image.Resampling.LANCZOS)
    output = io.BytesIO()
    options: dict[str, Any] = {} if media_type == "image/png" else {"quality": max(1, min(100, quality))}
    picture.save(output, _FORMATS[media_type], **options)
    return output.getvalue()


def picture_of(array: Frame, colour_space: str, dataset: Dataset, frame: int, window: Window | None) -> Picture:
    """A decoded frame as 8-bit grey (rows × columns) or RGB (rows × columns × 3).

    Raises: PermanentError("cannot-render").
    """
    try:
        if colour_space == "PALETTE COLOR":
            return _to_8_bits(apply_color_lut(array, dataset), None)
        if array.ndim == 3:
            return _rgb(array, colour_space, dataset)
        return _grey(array, colour_space, dataset, frame, window)
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, NotImplementedError, OverflowError) as error:
        # Tables and windows come from the file; a broken one must not take the server down.
        raise PermanentError("cannot-render", str(error)[:200]) from error


def _rgb(array: Frame, colour_space: str, dataset: Dataset) -> Picture:
    eight = _to_8_bits(array, number(dataset, "BitsStored", array.dtype.itemsize * 8))
    if colour_space.startswith("YBR_FULL"):
        eight = np.asarray(convert_color_space(eight, "YBR_FULL", "RGB"), dtype=np.uint8)
    return np.ascontiguousarray(eight[..., :3])


def _to_8_bits(array: Frame, bits_stored: int | None) -> Picture:
    bits = bits_stored or array.dtype.itemsize * 8
    if bits > 8:
        array = np.right_shift(array, bits - 8)
    return np.asarray(array, dtype=np.uint8)


def _grey(array: Frame, colour_space: str, dataset: Dataset, frame: int, window: Window | None) -> Picture:
    groups = _functional_groups(dataset, frame)
    values = _modality(array, dataset, groups)
    chosen = window or _own_window(dataset, groups)
    if chosen is None and "VOILUTSequence" in dataset and values.dtype.kind in "iu":
        looked_up = apply_voi(values, dataset)
        shown = _full_range(np.asarray(looked_up, dtype=np.float64), 0.0, float(_table_maximum(dataset)))
    elif chosen is None:
        low, high = _limits(values, array, dataset)
        shown = _full_range(values.astype(np.float64), low, high)
    else:
        shown = _windowed(values.astype(np.float64), chosen)
    if colour_space == "MONOCHROME1":
        shown = 1.0 - shown
    return np.asarray(np.rint(np.clip(shown, 0.0, 1.0) * 255.0), dtype=np.uint8)


def _functional_groups(dataset: Dataset, frame: int) -> list[Dataset]:
    """The functional groups that hold for a frame, its own before the shared ones."""
    groups: list[Dataset] = []
    own = dataset.get("PerFrameFunctionalGroupsSequence")
    if own and frame < len(own):
        groups.append(own[frame])
    shared = dataset.get("SharedFunctionalGroupsSequence")
    if shared:
        groups.append(shared[0])
    return groups


def _first(groups: list[Dataset], sequence: str, keyword: str) -> Dataset | None:
    for group in groups:
        items = group.get(sequence)
        if items and text(items[0], keyword):
            item: Dataset = items[0]
            return item
    return None


def _modality(array: Frame, dataset: Dataset, groups: list[Dataset]) -> Frame:
    source = _first(groups, "PixelValueTransformationSequence", "RescaleSlope") or dataset
    if source is dataset and dataset.get("ModalityLUTSequence") and array.dtype.kind in "iu":
        return np.asarray(apply_modality_lut(array, dataset))
    slope = _decimal(source, "RescaleSlope", 1.0) or 1.0
    intercept = _decimal(source, "RescaleIntercept", 0.0)
    if slope == 1.0 and intercept == 0.0:
        return array
    return np.asarray(array.astype(np.float64) * slope + intercept)


def _own_window(dataset: Dataset, groups: list[Dataset]) -> Window | None:
    source = _first(groups, "FrameVOILUTSequence", "WindowWidth") or dataset
    if not text(source, "WindowCenter") or not text(source, "WindowWidth"):
        return None
    window = Window(
        _decimal(source, "WindowCenter", 0.0),
        _decimal(source, "WindowWidth", 0.0),
        text(source, "VOILUTFunction") or "LINEAR",
    )
    # A width the function has no meaning for is a slip of the modality: the full range shows more than an error.
    return window if window.width > 0 and (window.function != "LINEAR" or window.width >= 1) else None


def _decimal(dataset: Dataset, keyword: str, default: float) -> float:
    value = text(dataset, keyword).split("\\")[0].strip()
    decimal = float(value) if value else default
    if not np.isfinite(decimal):
        raise ValueError(f"{keyword} is {value}")
    return decimal


def _table_maximum(dataset: Dataset) -> int:
    descriptor = dataset.VOILUTSequence[0].LUTDescriptor
    return (1 << int(descriptor[2])) - 1


def _limits(values: Frame, array: Frame, dataset: Dataset) -> tuple[float, float]:
    padding = text(dataset, "PixelPaddingValue")
    kept = values[array != int(float(padding))] if padding else values
    finite = kept[np.isfinite(kept)] if kept.dtype.kind == "f" else kept
    if not finite.size:
        return 0.0, 1.0
    return float(finite.min()), float(finite.max())


def _full_range(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    if high <= low:
        return np.full_like(values, 0.5)
    return np.asarray(np.nan_to_num((values - low) / (high - low)))


def _windowed(values: NDArray[np.float64], window: Window) -> NDArray[np.float64]:
    center, width = window.center, window.width
    if window.function not in _FUNCTIONS or width <= 0 or (window.function == "LINEAR" and width < 1):
        raise PermanentError("cannot-render", f"window {center}/{width} {window.function[:20]}")
    values = np.nan_to_num(values)
    if window.function == "SIGMOID":
        exponent = np.clip(-4.0 * (values - center) / width, -700.0, 700.0)
        return np.asarray(1.0 / (1.0 + np.exp(exponent)))
    if window.function == "LINEAR":
        if width == 1:
            return np.asarray((values > center - 0.5).astype(np.float64))
        return np.asarray((values - (center - 0.5)) / (width - 1.0) + 0.5)
    return np.asarray((values - center) / width + 0.5)

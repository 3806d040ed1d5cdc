"""One frame as an ordinary picture: the grey scale and colour transformations of the standard, size, JPEG or PNG.

Stored values → modality transformation → VOI → presentation; then overlays and the shutter, square pixels, and the
part and size that are asked for. Integer images go through one table of all values they can have, so a picture costs
little more memory than its pixels.

Source: PS3.3 C.11.1, C.11.2, C.7.5.1.1.2, C.7.6.3.1; PS3.4 N.2
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

from standards import transfer_syntaxes
from standards.errors import PermanentError
from standards.frames import number, read_frame
from standards.luts import Lut, lut_of, palette_of
from standards.overlays import has_overlays, hidden_by, is_overlay_data, overlay_mask, shutter_of, shutter_shade
from standards.part10 import Header, open_plain, read_header, text
from standards.pixels import Frame, decode_with_colour_space, lowered, stored_values
from standards.viewports import Viewport, fitted

_FORMATS: Final = {
    "image/jpeg": "JPEG",
    "image/png": "PNG",
    "image/gif": "GIF",
    "image/jp2": "JPEG2000",
    "image/webp": "WEBP",
}
_WITH_QUALITY: Final = ("image/jpeg", "image/webp")
MEDIA_TYPES: Final = tuple(_FORMATS)
_MOST_OVERLAY: Final = 64 << 20
_FUNCTIONS: Final = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
_SPACINGS: Final = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")

Picture = NDArray[np.uint8]
Grey = NDArray[np.float64]


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
    viewport: Viewport | tuple[int, int] | None = None,
    quality: int = 90,
    media_type: str = "image/jpeg",
    header: Header | None = None,
) -> bytes:
    """Frame ``frame`` (from 0) of a Part 10 file as a picture of 8 bits a sample; see :func:`render_stored`."""
    with open(path, "rb") as file:
        known = header or read_header(file)
        _check(known, media_type)
        with open_plain(file, known) as plain:
            return render_stored(
                read_frame(plain, known, frame),
                known,
                frame,
                plain=plain,
                window=window,
                viewport=viewport,
                quality=quality,
                media_type=media_type,
            )


def _check(header: Header, media_type: str) -> None:
    if media_type not in _FORMATS:
        raise PermanentError("cannot-render", f"{media_type} is not one of {', '.join(_FORMATS)}")
    if transfer_syntaxes.is_video(header.transfer_syntax):
        raise PermanentError("cannot-render", "the object is a video")


def render_stored(
    stored: bytes,
    header: Header,
    frame: int,
    *,
    plain: BinaryIO | None = None,
    window: Window | tuple[float, float] | None = None,
    viewport: Viewport | tuple[int, int] | None = None,
    quality: int = 90,
    media_type: str = "image/jpeg",
) -> bytes:
    """The bytes of one stored frame as a picture. From ``plain``, if given, come overlays too long for the header.

    ``window`` replaces the object's own; without either the full range of the frame is shown. The picture has square
    pixels; it is fitted into ``viewport``, its proportions kept (a mere width and height never enlarge it).

    Raises: PermanentError "cannot-render", "cannot-decode", "no-pixel-data", "no-such-frame", "frame-too-large",
        "invalid-image", and those of ``part10.read_header``.
    """
    _check(header, media_type)
    array, colour_space = decode_with_colour_space(stored, header)
    chosen = Window(*window) if isinstance(window, tuple) else window
    shown = picture_of(lowered(array, header), colour_space, header, frame, chosen, stored, plain)
    size = Viewport(*viewport, enlarge=False) if isinstance(viewport, tuple) else viewport
    picture = fitted(Image.fromarray(shown), _aspect(header.dataset, frame), size)
    output = io.BytesIO()
    options: dict[str, Any] = {"quality": max(1, min(100, quality))} if media_type in _WITH_QUALITY else {}
    picture.save(output, _FORMATS[media_type], **options)
    return output.getvalue()


def picture_of(
    array: Frame,
    colour_space: str,
    header: Header,
    frame: int,
    window: Window | None,
    stored: bytes,
    plain: BinaryIO | None,
) -> Picture:
    """A decoded frame as 8-bit grey (rows × columns) or RGB (rows × columns × 3), overlays and shutter applied.

    Raises: PermanentError("cannot-render").
    """
    dataset = header.dataset
    try:
        groups = _functional_groups(dataset, frame)
        if colour_space == "PALETTE COLOR":
            first, palette = palette_of(dataset, signed=array.dtype.kind == "i")
            shown = palette[np.clip(array.astype(np.int64) - first, 0, len(palette) - 1)]
        elif array.ndim == 3:
            shown = _rgb(array, colour_space, dataset)
        else:
            shown = _grey(array, colour_space, dataset, groups, window)
        return _covered(shown, header, frame, groups, stored, plain)
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, NotImplementedError, OverflowError) as error:
        # Tables and windows come from the file; a broken one must not take the server down.
        raise PermanentError("cannot-render", str(error)[:200]) from error


def _rgb(array: Frame, colour_space: str, dataset: Dataset) -> Picture:
    bits = number(dataset, "BitsStored", array.dtype.itemsize * 8)
    eight = np.asarray(np.right_shift(array, bits - 8) if bits > 8 else array, dtype=np.uint8)[..., :3]
    if not colour_space.startswith("YBR_FULL") and not colour_space.startswith("YBR_PARTIAL"):
        return np.ascontiguousarray(eight)
    luma = eight[..., 0].astype(np.float32)
    blue, red = (eight[..., plane].astype(np.float32) - 128 for plane in (1, 2))
    if colour_space.startswith("YBR_PARTIAL"):  # PS3.3 C.7.6.3.1.2: 16 to 235, and 16 to 240
        luma, blue, red = (luma - 16) * (255 / 219), blue * (255 / 224), red * (255 / 224)
    planes = (luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue)
    return np.stack([np.clip(np.rint(plane), 0, 255).astype(np.uint8) for plane in planes], axis=-1)


# Grey


def _grey(array: Frame, colour_space: str, dataset: Dataset, groups: list[Dataset], window: Window | None) -> Picture:
    padding = _padding(dataset, array)
    if array.dtype.kind not in "iu" or array.dtype.itemsize > 2:
        padded = _between(array, padding)
        return _shade(array, array, padded, colour_space, dataset, groups, window)
    low, high = int(array.min()), int(array.max())
    domain = np.arange(low, high + 1, dtype=np.int64)
    padded = _between(domain, padding)
    present = domain
    if window is None and _own_window(dataset, groups) is None:  # the range shown is of values that really occur
        present = np.unique(array).astype(np.int64)
    table = _shade(domain, present, padded, colour_space, dataset, groups, window)
    return table[array.astype(np.int32) - low]


def _padding(dataset: Dataset, array: Frame) -> tuple[float, float] | None:
    """The range of stored values that are no image. Source: PS3.3 C.7.5.1.1.2"""
    if array.dtype.kind == "f":
        kind = "FloatPixelPadding" if array.dtype.itemsize == 4 else "DoubleFloatPixelPadding"
        first = text(dataset, f"{kind}Value")
        limits = sorted(float(part) for part in (first, text(dataset, f"{kind}RangeLimit") or first) if part)
        return (limits[0], limits[-1]) if limits else None
    value = text(dataset, "PixelPaddingValue")
    if not value or array.dtype.kind not in "iu":
        return None
    limit = text(dataset, "PixelPaddingRangeLimit") or value
    found = sorted(_as_stored(int(float(part.split("\\")[0])), dataset, array) for part in (value, limit))
    return found[0], found[1]


def _as_stored(value: int, dataset: Dataset, array: Frame) -> int:
    """A value whose VR may be wrong, in the sign of the pixels."""
    bits = array.dtype.itemsize * 8
    value &= (1 << bits) - 1
    return value - (1 << bits) if array.dtype.kind == "i" and value >> (bits - 1) else value


def _between(values: Frame, padding: tuple[float, float] | None) -> NDArray[np.bool_] | None:
    if padding is None:
        return None
    return np.asarray((values >= padding[0]) & (values <= padding[1]), dtype=np.bool_)


def _shade(
    values: Frame,
    present: Frame,
    padded: NDArray[np.bool_] | None,
    colour_space: str,
    dataset: Dataset,
    groups: list[Dataset],
    window: Window | None,
) -> Picture:
    """``values`` as shades of 8 bits; ``present`` are those whose range is shown where there is no window."""
    real = _modality(values, dataset, groups)
    chosen = window or _own_window(dataset, groups)
    if chosen is None and dataset.get("VOILUTSequence") and values.dtype.kind in "iu":
        entries = real if real.dtype.kind in "iu" else np.rint(real).astype(np.int64)
        lut = lut_of(dataset.VOILUTSequence[0], signed=bool(real.size) and int(entries.min()) < 0)
        shown: Grey = lut.look_up(entries) / float((1 << lut.bits) - 1)
    elif chosen is None:
        is_byte = real is values and _is_plain_byte(dataset)
        limits = (0.0, 255.0) if is_byte else _limits(_modality(present, dataset, groups), present, dataset)
        shown = _full_range(real, limits)
    else:
        shown = _windowed(real.astype(np.float64), chosen)
    if _is_inverse(colour_space, dataset):
        shown = 1.0 - shown
    shades = np.asarray(np.rint(np.clip(shown, 0.0, 1.0) * 255.0), dtype=np.uint8)
    if padded is not None:
        shades[padded] = 0
    return shades


def _is_plain_byte(dataset: Dataset) -> bool:
    """Whether values are shades already: unsigned, of 8 bits, and no numbers of segments."""
    said = (text(dataset, "BitsStored"), text(dataset, "PixelRepresentation") or "0")
    return said == ("8", "0") and not dataset.get("SegmentSequence")


def _is_inverse(colour_space: str, dataset: Dataset) -> bool:
    """Whether the lowest value is white: the presentation's shape says so, else the photometric interpretation."""
    shape = text(dataset, "PresentationLUTShape")
    return shape == "INVERSE" if shape in ("INVERSE", "IDENTITY") else colour_space == "MONOCHROME1"


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
        table: Lut = lut_of(dataset.ModalityLUTSequence[0], signed=text(dataset, "PixelRepresentation") == "1")
        return table.look_up(array)
    slope = _decimal(source, "RescaleSlope", 1.0) or 1.0
    intercept = _decimal(source, "RescaleIntercept", 0.0)
    if slope == 1.0 and intercept == 0.0:
        return array
    if slope == 1.0 and intercept.is_integer() and array.dtype.kind in "iu":
        return np.asarray(array.astype(np.int64) + int(intercept))
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


def _limits(real: Frame, stored: Frame, dataset: Dataset) -> tuple[float, float]:
    padded = _between(stored, _padding(dataset, stored))
    kept = real if padded is None else real[~padded]
    finite = kept[np.isfinite(kept)] if kept.dtype.kind == "f" else kept
    if not finite.size:
        return 0.0, 1.0
    return float(finite.min()), float(finite.max())


def _full_range(values: Frame, limits: tuple[float, float]) -> Grey:
    low, high = limits
    if high <= low:
        return np.full(values.shape, 0.5)
    return np.asarray(np.nan_to_num((values.astype(np.float64) - low) / (high - low)))


def _windowed(values: Grey, window: Window) -> Grey:
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


# Over the picture, and its size


def _covered(
    shown: Picture, header: Header, frame: int, groups: list[Dataset], stored: bytes, plain: BinaryIO | None
) -> Picture:
    dataset, shape = header.dataset, (shown.shape[0], shown.shape[1])
    if not shown.flags.writeable:  # native colours are the bytes of the file
        shown = shown.copy()
    if has_overlays(dataset):
        drawn = overlay_mask(dataset, frame, shape, stored_values(stored, header), _long_overlays(header, plain))
        if drawn is not None:
            shown[drawn] = 255
    shutter = shutter_of(dataset, groups)
    if shutter is not None:
        hidden = hidden_by(shutter, shape, _aspect(dataset, frame))
        if hidden is not None:
            shown[hidden] = shutter_shade(shutter)
    return shown


def _long_overlays(header: Header, plain: BinaryIO | None) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for tag, offset, length in header.omitted if plain is not None else ():
        if plain is not None and is_overlay_data(tag) and length <= _MOST_OVERLAY:
            plain.seek(offset)
            found[tag] = plain.read(length)
    return found


def _aspect(dataset: Dataset, frame: int) -> float:
    """The height of a pixel by its width; 1 where it is not said, or cannot be meant."""
    measures = _first(_functional_groups(dataset, frame), "PixelMeasuresSequence", "PixelSpacing")
    values = text(measures, "PixelSpacing") if measures is not None else ""
    values = values or next((value for name in _SPACINGS if (value := text(dataset, name))), "")
    values = values or text(dataset, "PixelAspectRatio")
    try:
        height, width = (float(part) for part in values.split("\\"))
        aspect = height / width
    except (ValueError, ZeroDivisionError):
        return 1.0
    return aspect if 0.1 <= aspect <= 10 else 1.0

"""Frames for the disc viewer: grey or colour values, losslessly packed so that a browser unpacks them without codecs.

A packed frame is base64 of a zlib stream of prediction errors. The prediction is the median edge detector that JPEG-LS
uses, which brings deflate within a quarter of JPEG-LS on CT and needs ten lines in the browser instead of a WebAssembly
codec. Errors of 16-bit values are zigzag-coded and split in a low and a high byte plane.
"""

import base64
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.pixels.utils import iter_pixels

from standards.errors import PermanentError

Pixels = NDArray[Any]


@dataclass(frozen=True)
class Frame:
    """One frame to show. ``values`` is (rows, columns) of u1, u2 or i2, or (rows, columns, 3) of u1 in RGB."""

    values: Pixels
    info: dict[str, Any]


def frames_of(dataset: Dataset) -> Iterator[Frame]:
    """Every frame of an image, decoded one at a time. ``dataset`` carries its file meta.

    Raises: PermanentError("undecodable-pixels").
    """
    try:
        arrays = _decoded(dataset)
        for number, values in enumerate(arrays):
            yield _frame(dataset, np.asarray(values), number)
    except Exception as error:  # decoders and damaged attributes raise whatever they like
        raise PermanentError("undecodable-pixels", f"{type(error).__name__}: {error}"[:300]) from error


def pack(values: Pixels) -> str:
    """Pack a frame's values, see the module; ``unpack`` in the viewer's VIEWER.JS is its inverse."""
    if values.ndim == 3:
        stream = b"".join(_residuals(values[..., channel]).tobytes() for channel in range(values.shape[2]))
    elif values.dtype.itemsize == 1:
        stream = _residuals(values).tobytes()
    else:
        # Signed values are shifted, not wrapped, so that -1 and 0 stay neighbours for the predictor.
        words = values.view(np.uint16) ^ np.uint16(0x8000) if values.dtype.kind == "i" else values
        errors = _residuals(words).astype(np.uint16)
        zigzag = ((errors << 1) ^ np.where(errors >> 15, np.uint16(0xFFFF), np.uint16(0))).astype("<u2")
        planes = np.ascontiguousarray(zigzag).view(np.uint8).reshape(-1, 2)
        stream = planes[:, 0].tobytes() + planes[:, 1].tobytes()
    return base64.b64encode(zlib.compress(stream, 6)).decode("ascii")


def thumbnail(frame: Frame, size: int = 112) -> str:
    """A small JPEG of the frame at its own window, as a data URI."""
    values = frame.values
    if values.ndim == 2:
        info = frame.info
        centre, width = info["window"]
        real = values.astype(np.float32) * info["slope"] + info["intercept"]
        grey = np.clip((real - (centre - width / 2)) / max(width, 1e-6) * 255, 0, 255).astype(np.uint8)
        values = 255 - grey if info.get("inverted") else grey
    image = Image.fromarray(np.ascontiguousarray(values))
    image.thumbnail((size, size))
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _decoded(dataset: Dataset) -> Iterator[Pixels]:
    if "PixelData" in dataset:
        yield from iter_pixels(dataset)  # YBR comes out as RGB
    else:
        whole = dataset.pixel_array
        yield from whole if whole.ndim == 3 else [whole]


def _frame(dataset: Dataset, values: Pixels, number: int) -> Frame:
    info = _geometry(dataset, values, number)
    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if photometric == "PALETTE COLOR" and values.ndim == 2:
        colour = apply_color_lut(values, dataset)
        return Frame((colour >> 8 if colour.dtype.itemsize == 2 else colour).astype(np.uint8)[..., :3], info)
    if values.ndim == 3:
        if values.dtype.itemsize == 2:
            values = values >> max(int(dataset.BitsStored) - 8, 0)
        return Frame(values.astype(np.uint8), info)
    return _grey(dataset, values, number, info, inverted=photometric == "MONOCHROME1")


def _grey(dataset: Dataset, values: Pixels, number: int, info: dict[str, Any], *, inverted: bool) -> Frame:
    slope, intercept = 1.0, 0.0
    if values.dtype.kind == "u" and 8 < int(dataset.get("BitsStored", 16)) < 16:
        values = values & ((1 << int(dataset.BitsStored)) - 1)  # unused high bits may hold overlays
    if dataset.get("ModalityLUTSequence"):
        values = np.asarray(apply_modality_lut(values, dataset))
    else:
        slope = float(_attribute(dataset, number, "PixelValueTransformationSequence", "RescaleSlope") or 1)
        intercept = float(_attribute(dataset, number, "PixelValueTransformationSequence", "RescaleIntercept") or 0)
    if values.dtype.kind == "f" or values.dtype.itemsize > 2:
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        step = (high - low) / 65535 or 1.0
        # Values wider than 16 bits are shown at 16-bit resolution; the file on the disc keeps its own.
        values = np.nan_to_num((values - low) / step).round().astype(np.uint16)
        slope, intercept = slope * step, low * slope + intercept
    elif values.dtype.itemsize == 1:
        values = values.astype(np.uint8) if values.dtype.kind != "i" else values.astype(np.int16)
    values = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<")))
    info |= {"slope": slope, "intercept": intercept, "inverted": inverted, "signed": values.dtype.kind == "i"}
    info["window"] = _window(dataset, values, number, slope, intercept)
    return Frame(values, info)


def _window(dataset: Dataset, values: Pixels, number: int, slope: float, intercept: float) -> tuple[float, float]:
    centre = _first(_attribute(dataset, number, "FrameVOILUTSequence", "WindowCenter"))
    width = _first(_attribute(dataset, number, "FrameVOILUTSequence", "WindowWidth"))
    if centre is not None and width is not None and width > 0:
        return centre, width
    low, high = (float(v) * slope + intercept for v in np.percentile(values, (0.5, 99.5)))
    if high <= low:
        low, high = (float(v) * slope + intercept for v in (values.min(), values.max()))
    return (low + high) / 2, max(high - low, 1.0)


def _geometry(dataset: Dataset, values: Pixels, number: int) -> dict[str, Any]:
    spacing = _attribute(dataset, number, "PixelMeasuresSequence", "PixelSpacing")
    spacing = spacing or dataset.get("ImagerPixelSpacing") or dataset.get("NominalScannedPixelSpacing")
    thickness = _attribute(dataset, number, "PixelMeasuresSequence", "SliceThickness")
    position = _attribute(dataset, number, "PlanePositionSequence", "ImagePositionPatient")
    orientation = _attribute(dataset, number, "PlaneOrientationSequence", "ImageOrientationPatient")
    info: dict[str, Any] = {"rows": int(values.shape[0]), "columns": int(values.shape[1])}
    info["channels"] = 3 if str(dataset.get("PhotometricInterpretation")) == "PALETTE COLOR" else values.ndim * 2 - 3
    if spacing and len(spacing) == 2 and all(float(v) > 0 for v in spacing):
        info["spacing"] = [float(v) for v in spacing]
    elif dataset.get("SequenceOfUltrasoundRegions"):
        region = dataset.SequenceOfUltrasoundRegions[0]
        if region.get("PhysicalUnitsXDirection") == 3 and region.get("PhysicalDeltaX") and region.get("PhysicalDeltaY"):
            # Centimetres to millimetres. Only exact inside the region, where the image is.
            info["spacing"] = [abs(float(region.PhysicalDeltaY)) * 10, abs(float(region.PhysicalDeltaX)) * 10]
    if thickness:
        info["thickness"] = float(thickness)
    if position and len(position) == 3:
        info["position"] = [round(float(v), 2) for v in position]
    if orientation and len(orientation) == 6:
        info["orientation"] = [round(float(v), 4) for v in orientation]
    return info


def _attribute(dataset: Dataset, number: int, macro: str, keyword: str) -> Any:
    """An attribute of a frame: from its functional group, the shared one, or the data set itself."""
    groups = []
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence")
    if per_frame and number < len(per_frame):
        groups.append(per_frame[number])
    groups.extend(dataset.get("SharedFunctionalGroupsSequence") or ())
    for group in groups:
        for item in group.get(macro) or ():
            if item.get(keyword) is not None:
                return item.get(keyword)
    return dataset.get(keyword)


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value if not hasattr(value, "__iter__") or isinstance(value, str) else next(iter(value)))


def _residuals(values: Pixels) -> Pixels:
    """Errors of the median edge predictor, modulo the width of the values; the border counts as zero."""
    west, north, corner = np.zeros_like(values), np.zeros_like(values), np.zeros_like(values)
    west[:, 1:], north[1:], corner[1:, 1:] = values[:, :-1], values[:-1], values[:-1, :-1]
    high, low = np.maximum(west, north), np.minimum(west, north)
    predicted = np.where(corner >= high, low, np.where(corner <= low, high, west + north - corner))
    return np.asarray(values - predicted.astype(values.dtype))

"""What lies over an image: overlay planes, and the shutter that hides what is outside the beam.

Source: PS3.3 C.9.2, C.7.6.11, C.7.6.15
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset

from standards.part10 import text

Mask = NDArray[np.bool_]

_GROUPS: Final = range(0x6000, 0x6020, 2)
_MOST_SIDE: Final = 1 << 16


@dataclass(frozen=True)
class _Plane:
    """The geometry of an overlay plane: its size, and where its first pixel lies in the image, from 1."""

    rows: int
    columns: int
    top: int
    left: int
    frames: int
    first_frame: int


def has_overlays(dataset: Dataset) -> bool:
    """Whether the object has any overlay plane."""
    return any((group << 16 | 0x0010) in dataset for group in _GROUPS)


def overlay_mask(
    dataset: Dataset, frame: int, shape: tuple[int, int], stored: NDArray[Any] | None, long: Mapping[int, bytes]
) -> Mask | None:
    """The pixels of frame ``frame`` (from 0) that overlays draw, or None without any.

    ``stored`` are the pixels with their unused bits, where old overlays are kept; ``long`` the values by tag that were
    too long to stay in ``dataset``. A graphic is drawn as it is, of a
    region of interest only the outline, as what is inside must stay visible.
    """
    drawn: Mask | None = None
    for group in _GROUPS:
        plane = _plane(dataset, group, shape)
        if plane is None:
            continue
        bits = _bits(dataset, group, plane, frame, stored, long)
        if bits is None:
            continue
        if str(_value(dataset, group, 0x0040)).strip() == "R":
            bits = _outline(bits)
        placed = _placed(bits, plane, shape)
        drawn = placed if drawn is None else drawn | placed
    return drawn


def _number(dataset: Dataset, group: int, number: int, default: int) -> int:
    value = _value(dataset, group, number)
    return int(value) if isinstance(value, int | float | str) and str(value).strip() else default


def _value(dataset: Dataset, group: int, number: int) -> Any:
    tag = group << 16 | number
    return dataset[tag].value if tag in dataset else None


def _plane(dataset: Dataset, group: int, shape: tuple[int, int]) -> _Plane | None:
    rows, columns = _number(dataset, group, 0x0010, 0), _number(dataset, group, 0x0011, 0)
    if not (0 < rows <= _MOST_SIDE and 0 < columns <= _MOST_SIDE):
        return None
    origin = _value(dataset, group, 0x0050)
    top, left = (int(part) for part in origin) if origin is not None and len(origin) == 2 else (1, 1)
    return _Plane(rows, columns, top, left, _number(dataset, group, 0x0015, 1), _number(dataset, group, 0x0051, 1))


def is_overlay_data(tag: int) -> bool:
    """Whether this is the tag of the bits of an overlay plane."""
    return tag & 0xFFFF == 0x3000 and tag >> 16 in _GROUPS


def _bits(
    dataset: Dataset,
    group: int,
    plane: _Plane,
    frame: int,
    stored: NDArray[Any] | None,
    long: Mapping[int, bytes],
) -> Mask | None:
    data = long.get(group << 16 | 0x3000) or _value(dataset, group, 0x3000)
    if isinstance(data, bytes) and data:
        index = frame - (plane.first_frame - 1)
        if plane.frames == 1 and plane.first_frame == 1:
            index = 0  # one plane for all frames
        if not 0 <= index < max(1, plane.frames):
            return None
        count = plane.rows * plane.columns
        order = dataset.original_encoding[1]
        if order is False and len(data) % 2 == 0:  # written in words
            data = np.frombuffer(data, ">u2").astype("<u2").tobytes()
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[index * count : (index + 1) * count]
        if len(bits) < count:
            return None
        return np.asarray(bits.reshape(plane.rows, plane.columns), dtype=np.bool_)
    position = _number(dataset, group, 0x0102, 0)
    if stored is None or stored.ndim != 2 or stored.dtype.kind not in "iu" or not 0 < position < 32:
        return None
    return np.asarray((stored >> position) & 1, dtype=np.bool_)[: plane.rows, : plane.columns]


def _outline(bits: Mask) -> Mask:
    inner = bits.copy()
    inner[1:, :] &= bits[:-1, :]
    inner[:-1, :] &= bits[1:, :]
    inner[:, 1:] &= bits[:, :-1]
    inner[:, :-1] &= bits[:, 1:]
    return bits & ~inner


def _placed(bits: Mask, plane: _Plane, shape: tuple[int, int]) -> Mask:
    """The plane at its place in the image; what lies outside of the image is cut off."""
    placed = np.zeros(shape, np.bool_)
    top, left = plane.top - 1, plane.left - 1
    first_row, first_column = max(0, -top), max(0, -left)
    rows = min(bits.shape[0], shape[0] - top) - first_row
    columns = min(bits.shape[1], shape[1] - left) - first_column
    if rows > 0 and columns > 0:
        row, column = top + first_row, left + first_column
        part = bits[first_row : first_row + rows, first_column : first_column + columns]
        placed[row : row + rows, column : column + columns] = part
    return placed


# Shutters


def shutter_of(dataset: Dataset, groups: list[Dataset]) -> Dataset | None:
    """The data set or frame item that describes a display shutter, if there is one."""
    for group in groups:
        items = group.get("FrameDisplayShutterSequence")
        if items:
            item: Dataset = items[0]
            return item
    return dataset if text(dataset, "ShutterShape") else None


def hidden_by(shutter: Dataset, shape: tuple[int, int], row_to_column_spacing: float) -> Mask | None:
    """The pixels outside of the shutter's opening; several shapes leave what is open in all of them.

    ``row_to_column_spacing`` is the height of a pixel by its width: radii are counted along rows.
    """
    hidden: Mask | None = None
    for name in text(shutter, "ShutterShape").split("\\"):
        part: Mask | None = None
        if name.strip() == "RECTANGULAR":
            part = _outside_rectangle(shutter, shape)
        elif name.strip() == "CIRCULAR":
            part = _outside_circle(shutter, shape, row_to_column_spacing)
        elif name.strip() == "POLYGONAL":
            part = _outside_polygon(shutter, shape)
        if part is not None:
            hidden = part if hidden is None else hidden | part
    return hidden


def shutter_shade(shutter: Dataset) -> int:
    """How bright the hidden pixels are shown, 0 to 255: black unless the object says otherwise."""
    value = text(shutter, "ShutterPresentationValue")
    return min(255, max(0, int(float(value)) >> 8)) if value else 0


def _integers(dataset: Dataset, keyword: str) -> list[int]:
    value = text(dataset, keyword)
    return [int(float(part)) for part in value.split("\\")] if value else []


def _outside_rectangle(shutter: Dataset, shape: tuple[int, int]) -> Mask | None:
    edges = [
        _integers(shutter, f"Shutter{edge}Edge")
        for edge in ("UpperHorizontal", "LowerHorizontal", "LeftVertical", "RightVertical")
    ]
    if not all(edges):
        return None
    top, bottom, left, right = (edge[0] for edge in edges)
    hidden = np.ones(shape, np.bool_)
    hidden[max(0, top - 1) : max(0, bottom), max(0, left - 1) : max(0, right)] = False
    return hidden


def _outside_circle(shutter: Dataset, shape: tuple[int, int], row_to_column_spacing: float) -> Mask | None:
    center, radius = _integers(shutter, "CenterOfCircularShutter"), _integers(shutter, "RadiusOfCircularShutter")
    if len(center) != 2 or not radius:
        return None
    rows = (np.arange(1, shape[0] + 1, dtype=np.float32)[:, None] - center[0]) * np.float32(row_to_column_spacing)
    columns = np.arange(1, shape[1] + 1, dtype=np.float32)[None, :] - center[1]
    return np.asarray(rows**2 + columns**2 > radius[0] ** 2, dtype=np.bool_)


def _outside_polygon(shutter: Dataset, shape: tuple[int, int]) -> Mask | None:
    vertices = _integers(shutter, "VerticesOfThePolygonalShutter")
    if len(vertices) < 6 or len(vertices) % 2:
        return None
    opening = Image.new("1", (shape[1], shape[0]), 0)
    points = [(column - 1, row - 1) for row, column in zip(vertices[::2], vertices[1::2], strict=True)]
    ImageDraw.Draw(opening).polygon(points, fill=1, outline=1)
    return ~np.asarray(opening, dtype=np.bool_)

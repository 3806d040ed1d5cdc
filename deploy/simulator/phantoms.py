"""Pixels of made-up examinations: drawn, of nobody, and different enough that a person can tell them apart."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Ellipse = tuple[float, float, float, float, float, float]
"""Value added, centre x and y, half axes a and b (all in units of half the picture), rotation in degrees."""


def _grid(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    return x, y


def _paint(size: int, ellipses: list[Ellipse], ground: float) -> NDArray[np.float32]:
    x, y = _grid(size)
    picture = np.full((size, size), ground, dtype=np.float32)
    for value, cx, cy, a, b, degrees in ellipses:
        if a <= 0 or b <= 0:
            continue
        angle = np.deg2rad(degrees)
        u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
        picture[(u / a) ** 2 + (v / b) ** 2 <= 1] += value
    return picture


def _blurred(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """A 3×3 box blur: edges of a real detector are not steps."""
    padded = np.pad(picture, 1, mode="edge")
    rows, columns = picture.shape
    total = sum(padded[dy : dy + rows, dx : dx + columns] for dy in range(3) for dx in range(3))
    return np.asarray(total / 9, dtype=np.float32)


def head_ct(count: int, size: int = 512, seed: int = 1) -> Iterator[NDArray[np.int16]]:
    """``count`` axial slices of a head phantom in Hounsfield units, shape (size, size)."""
    noise = np.random.default_rng(seed)
    for index in range(count):
        z = 2 * index / max(1, count - 1) - 1
        reach = float(np.sqrt(max(0.05, 1 - (z * 0.85) ** 2)))
        ventricle = max(0.0, 1 - abs(z) * 1.8)
        lesion = max(0.0, 1 - abs(z - 0.25) * 5)
        ellipses: list[Ellipse] = [
            (1050, 0, 0, 0.70 * reach, 0.86 * reach, 0),
            (700, 0, 0, 0.66 * reach, 0.82 * reach, 0),
            (-715, 0, 0, 0.60 * reach, 0.76 * reach, 0),
            (-24, 0.13, -0.05, 0.09 * ventricle, 0.30 * ventricle, -14),
            (-24, -0.13, -0.05, 0.09 * ventricle, 0.30 * ventricle, 14),
            (32, 0.30, 0.25, 0.12 * lesion, 0.10 * lesion, 20),
            (10, 0, 0.38 * reach, 0.16 * reach, 0.10 * reach, 0),
        ]
        picture = _blurred(_paint(size, ellipses, -1000))
        yield (picture + noise.normal(0, 9, picture.shape)).clip(-1024, 3071).astype(np.int16)


def knee_mr(count: int, size: int = 320, seed: int = 2) -> Iterator[NDArray[np.int16]]:
    """``count`` sagittal slices of a joint phantom, arbitrary units 0–1200."""
    noise = np.random.default_rng(seed)
    for index in range(count):
        z = 2 * index / max(1, count - 1) - 1
        reach = float(np.sqrt(max(0.1, 1 - (z * 0.8) ** 2)))
        ellipses: list[Ellipse] = [
            (260, 0, 0, 0.55 * reach, 0.98, 0),
            (520, -0.02, -0.62, 0.27 * reach, 0.52, 6),
            (480, 0.03, 0.66, 0.25 * reach, 0.52, -4),
            (-330, 0, 0.02, 0.30 * reach, 0.05, 3),
            (380, 0.40 * reach, -0.14, 0.10 * reach, 0.17, -8),
            (300, -0.18, 0.06, 0.06 * reach, 0.05, 40),
        ]
        picture = _blurred(_paint(size, ellipses, 12))
        yield (picture * (1 + 0.1 * z) + noise.normal(0, 14, picture.shape)).clip(0, 1200).astype(np.int16)


def chest_dx(size: int = 1400, seed: int = 3) -> NDArray[np.uint16]:
    """One frontal chest phantom, 12 bits, MONOCHROME2 (bright is dense)."""
    ellipses: list[Ellipse] = [
        (1500, 0, 0.05, 0.82, 0.95, 0),
        (-1000, -0.36, -0.02, 0.27, 0.60, 6),
        (-1000, 0.36, -0.02, 0.27, 0.60, -6),
        (900, 0.10, 0.28, 0.27, 0.30, 30),
        (700, 0, 0, 0.09, 0.95, 0),
        (900, 0, 0.92, 0.78, 0.33, 0),
    ]
    for rib in range(7):
        for side in (-1.0, 1.0):
            ellipses.append((170, side * 0.36, -0.45 + rib * 0.15, 0.30, 0.022, side * (14 + rib)))
    picture = _blurred(_paint(size, ellipses, 250))
    picture += np.random.default_rng(seed).normal(0, 22, picture.shape).astype(np.float32)
    return picture.clip(0, 4095).astype(np.uint16)


def breast_mg(*, mirrored: bool, rows: int = 1600, columns: int = 1200, seed: int = 6) -> NDArray[np.uint16]:
    """One mammogram phantom, 12 bits, chest wall at the left edge (``mirrored``: at the right)."""
    noise = np.random.default_rng(seed)
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    depth = 1 - (x / (0.75 * columns)) ** 2 - ((y - rows / 2) / (0.42 * rows)) ** 2
    picture = np.where(depth > 0, 700 + 1500 * np.sqrt(depth.clip(0)), 60)
    coarse = noise.normal(0, 1, (rows // 40 + 1, columns // 40 + 1)).astype(np.float32)
    smooth = Image.fromarray(coarse).resize((columns, rows), Image.Resampling.BICUBIC)
    texture = np.asarray(smooth, dtype=np.float32)
    picture += np.where(depth > 0.04, 230 * texture * depth.clip(0, 1), 0)
    picture += 900 * np.exp(-(((x - 0.32 * columns) / 55) ** 2 + ((y - 0.42 * rows) / 48) ** 2))
    picture += noise.normal(0, 20, picture.shape)
    finished = picture.clip(0, 4095).astype(np.uint16)
    return np.ascontiguousarray(finished[:, ::-1]) if mirrored else finished


def heart_us(frames: int, rows: int = 360, columns: int = 480, seed: int = 4) -> NDArray[np.uint8]:
    """A beating fan-shaped cine in RGB, shape (frames, rows, columns, 3)."""
    noise = np.random.default_rng(seed)
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    dx, dy = (x - columns / 2) / columns, y / rows
    radius, angle = np.hypot(dx * 1.3, dy), np.arctan2(dx * 1.3, dy + 1e-6)
    fan = (radius < 0.97) & (radius > 0.06) & (np.abs(angle) < 0.72)
    speckle = noise.gamma(2.0, 26.0, (rows, columns)).astype(np.float32)
    cine = np.zeros((frames, rows, columns, 3), dtype=np.uint8)
    for index in range(frames):
        beat = 0.5 + 0.5 * np.cos(2 * np.pi * index / frames)
        chamber = ((dx - 0.02) / (0.12 + 0.04 * beat)) ** 2 + ((dy - 0.5) / (0.2 + 0.05 * beat)) ** 2
        wall = np.exp(-((chamber - 1.25) ** 2) * 9)
        grey = np.where(fan, speckle * np.where(chamber < 1, 0.18, 1.0) + 90 * wall, 0).clip(0, 255)
        cine[index] = grey[..., None].astype(np.uint8)
        jet = fan & (chamber < 0.5) & (np.abs(dx - 0.02) < 0.035)
        cine[index][jet] = (220, 60, 30) if beat > 0.5 else (40, 90, 230)
    return cine

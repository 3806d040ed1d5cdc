"""Frames into lossless codestreams: JPEG-LS, HTJ2K, JPEG XL. What comes out is for the caller to decode and compare.

Source: PS3.5 8.2.3, 8.2.4, 8.2.15
"""

from typing import Any, Final

import imagecodecs
import jpeg_ls
import numpy as np
from numpy.typing import NDArray

from standards import transfer_syntaxes
from standards.errors import PermanentError
from standards.frames import FrameLayout

Frame = NDArray[Any]

ENCODINGS: Final = {
    "jpeg-ls": transfer_syntaxes.JPEG_LS_LOSSLESS,
    "htj2k": transfer_syntaxes.HTJ2K_LOSSLESS,
    "jpeg-xl": transfer_syntaxes.JPEG_XL_LOSSLESS,
}
_JXL_EFFORT: Final = 3
_PHOTOMETRIC: Final = frozenset({"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL"})


def unsuitable(shape: FrameLayout, transfer_syntax: str) -> str:
    """Why images of this shape are not put into ``transfer_syntax``, "" when they may be."""
    if shape.bits_allocated not in (8, 16):
        return f"{shape.bits_allocated} bits allocated"
    if shape.samples not in (1, 3):
        return f"{shape.samples} samples a pixel"
    if shape.photometric_interpretation not in _PHOTOMETRIC:
        return f"photometric interpretation {shape.photometric_interpretation[:16]!r}"
    if shape.bits_allocated == 16 and shape.bits_stored <= 8:
        return f"{shape.bits_stored} bits stored in 16"
    if shape.rows > 0xFFFF or shape.columns > 0xFFFF:
        return f"{shape.rows} × {shape.columns} pixels"
    if transfer_syntax == transfer_syntaxes.JPEG_XL_LOSSLESS:
        if shape.is_signed:
            return "JPEG XL has no signed samples"
        if shape.photometric_interpretation == "PALETTE COLOR":
            return "a palette in JPEG XL"
    return ""


def encode(frame: Frame, shape: FrameLayout, transfer_syntax: str) -> bytes:
    """One frame, as ``pixels.decode_frame`` gives it, as a codestream.

    Raises: PermanentError("cannot-encode").
    """
    if reason := unsuitable(shape, transfer_syntax):
        raise PermanentError("cannot-encode", reason)
    try:
        if transfer_syntax == transfer_syntaxes.JPEG_LS_LOSSLESS:
            return _jpeg_ls(frame, shape)
        if transfer_syntax == transfer_syntaxes.HTJ2K_LOSSLESS:
            return bytes(imagecodecs.htj2k_encode(np.ascontiguousarray(frame), reversible=True, rgb=False))
        return bytes(
            imagecodecs.jpegxl_encode(
                _unsigned(frame, shape),
                lossless=True,
                effort=_JXL_EFFORT,
                bitspersample=shape.bits_stored,
                usecontainer=False,
                numthreads=1,
            )
        )
    except (RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise PermanentError("cannot-encode", f"{type(error).__name__}: {error}"[:200]) from error


def _unsigned(frame: Frame, shape: FrameLayout) -> Frame:
    """The bits of the samples as they are stored: two's complement of Bits Stored bits for signed ones."""
    unsigned = np.ascontiguousarray(frame).view(f"<u{frame.dtype.itemsize}")
    stored: Frame = unsigned & ((1 << shape.bits_stored) - 1) if shape.is_signed else unsigned
    return np.ascontiguousarray(stored)


def _jpeg_ls(frame: Frame, shape: FrameLayout) -> bytes:
    return bytes(
        jpeg_ls.encode_pixel_data(
            _unsigned(frame, shape).tobytes(),
            rows=shape.rows,
            columns=shape.columns,
            samples_per_pixel=shape.samples,
            bits_stored=shape.bits_stored,
            planar_configuration=0,
        )
    )

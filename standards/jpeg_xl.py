"""Decoding JPEG XL.

Source: PS3.5 8.2.15
"""

from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from standards.errors import PermanentError
from standards.frames import FrameLayout

Frame = NDArray[Any]


def decode(stored: bytes, shape: FrameLayout) -> Frame:
    """A JPEG XL codestream as an array of rows × columns (× samples), little-endian, colours as they are stored.

    Raises: PermanentError("cannot-decode").
    """
    try:
        values: Frame = imagecodecs.jpegxl_decode(stored, numthreads=1)
    except (RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise PermanentError("cannot-decode", f"{type(error).__name__}: {error}"[:200]) from error
    wanted = (shape.rows, shape.columns) if shape.samples == 1 else (shape.rows, shape.columns, shape.samples)
    if values.shape != wanted or values.dtype.itemsize * 8 != shape.bits_allocated:
        raise PermanentError("cannot-decode", f"{values.shape} samples of {values.dtype} where {wanted} are said")
    return np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"), copy=False))

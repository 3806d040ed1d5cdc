"""12-bit and progressive JPEG, which pydicom's decoders refuse and GDCM can decode."""

from typing import Any, Final

import gdcm  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from standards import transfer_syntaxes
from standards.errors import PermanentError
from standards.frames import FrameLayout

SPECTRAL_SELECTION: Final = "1.2.840.10008.1.2.4.53"
FULL_PROGRESSION: Final = "1.2.840.10008.1.2.4.55"


def is_ours(transfer_syntax: str, shape: FrameLayout) -> bool:
    """Whether a frame of this kind is decoded here."""
    if shape.samples != 1 or shape.bits_allocated not in (8, 16):
        return False
    if transfer_syntax == transfer_syntaxes.JPEG_EXTENDED:
        return shape.bits_stored > 8
    return transfer_syntax in (SPECTRAL_SELECTION, FULL_PROGRESSION)


def decode(stored: bytes, shape: FrameLayout, transfer_syntax: str) -> NDArray[Any]:
    """A grey frame as rows × columns, little-endian.

    Raises: PermanentError("cannot-decode").
    """
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(stored)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((shape.columns, shape.rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(shape.photometric_interpretation)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(transfer_syntax)))
    stored_bits = shape.bits_stored
    image.SetPixelFormat(
        gdcm.PixelFormat(shape.samples, shape.bits_allocated, stored_bits, stored_bits - 1, int(shape.is_signed))
    )
    # The binding gives bytes as text with surrogates.
    buffer = image.GetBuffer()
    raw = buffer.encode("utf-8", "surrogateescape") if buffer is not None else b""
    wanted = shape.rows * shape.columns * shape.bits_allocated // 8
    if len(raw) != wanted:
        raise PermanentError("cannot-decode", f"GDCM gave {len(raw)} bytes of {wanted}")
    dtype = f"<{'i' if shape.is_signed else 'u'}{shape.bits_allocated // 8}"
    return np.frombuffer(raw, dtype).reshape(shape.rows, shape.columns)

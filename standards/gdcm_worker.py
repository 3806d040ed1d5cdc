"""The process in which GDCM decodes JPEG: it ends the process on some broken streams, so it gets one of its own.

Run as a script. A request on standard input is two lengths (unsigned 32 bits, big-endian), a JSON object and the
codestream; the answer on standard output is one length and the decoded bytes, length 0 where GDCM gives none.
"""

import json
import struct
import sys
from typing import Any, BinaryIO

import gdcm


def decode(stored: bytes, shape: dict[str, Any]) -> bytes:
    """Samples of one frame, little-endian, those of a pixel beside each other; b"" if GDCM cannot."""
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(stored)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((shape["columns"], shape["rows"], 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(shape["photometric_interpretation"])
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(shape["transfer_syntax"])))
    bits = shape["bits_stored"]
    image.SetPixelFormat(
        gdcm.PixelFormat(shape["samples"], shape["bits_allocated"], bits, bits - 1, int(shape["is_signed"]))
    )
    buffer = image.GetBuffer()
    # The binding gives bytes as text with surrogates.
    return buffer.encode("utf-8", "surrogateescape") if buffer is not None else b""


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until their stream ends."""
    while head := requests.read(8):
        about, length = struct.unpack(">LL", head)
        shape = json.loads(requests.read(about))
        decoded = decode(requests.read(length), shape)
        answers.write(struct.pack(">L", len(decoded)) + decoded)
        answers.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)

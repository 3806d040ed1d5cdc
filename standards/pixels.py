"""Decoding one stored frame into an array."""

import zlib
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from standards import jpeg, jpeg_xl, transfer_syntaxes
from standards.errors import PermanentError
from standards.frames import FrameLayout, layout, number, read_frame
from standards.part10 import Header

MAX_DECODED_BYTES: Final = 1 << 30
_FRAMES_AS_NATIVE: Final = (transfer_syntaxes.ENCAPSULATED_UNCOMPRESSED, transfer_syntaxes.DEFLATED_IMAGE_FRAME)
_KEEPING_ALL_BITS: Final = (*_FRAMES_AS_NATIVE, transfer_syntaxes.RLE_LOSSLESS)

# GDCM is left out everywhere here: it ends the process on some broken streams (see standards.jpeg).
_PLUGINS: Final = {
    transfer_syntaxes.JPEG_BASELINE: "pillow",
    transfer_syntaxes.JPEG_EXTENDED: "pillow",
    transfer_syntaxes.JPEG_LS_LOSSLESS: "pyjpegls",
    transfer_syntaxes.JPEG_LS_NEAR_LOSSLESS: "pyjpegls",
    transfer_syntaxes.JPEG_2000_LOSSLESS: "pylibjpeg",
    transfer_syntaxes.JPEG_2000: "pylibjpeg",
    transfer_syntaxes.HTJ2K_LOSSLESS: "pylibjpeg",
    transfer_syntaxes.HTJ2K_LOSSLESS_RPCL: "pylibjpeg",
    transfer_syntaxes.HTJ2K: "pylibjpeg",
    transfer_syntaxes.RLE_LOSSLESS: "pylibjpeg",
}

Frame = NDArray[Any]


def decode_frame(plain: BinaryIO, header: Header, index: int) -> Frame:
    """Frame ``index`` (from 0) as an array of rows × columns, or rows × columns × samples.

    Little-endian, in the stored colour space as the codec leaves it, chroma at full resolution, samples beside each
    other whatever the planar configuration; one bit becomes a byte of 0 or 1. ``plain`` is from ``part10.open_plain``.

    Raises: PermanentError "cannot-decode", "frame-too-large", and those of ``frames.frame_bytes``.
    """
    return decode_stored(read_frame(plain, header, index), header)


def decode_stored(stored: bytes, header: Header) -> Frame:
    """Like :func:`decode_frame` for the bytes of one stored frame."""
    return decode_with_colour_space(stored, header)[0]


def can_decode(transfer_syntax: str) -> bool:
    """Whether frames in this transfer syntax can be decoded here at all; a single broken one still may not."""
    if not transfer_syntaxes.is_encapsulated(transfer_syntax):
        return True
    ours = _FRAMES_AS_NATIVE + transfer_syntaxes.JPEG_XL_FAMILY
    return transfer_syntax in _PLUGINS or transfer_syntax in ours or jpeg.has_codec(transfer_syntax)


def decode_whole(stored: bytes, header: Header) -> tuple[Frame, str]:
    """:func:`decode_with_colour_space` with what lies above Bits Stored, where the encoding has kept that."""
    return _unmasked(stored, header, layout(header))


def decode_with_colour_space(stored: bytes, header: Header) -> tuple[Frame, str]:
    """:func:`decode_stored` with the photometric interpretation the array really has."""
    shape = layout(header)
    values, colour_space = _unmasked(stored, header, shape)
    if _keeps_all_bits(header):
        values = _without_unused_bits(values, shape, header)
    return values, colour_space


def _keeps_all_bits(header: Header) -> bool:
    """Whether the encoding keeps what lies above Bits Stored."""
    return not header.encapsulated or header.transfer_syntax in _KEEPING_ALL_BITS


def _unmasked(stored: bytes, header: Header, shape: FrameLayout) -> tuple[Frame, str]:
    if shape.rows * shape.columns * shape.samples * max(1, shape.bits_allocated // 8) > MAX_DECODED_BYTES:
        raise PermanentError("frame-too-large", f"{shape.rows} × {shape.columns} × {shape.samples}")
    if not header.encapsulated:
        return _native(stored, shape, header), shape.photometric_interpretation
    if header.transfer_syntax in _FRAMES_AS_NATIVE:
        raw = stored
        if header.transfer_syntax == transfer_syntaxes.DEFLATED_IMAGE_FRAME:
            raw = _inflated(stored, -(-shape.bits // 8))
        return _native(raw, shape, header), shape.photometric_interpretation
    if header.transfer_syntax == transfer_syntaxes.RLE_LOSSLESS and shape.bits_allocated == 1:
        return _native(_unpack_bits_of_rle(stored), shape, header), shape.photometric_interpretation
    _check_codestream(stored, shape)
    if header.transfer_syntax in transfer_syntaxes.JPEG_XL_FAMILY:
        values = _without_unused_bits(jpeg_xl.decode(stored, shape), shape, header)
        # Colours that were transformed on the way in come out as RGB; a lossless stream has them as they were.
        as_stored = header.transfer_syntax == transfer_syntaxes.JPEG_XL_LOSSLESS or shape.samples == 1
        return values, shape.photometric_interpretation if as_stored else "RGB"
    if jpeg.is_ours(header.transfer_syntax, shape):
        values = jpeg.decode(stored, shape, header.transfer_syntax)
        return _without_unused_bits(values, shape, header), shape.photometric_interpretation
    return _decoded(stored, shape, header)


def stored_values(stored: bytes, header: Header) -> Frame | None:
    """A grey frame with the bits above Bits Stored, in which old objects keep overlays; None where codecs drop them."""
    shape = layout(header)
    if shape.samples > 1 or shape.bits_allocated not in (8, 16, 32) or header.pixel_keyword != "PixelData":
        return None
    if header.encapsulated:
        return decode_whole(stored, header)[0] if _keeps_all_bits(header) else None
    little = transfer_syntaxes.is_little_endian(header.transfer_syntax)
    count = shape.rows * shape.columns
    values = np.frombuffer(stored, f"{'<' if little else '>'}u{shape.bits_allocated // 8}", count)
    return values.reshape(shape.rows, shape.columns)


def _native(raw: bytes, shape: FrameLayout, header: Header) -> Frame:
    needed = -(-shape.bits // 8)
    if len(raw) < needed:
        raise PermanentError("cannot-decode", f"{len(raw)} bytes where a frame has {needed}")
    count = shape.bits // shape.bits_allocated
    if shape.bits_allocated == 1:
        return np.unpackbits(np.frombuffer(raw, np.uint8), count=count, bitorder="little").reshape(_dimensions(shape))
    little = transfer_syntaxes.is_little_endian(header.transfer_syntax)
    values: Frame
    if header.pixel_keyword != "PixelData":
        values = np.frombuffer(raw, f"{'<' if little else '>'}f{shape.bits_allocated // 8}", count)
    elif shape.bits_allocated == 8:
        values = np.frombuffer(raw, np.int8 if shape.is_signed else np.uint8, count)
    else:
        kind = "i" if shape.is_signed else "u"
        values = np.frombuffer(raw, f"{'<' if little else '>'}{kind}{shape.bits_allocated // 8}", count)
    values = values.astype(values.dtype.newbyteorder("<"), copy=False)
    if shape.is_subsampled:
        return _full_chroma(values, shape)
    if shape.samples > 1 and shape.planar_configuration == 1:
        planes = values.reshape(shape.samples, shape.rows, shape.columns)
        return np.ascontiguousarray(planes.transpose(1, 2, 0))
    return values.reshape(_dimensions(shape))


def _full_chroma(values: Frame, shape: FrameLayout) -> Frame:
    """Y1 Y2 Cb Cr for each pair of pixels becomes Y Cb Cr for each pixel."""
    if shape.rows * shape.columns % 2:
        raise PermanentError("cannot-decode", "YBR_FULL_422 with an odd number of pixels")
    pairs = values.reshape(-1, 4)
    pixels = np.stack((pairs[:, [0, 2, 3]], pairs[:, [1, 2, 3]]), axis=1)
    return np.ascontiguousarray(pixels.reshape(shape.rows, shape.columns, 3))


def _dimensions(shape: FrameLayout) -> tuple[int, ...]:
    return (shape.rows, shape.columns, shape.samples) if shape.samples > 1 else (shape.rows, shape.columns)


def _without_unused_bits(values: Frame, shape: FrameLayout, header: Header) -> Frame:
    """Bits above Bits Stored (old overlays, rubbish) replaced by the sign, so that all encodings agree.

    Old objects whose values lie in other bits than the lowest stay as they are, see :func:`lowered`.
    """
    spare = values.dtype.itemsize * 8 - shape.bits_stored
    if header.pixel_keyword != "PixelData" or values.dtype.kind == "f" or not 0 < spare < values.dtype.itemsize * 8:
        return values
    if shape.bits_allocated == 1 or _low_bit(header, shape):
        return values
    shifted: Frame = np.right_shift(np.left_shift(values, spare), spare)
    return shifted


def _low_bit(header: Header, shape: FrameLayout) -> int:
    """The lowest bit of a value: 0 by today's standard, in old objects another one, as High Bit says."""
    if not _keeps_all_bits(header):
        return 0
    low = number(header.dataset, "HighBit", shape.bits_stored - 1) + 1 - shape.bits_stored
    return low if 0 < low <= shape.bits_allocated - shape.bits_stored else 0


def lowered(values: Frame, header: Header) -> Frame:
    """Decoded ``values`` by their meaning: those that lie in high bits, as High Bit says, brought down."""
    shape = layout(header)
    low = _low_bit(header, shape)
    if not low or values.dtype.kind not in "iu":
        return values
    size = values.dtype.itemsize * 8
    raised = np.left_shift(values, size - shape.bits_stored - low)
    shifted: Frame = np.right_shift(raised, size - shape.bits_stored)
    return shifted


def _inflated(stored: bytes, expected: int) -> bytes:
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        return decompressor.decompress(stored, expected + 1)
    except zlib.error as error:
        raise PermanentError("cannot-decode", str(error)) from error


def _unpack_bits_of_rle(stored: bytes) -> bytes:
    """The one segment of a bit-packed RLE frame (PS3.5 G.3), as pydicom's decoders start at 8 bits."""
    if len(stored) < 64:
        raise PermanentError("cannot-decode", "an RLE frame has a header of 64 bytes")
    position = int.from_bytes(stored[4:8], "little")
    output = bytearray()
    while position < len(stored) - 1:
        control = stored[position]
        if control < 128:
            output += stored[position + 1 : position + 2 + control]
            position += control + 2
        elif control > 128:
            output += stored[position + 1 : position + 2] * (257 - control)
            position += 2
        else:
            position += 1
    return bytes(output)


def _check_codestream(stored: bytes, shape: FrameLayout) -> None:
    """Refuse a codestream larger than the header says, before a codec allocates memory for it."""
    size = _codestream_size(stored)
    if size and size[0] * size[1] > 4 * max(shape.rows * shape.columns, 1 << 20):
        raise PermanentError("frame-too-large", f"the codestream is {size[0]} × {size[1]}")


def _codestream_size(stored: bytes) -> tuple[int, int] | None:
    """(rows, columns) a JPEG, JPEG-LS or JPEG 2000 codestream claims; None for what has no such marker."""
    start = stored.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start >= 0 and len(stored) >= start + 24:
        width, height, left, top = (int.from_bytes(stored[start + at : start + at + 4]) for at in (8, 12, 16, 20))
        return max(0, height - top), max(0, width - left)
    position = 2
    if stored[:2] != b"\xff\xd8":
        return None
    while position + 9 <= len(stored) and stored[position] == 0xFF:
        marker = stored[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return int.from_bytes(stored[position + 5 : position + 7]), int.from_bytes(
                stored[position + 7 : position + 9]
            )
        position += 2 + int.from_bytes(stored[position + 2 : position + 4])
    return None


def _decoded(stored: bytes, shape: FrameLayout, header: Header) -> tuple[Frame, str]:
    plugin = _PLUGINS.get(header.transfer_syntax)
    if plugin is None:
        raise PermanentError("cannot-decode", f"no decoder for {header.transfer_syntax}")
    decoder = get_decoder(UID(header.transfer_syntax))
    options: dict[str, Any] = {
        "rows": shape.rows,
        "columns": shape.columns,
        "samples_per_pixel": shape.samples,
        "photometric_interpretation": shape.photometric_interpretation,
        # A bit-packed image travels in a codec as bytes.
        "bits_allocated": max(8, shape.bits_allocated),
        "bits_stored": max(8, shape.bits_stored) if shape.bits_allocated == 1 else shape.bits_stored,
        "pixel_representation": int(shape.is_signed),
        "planar_configuration": shape.planar_configuration,
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
        "correct_unused_bits": False,  # it is done here, where it is wanted
    }
    try:
        array, properties = decoder.as_array(
            encapsulate([stored], has_bot=False), index=0, raw=True, decoding_plugin=plugin, **options
        )
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError, IndexError, OSError) as error:
        # Codecs fail in every way there is; to the caller it is one: this frame cannot be shown.
        raise PermanentError("cannot-decode", str(error).splitlines()[0][:200] if str(error) else "codec") from error
    except BaseException as error:
        # The RLE codec is Rust; on a broken frame it panics, in a class that derives from no other and has no module.
        if type(error).__name__ != "PanicException":
            raise
        raise PermanentError("cannot-decode", "the codec panicked") from error
    values = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    if not _keeps_all_bits(header):
        values = _without_unused_bits(values, shape, header)
    return values, str(properties["photometric_interpretation"])

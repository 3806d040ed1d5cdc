"""Transfer syntaxes: which ones a Storage SCP accepts and what each does to pixels."""

from typing import Final

from pydicom._uid_dict import UID_dictionary

IMPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1"
ENCAPSULATED_UNCOMPRESSED: Final = "1.2.840.10008.1.2.1.98"
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1.99"
EXPLICIT_VR_BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
JPEG_BASELINE: Final = "1.2.840.10008.1.2.4.50"
JPEG_EXTENDED: Final = "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS: Final = "1.2.840.10008.1.2.4.57"
JPEG_LOSSLESS_SV1: Final = "1.2.840.10008.1.2.4.70"
JPEG_LS_LOSSLESS: Final = "1.2.840.10008.1.2.4.80"
JPEG_LS_NEAR_LOSSLESS: Final = "1.2.840.10008.1.2.4.81"
JPEG_2000_LOSSLESS: Final = "1.2.840.10008.1.2.4.90"
JPEG_2000: Final = "1.2.840.10008.1.2.4.91"
HTJ2K_LOSSLESS: Final = "1.2.840.10008.1.2.4.201"
HTJ2K_LOSSLESS_RPCL: Final = "1.2.840.10008.1.2.4.202"
HTJ2K: Final = "1.2.840.10008.1.2.4.203"
JPEG_XL_LOSSLESS: Final = "1.2.840.10008.1.2.4.110"
JPEG_XL_JPEG_RECOMPRESSION: Final = "1.2.840.10008.1.2.4.111"
JPEG_XL: Final = "1.2.840.10008.1.2.4.112"
JPEG_XL_FAMILY: Final = (JPEG_XL_LOSSLESS, JPEG_XL_JPEG_RECOMPRESSION, JPEG_XL)
RLE_LOSSLESS: Final = "1.2.840.10008.1.2.5"
DEFLATED_IMAGE_FRAME: Final = "1.2.840.10008.1.2.8.1"

# Encodings of a whole document or of a live stream: no data set in the DICOM byte stream, so nothing to store.
_NOT_A_FILE_ENCODING = ("1.2.840.10008.1.2.6.", "1.2.840.10008.1.2.7.")
# In these the pixel data is fetched from elsewhere by JPIP: storing the object would store no image.
_REFERENCED = frozenset(f"1.2.840.10008.1.2.4.{last}" for last in ("94", "95", "204", "205"))
_NEWER_THAN_DICTIONARY = {JPEG_XL_LOSSLESS, JPEG_XL_JPEG_RECOMPRESSION, JPEG_XL, DEFLATED_IMAGE_FRAME}

_NATIVE = frozenset(
    {
        IMPLICIT_VR_LITTLE_ENDIAN,
        EXPLICIT_VR_LITTLE_ENDIAN,
        DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
        EXPLICIT_VR_BIG_ENDIAN,
    }
)

_LOSSLESS_ENCAPSULATED = frozenset(
    {
        ENCAPSULATED_UNCOMPRESSED,
        JPEG_LOSSLESS,
        "1.2.840.10008.1.2.4.58",
        "1.2.840.10008.1.2.4.65",
        "1.2.840.10008.1.2.4.66",
        JPEG_LOSSLESS_SV1,
        JPEG_LS_LOSSLESS,
        JPEG_2000_LOSSLESS,
        "1.2.840.10008.1.2.4.92",
        HTJ2K_LOSSLESS,
        HTJ2K_LOSSLESS_RPCL,
        JPEG_XL_LOSSLESS,
        RLE_LOSSLESS,
        DEFLATED_IMAGE_FRAME,
    }
)


def _storable() -> tuple[str, ...]:
    known = {uid for uid, entry in UID_dictionary.items() if entry[1] == "Transfer Syntax"}
    chosen = {
        uid
        for uid in known | _NEWER_THAN_DICTIONARY
        if (uid == IMPLICIT_VR_LITTLE_ENDIAN or uid.startswith(IMPLICIT_VR_LITTLE_ENDIAN + "."))
        and not uid.startswith(_NOT_A_FILE_ENCODING)
        and uid not in _REFERENCED
    }
    preferred = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
    rest = sorted(chosen - set(preferred), key=lambda uid: [int(part) for part in uid.split(".")])
    return (*preferred, *rest)


STORAGE_TRANSFER_SYNTAXES: Final[tuple[str, ...]] = _storable()
"""Every transfer syntax a Storage SCP accepts, Explicit VR Little Endian first."""

_KNOWN = frozenset(STORAGE_TRANSFER_SYNTAXES)


def is_known(uid: str) -> bool:
    """Whether an object in this transfer syntax can be stored and parsed."""
    return uid in _KNOWN


def is_encapsulated(uid: str) -> bool:
    """Whether pixel data is sent as fragments (PS3.5 A.4); False for native, deflated and unknown ones."""
    return uid in _KNOWN and uid not in _NATIVE


def is_video(uid: str) -> bool:
    """Whether the pixel data is one MPEG-2, H.264 or H.265 stream, whose frames cannot be cut out one by one."""
    prefix = "1.2.840.10008.1.2.4."
    return uid in _KNOWN and uid.startswith(prefix) and 100 <= int(uid[len(prefix) :].split(".")[0]) <= 108


def is_lossy(uid: str) -> bool:
    """Whether the transfer syntax may have thrown information away.

    JPEG 2000 (.91), HTJ2K (.203) and JPEG XL (.111, .112) can carry lossless streams too; as nothing outside the stream
    proves it, they count as lossy.
    """
    return is_encapsulated(uid) and uid not in _LOSSLESS_ENCAPSULATED


def is_deflated(uid: str) -> bool:
    """Whether the whole data set is one deflate stream (PS3.5 A.5)."""
    return uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN


def is_implicit(uid: str) -> bool:
    """Whether elements carry no VR."""
    return uid == IMPLICIT_VR_LITTLE_ENDIAN


def is_little_endian(uid: str) -> bool:
    """Whether numbers are little-endian: all but the retired big-endian syntax."""
    return uid != EXPLICIT_VR_BIG_ENDIAN


def frame_media_type(uid: str) -> str:
    """The media type of one stored frame in DICOMweb; ``application/octet-stream`` for native frames."""
    if not is_encapsulated(uid) or uid in (ENCAPSULATED_UNCOMPRESSED, DEFLATED_IMAGE_FRAME):
        return "application/octet-stream"
    if is_video(uid):
        last = int(uid.split(".")[7])
        return "video/mpeg" if last <= 101 else "video/mp4" if last <= 106 else "video/H265"
    if uid == RLE_LOSSLESS:
        return "image/dicom-rle"
    last = int(uid.rsplit(".", 1)[1])
    if last in (80, 81):
        return "image/jls"
    if last in (90, 91):
        return "image/jp2"
    if last in (92, 93):
        return "image/jpx"
    if 201 <= last <= 203:
        return "image/jphc"
    if 110 <= last <= 112:
        return "image/jxl"
    return "image/jpeg"

"""The one place where a RegisError becomes a DIMSE status.

Source: PS3.4 B.2.3, C.4.1.1.4, C.4.2.1.5; PS3.7 C
"""

from typing import Final

from pydicom.dataset import Dataset

from standards.charsets import transliterate
from standards.errors import RegisError, TransientError

SUCCESS: Final = 0x0000
PENDING: Final = 0xFF00
CANCELLED: Final = 0xFE00
PROCESSING_FAILURE: Final = 0x0110
SOP_CLASS_NOT_SUPPORTED: Final = 0x0122
NOT_AUTHORISED: Final = 0x0124
OUT_OF_RESOURCES: Final = 0xA700
DOES_NOT_MATCH_SOP_CLASS: Final = 0xA900
CANNOT_UNDERSTAND: Final = 0xC000
UNABLE_TO_MATCH: Final = 0xA701
SUBOPERATIONS_FAILED: Final = 0xA702
MOVE_DESTINATION_UNKNOWN: Final = 0xA801
SUBOPERATIONS_IMPERFECT: Final = 0xB000

STATUS_OF: Final = {
    "storage-full": OUT_OF_RESOURCES,
    "database-busy": OUT_OF_RESOURCES,
    "sop-class-mismatch": DOES_NOT_MATCH_SOP_CLASS,
    "sop-instance-mismatch": DOES_NOT_MATCH_SOP_CLASS,
    "sop-class-not-supported": SOP_CLASS_NOT_SUPPORTED,
    "not-authorised": NOT_AUTHORISED,
    "invalid-key": DOES_NOT_MATCH_SOP_CLASS,
    "not-dicom": 0xC001,
    "truncated": 0xC002,
    "length-out-of-bounds": 0xC003,
    "invalid-vr": 0xC004,
    "unknown-transfer-syntax": 0xC005,
    "missing-uid": 0xC006,
    "invalid-uid": 0xC007,
    "nesting-too-deep": 0xC008,
    "too-many-elements": 0xC009,
    "invalid-deflate": 0xC00A,
    "transfer-syntax-mismatch": 0xC00B,
    "storage-damaged": PROCESSING_FAILURE,
    "instance-gone": PROCESSING_FAILURE,
}
"""Codes not listed: C000 for what is permanent, A700 for what may pass."""


def status_of(error: RegisError) -> int:
    """The DIMSE status of ``error``."""
    return STATUS_OF.get(error.code, OUT_OF_RESOURCES if isinstance(error, TransientError) else CANNOT_UNDERSTAND)


def status_dataset(status: int, comment: str = "") -> Dataset:
    """Status and, when there is something to say, Error Comment (LO in the default repertoire, 64 characters)."""
    answer = Dataset()
    answer.Status = status
    if comment:
        answer.ErrorComment = comment_text(comment)
    return answer


def comment_text(comment: str) -> str:
    """``comment`` as an Error Comment can carry it."""
    return transliterate(comment).replace("\\", "/")[:64]


def retrieve_status_of(error: RegisError) -> int:
    """The status of a C-MOVE or C-GET that is refused before its first sub-operation. Source: PS3.4 C.4.2.1.5"""
    if error.code == "move-destination-unknown":
        return MOVE_DESTINATION_UNKNOWN
    if error.code == "invalid-uid":
        return DOES_NOT_MATCH_SOP_CLASS
    return UNABLE_TO_MATCH if isinstance(error, TransientError) else status_of(error)


def refusal(error: RegisError) -> Dataset:
    """The status of ``error`` with its code and sentence."""
    return status_dataset(status_of(error), str(error))

"""Which value representation an element has that does not say it itself. Source: PS3.6 6"""

from typing import Final

from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import dictionary_VR

_REPEATING_GROUPS: Final = (0x50, 0x60)


def dictionary_vr(tag: int) -> str | None:
    """The VR in the public dictionary; None where there is none, which makes the value UN or a sequence."""
    if tag >> 16 == 0xFFFE:
        return None
    if not tag & 0xFFFF:
        return "UL"
    if tag >> 16 & 1:
        return "LO" if 0x10 <= tag & 0xFFFF <= 0xFF else None
    entry = DicomDictionary.get(tag)
    if entry:
        return entry[0]
    if tag >> 24 in _REPEATING_GROUPS:
        try:
            return dictionary_VR(tag)
        except KeyError:
            return None
    return None

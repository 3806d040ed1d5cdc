"""Tags, and which value representation an element has that does not say it itself. Source: PS3.6 6"""

from typing import Final

from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import dictionary_VR
from pydicom.tag import BaseTag

_REPEATING_GROUPS: Final = (0x50, 0x60)
_TAGS: Final = {number: BaseTag(number) for number in DicomDictionary}


def tag_of(number: int) -> BaseTag:
    """The tag, always the same object for what the dictionary knows.

    What is the same needs no comparing, and pydicom compares tags in Python whenever a data set is asked for one.
    """
    return _TAGS.get(number) or BaseTag(number)


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

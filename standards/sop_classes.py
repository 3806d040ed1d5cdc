"""SOP classes a Storage SCP accepts, and the few others that Regis names."""

from typing import Final

from pydicom._uid_dict import UID_dictionary
from pynetdicom.sop_class import _STORAGE_CLASSES

VERIFICATION: Final = "1.2.840.10008.1.1"
MEDIA_STORAGE_DIRECTORY: Final = "1.2.840.10008.1.3.10"
ENCAPSULATED_PDF: Final = "1.2.840.10008.5.1.4.1.1.104.1"
BASIC_TEXT_SR: Final = "1.2.840.10008.5.1.4.1.1.88.11"
SECONDARY_CAPTURE_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.7"

STORAGE_COMMITMENT_PUSH_MODEL: Final = "1.2.840.10008.1.20.1"
STORAGE_COMMITMENT_PUSH_MODEL_INSTANCE: Final = "1.2.840.10008.1.20.1.1"

# In PS3.6 A, newer than the dictionaries of pydicom and pynetdicom.
_NEWER_THAN_DICTIONARY: Final = {
    "1.2.840.10008.5.1.4.1.1.2.3": "CT Image Storage - For Processing",
    "1.2.840.10008.5.1.4.1.1.2.4": "Enhanced CT Image Storage - For Processing",
    "1.2.840.10008.5.1.4.1.1.2.5": "Legacy Converted Enhanced CT Image Storage - For Processing",
    "1.2.840.10008.5.1.4.1.1.9.100.1": "Waveform Presentation State Storage",
    "1.2.840.10008.5.1.4.1.1.9.100.2": "Waveform Acquisition Presentation State Storage",
    "1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation Storage",
    "1.2.840.10008.5.1.4.1.1.66.8": "Height Map Segmentation Storage",
    "1.2.840.10008.5.1.4.1.1.601.5": "Ultrasound Waveform Storage",
}

# A media directory is an index of files and the commitment classes are services: neither is a composite object.
_NOT_COMPOSITE: Final = ("Media Storage Directory", "Storage Commitment")


def _storage() -> tuple[str, ...]:
    named = {
        uid
        for uid, entry in UID_dictionary.items()
        if entry[1] == "SOP Class" and "Storage" in entry[0] and not entry[0].startswith(_NOT_COMPOSITE)
    }
    every = named | set(_NEWER_THAN_DICTIONARY) | {str(uid) for uid in _STORAGE_CLASSES.values()}
    return tuple(sorted(every, key=lambda uid: [int(part) for part in uid.split(".")]))


STORAGE_SOP_CLASSES: Final[tuple[str, ...]] = _storage()
"""Every storage SOP class of the standard (PS3.4 B.5, GG.3), retired ones included, in UID order."""


def sop_class_name(uid: str) -> str:
    """The name in the DICOM dictionary, or the UID itself for a private or unknown class."""
    entry = UID_dictionary.get(uid)
    return entry[0] if entry else _NEWER_THAN_DICTIONARY.get(uid, uid)

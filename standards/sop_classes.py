"""SOP classes a Storage SCP accepts, and the few others that Regis names."""

from typing import Final

from pydicom._uid_dict import UID_dictionary
from pynetdicom.sop_class import _STORAGE_CLASSES

VERIFICATION: Final = "1.2.840.10008.1.1"
MEDIA_STORAGE_DIRECTORY: Final = "1.2.840.10008.1.3.10"
ENCAPSULATED_PDF: Final = "1.2.840.10008.5.1.4.1.1.104.1"
BASIC_TEXT_SR: Final = "1.2.840.10008.5.1.4.1.1.88.11"
SECONDARY_CAPTURE_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.7"

# A media directory is an index of files and the commitment classes are services: neither is a composite object.
_NOT_COMPOSITE: Final = ("Media Storage Directory", "Storage Commitment")


def _storage() -> tuple[str, ...]:
    named = {
        uid
        for uid, entry in UID_dictionary.items()
        if entry[1] == "SOP Class" and "Storage" in entry[0] and not entry[0].startswith(_NOT_COMPOSITE)
    }
    every = named | {str(uid) for uid in _STORAGE_CLASSES.values()}
    return tuple(sorted(every, key=lambda uid: [int(part) for part in uid.split(".")]))


STORAGE_SOP_CLASSES: Final[tuple[str, ...]] = _storage()
"""Every storage SOP class of the dictionaries of pydicom and pynetdicom, retired ones included, in UID order."""


def sop_class_name(uid: str) -> str:
    """The name in the DICOM dictionary, or the UID itself for a private or unknown class."""
    entry = UID_dictionary.get(uid)
    return entry[0] if entry else uid

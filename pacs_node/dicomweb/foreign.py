"""What DICOMweb sources send goes into the node's storage as from any modality."""

from functools import partial
from typing import BinaryIO

from gateway.envelope import ForeignSource
from gateway.foreign.dicomweb import DicomWebPacs
from gateway.foreign.pacs import speak
from pacs_node.study_index.actions import ingest


def take_in(file: BinaryIO, source: ForeignSource) -> None:
    """Take a Part 10 file of ``source`` in. Raises: as ``study_index.actions.ingest``."""
    ingest(
        file,
        source_ae_title=source.sends_as,
        address=source.url[:64],
        default_character_set=source.character_set,
        default_issuer=source.issuer_of_patient_id,
    )


def register() -> None:
    """Called once, when the app is ready."""
    speak("dicomweb", partial(DicomWebPacs, take_in))

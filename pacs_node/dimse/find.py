"""C-FIND: patient and study root at all levels, and the Modality Worklist."""

from collections.abc import Iterator
from typing import Final, cast, get_args

import structlog
from pydicom.datadict import dictionary_has_tag, dictionary_keyword, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.sop_class import (
    ModalityWorklistInformationFind,
    PatientRootQueryRetrieveInformationModelFind,
)

from pacs_node.clinic.queries import ClinicSchedule
from pacs_node.config import config
from pacs_node.dimse.admission import Peer, peer_of
from pacs_node.dimse.connections import healthy_connection
from pacs_node.dimse.statuses import CANCELLED, PENDING, refusal
from pacs_node.study_index.queries import Found, Level, find
from standards import charsets
from standards.errors import PermanentError, RegisError
from standards.part10 import read_identifier, text
from worklist.scp import answers

log = structlog.get_logger(__name__)

_LEVEL: Final = 0x00080052
_CHARACTER_SET: Final = 0x00080005
_RETRIEVE_AE_TITLE: Final = 0x00080054
_AVAILABILITY: Final = 0x00080056

Answer = tuple[int | Dataset, Dataset | None]


def on_find(event: evt.Event) -> Iterator[Answer]:
    """Answer one C-FIND; what goes wrong is a status with its reason, never a broken association."""
    healthy_connection()
    try:
        peer = peer_of(event.assoc)
        is_worklist = event.request.AffectedSOPClassUID == ModalityWorklistInformationFind
        peer.require("worklist" if is_worklist else "query")
        query = identifier_of(event, peer)
        character_set = answer_character_set(query, peer)
        if is_worklist:
            found = answers(query, ClinicSchedule().items(query), character_set=character_set)
        else:
            found = _study_answers(query, str(event.request.AffectedSOPClassUID), character_set)
        for answer in found:
            if event.is_cancelled:
                yield CANCELLED, None
                return
            yield PENDING, answer
    except RegisError as error:
        log.warning("query-refused", code=error.code, detail=error.detail)
        yield refusal(error), None


def identifier_of(event: evt.Event, peer: Peer) -> Dataset:
    """The identifier of a request, read in the peer's character set where it names none.

    Raises: PermanentError "invalid-key" without one, else as ``standards.part10.read_identifier``.
    """
    encoded = event.request.Identifier
    if encoded is None:
        raise PermanentError("invalid-key", "the request has no identifier")
    return read_identifier(encoded.getvalue(), str(event.context.transfer_syntax), default_charset=peer.character_set)


def answer_character_set(query: Dataset, peer: Peer) -> str:
    """The set that the asker reads: the one it asked in, else the one the registry has for it."""
    asked = text(query, "SpecificCharacterSet")
    return asked if asked and charsets.is_known(asked) else peer.character_set


def level_of(query: Dataset, sop_class: str, patient_root: str) -> Level:
    """The Query/Retrieve Level. Raises: PermanentError("invalid-key")."""
    level = text(query, "QueryRetrieveLevel").upper()
    if level not in get_args(Level) or (level == "PATIENT" and sop_class != patient_root):
        raise PermanentError("invalid-key", f"no Query/Retrieve Level {level[:16]!r} in this information model")
    return cast(Level, level)


def keys_of(query: Dataset) -> dict[str, str]:
    """Keyword → key text of the top-level elements that are not sequences."""
    return {
        dictionary_keyword(tag): text(query, dictionary_keyword(tag))
        for tag in query.keys()  # noqa: SIM118  iterating a Dataset gives elements, decoded
        if dictionary_has_tag(tag) and dictionary_VR(tag) != "SQ"
    }


def _study_answers(query: Dataset, sop_class: str, character_set: str) -> Iterator[Dataset]:
    level = level_of(query, sop_class, PatientRootQueryRetrieveInformationModelFind)
    patients: dict[tuple[str, str], Found] = {}
    for found in find(level, keys_of(query)):
        if level != "PATIENT":
            yield _answer(query, level, found, character_set)
            continue
        key = (found.study.patient_id, found.study.issuer_of_patient_id)
        patient = patients.setdefault(key, found)
        patient.studies_count += 1
        if patient is not found:
            patient.series_count += found.series_count
            patient.instances_count += found.instances_count
    for patient in patients.values():
        yield _answer(query, level, patient, character_set)


def _answer(query: Dataset, level: Level, found: Found, character_set: str) -> Dataset:
    """What was asked, filled in; the unique keys of the level and those above always."""
    answer = Dataset()
    answer.QueryRetrieveLevel = level
    answer.RetrieveAETitle = config().ae_title
    answer.InstanceAvailability = "ONLINE"
    for keyword in _UNIQUE_KEYS[level]:
        setattr(answer, keyword, found.value(keyword))
    for tag in query.keys():  # noqa: SIM118
        if tag in (_LEVEL, _CHARACTER_SET, _RETRIEVE_AE_TITLE, _AVAILABILITY) or tag.element == 0:
            continue
        element = _element(int(tag), level, found)
        if element is not None:
            answer[tag] = element
    return charsets.encode_dataset(answer, character_set)


_UNIQUE_KEYS: Final = {
    "PATIENT": ("PatientID",),
    "STUDY": ("StudyInstanceUID",),
    "SERIES": ("StudyInstanceUID", "SeriesInstanceUID"),
    "IMAGE": ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"),
}


def _element(tag: int, level: Level, found: Found) -> DataElement | None:
    if not dictionary_has_tag(tag):
        return None
    keyword, vr = dictionary_keyword(tag), dictionary_VR(tag).split(" ")[0]
    computed = _computed(keyword, level, found)
    if computed is not None:
        return DataElement(tag, vr, computed)
    value = found.value(keyword)
    if value is not None:
        return DataElement(tag, vr, value if vr not in ("IS", "US") or value != "" else None)
    key = f"{tag:08X}"
    kept = found.attribute(key)
    if kept is not None:
        return DataElement.from_json(Dataset, key, vr, kept.get("Value", [""]), "Value" if "Value" in kept else None)
    return DataElement(tag, vr, [] if vr == "SQ" else None)


def _computed(keyword: str, level: Level, found: Found) -> int | list[str] | None:
    if level in ("PATIENT", "STUDY"):
        if keyword == "ModalitiesInStudy":
            return found.modalities
        if keyword == "SOPClassesInStudy":
            return found.sop_classes
    counts = {
        "NumberOfPatientRelatedStudies": ("PATIENT", found.studies_count),
        "NumberOfPatientRelatedSeries": ("PATIENT", found.series_count),
        "NumberOfPatientRelatedInstances": ("PATIENT", found.instances_count),
        "NumberOfStudyRelatedSeries": ("STUDY", found.series_count),
        "NumberOfStudyRelatedInstances": ("STUDY", found.instances_count),
        "NumberOfSeriesRelatedInstances": ("SERIES", found.instances_count),
    }
    at, count = counts.get(keyword, ("", 0))
    return count if at == level else None

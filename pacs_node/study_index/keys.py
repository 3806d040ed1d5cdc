"""The attributes that searches match and return: at which level each is, and where the index keeps it.

Source: PS3.4 C.6.1.1, C.6.2.1; PS3.18 10.6.1
"""

from dataclasses import dataclass, field
from typing import Final, Literal

from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword

from pacs_node.study_index.attributes import INSTANCE_ATTRIBUTES, SERIES_ATTRIBUTES, STUDY_ATTRIBUTES

Level = Literal["PATIENT", "STUDY", "SERIES", "IMAGE"]
TABLES: Final[tuple[Level, ...]] = ("STUDY", "SERIES", "IMAGE")
"""The levels that are tables; what is known of a patient is a part of each study."""


@dataclass(frozen=True)
class Attribute:
    """An attribute kept in a column. ``default`` ones are in every answer of QIDO-RS."""

    keyword: str
    level: Level
    column: str
    default: bool = True
    tag: str = field(init=False)
    vr: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tag", tag_of_keyword(self.keyword))
        object.__setattr__(self, "vr", vr_of(self.tag))


def tag_of_keyword(keyword: str) -> str:
    """Eight hexadecimal digits, "" for what is no keyword."""
    tag = tag_for_keyword(keyword)
    return "" if tag is None else f"{tag:08X}"


def vr_of(tag: str) -> str:
    """The VR of the dictionary, the first where there is a choice; UN for what it does not know."""
    number = int(tag, 16)
    return dictionary_VR(number).split(" ")[0] if dictionary_has_tag(number) else "UN"


COLUMNS: Final = (
    Attribute("StudyDate", "STUDY", "study_date"),
    Attribute("StudyTime", "STUDY", "study_time"),
    Attribute("AccessionNumber", "STUDY", "accession_number"),
    Attribute("ReferringPhysicianName", "STUDY", "referring_physician_name"),
    Attribute("TimezoneOffsetFromUTC", "STUDY", "timezone_offset_from_utc"),
    Attribute("InstitutionName", "STUDY", "institution_name", default=False),
    Attribute("StudyDescription", "STUDY", "study_description"),
    Attribute("PatientName", "STUDY", "patient_name"),
    Attribute("PatientID", "STUDY", "patient_id"),
    Attribute("IssuerOfPatientID", "STUDY", "issuer_of_patient_id", default=False),
    Attribute("PatientBirthDate", "STUDY", "patient_birth_date"),
    Attribute("PatientSex", "STUDY", "patient_sex"),
    Attribute("StudyInstanceUID", "STUDY", "study_instance_uid"),
    Attribute("StudyID", "STUDY", "study_id"),
    Attribute("Modality", "SERIES", "modality"),
    Attribute("SeriesDescription", "SERIES", "series_description"),
    Attribute("SeriesDate", "SERIES", "series_date", default=False),
    Attribute("SeriesTime", "SERIES", "series_time", default=False),
    Attribute("BodyPartExamined", "SERIES", "body_part_examined", default=False),
    Attribute("StationName", "SERIES", "station_name", default=False),
    Attribute("SeriesInstanceUID", "SERIES", "series_instance_uid"),
    Attribute("SeriesNumber", "SERIES", "series_number"),
    Attribute("NumberOfSeriesRelatedInstances", "SERIES", "instances_count"),
    Attribute("SOPClassUID", "IMAGE", "sop_class_uid"),
    Attribute("SOPInstanceUID", "IMAGE", "sop_instance_uid"),
    Attribute("AvailableTransferSyntaxUID", "IMAGE", "transfer_syntax_uid"),
    Attribute("InstanceNumber", "IMAGE", "instance_number"),
    Attribute("Rows", "IMAGE", "rows"),
    Attribute("Columns", "IMAGE", "columns"),
    Attribute("NumberOfFrames", "IMAGE", "number_of_frames"),
)
BY_TAG: Final = {attribute.tag: attribute for attribute in COLUMNS}
BY_KEYWORD: Final = {attribute.keyword: attribute for attribute in COLUMNS}

MODALITIES_IN_STUDY: Final = "00080061"
SOP_CLASSES_IN_STUDY: Final = "00080062"
TIMEZONE: Final = "00080201"
SERIES_OF_STUDY, INSTANCES_OF_STUDY, INSTANCES_OF_SERIES = "00201206", "00201208", "00201209"
STUDIES_OF_PATIENT, SERIES_OF_PATIENT, INSTANCES_OF_PATIENT = "00201200", "00201202", "00201204"
OF_STUDY: Final = frozenset({MODALITIES_IN_STUDY, SOP_CLASSES_IN_STUDY, SERIES_OF_STUDY, INSTANCES_OF_STUDY})
OF_PATIENT: Final = frozenset({STUDIES_OF_PATIENT, SERIES_OF_PATIENT, INSTANCES_OF_PATIENT})

KEPT: Final[dict[str, Level]] = {
    **{tag_of_keyword(keyword): "STUDY" for keyword in STUDY_ATTRIBUTES},
    **{tag_of_keyword(keyword): "SERIES" for keyword in SERIES_ATTRIBUTES},
    **{tag_of_keyword(keyword): "IMAGE" for keyword in INSTANCE_ATTRIBUTES},
}
"""Attributes kept beside the columns, as DICOM JSON in ``attributes`` of their level."""
KEPT_DEFAULT: Final = frozenset(
    tag_of_keyword(keyword)
    for keyword in (
        "PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime", "RequestAttributesSequence",
        "BitsAllocated",
    )
)  # fmt: skip
"""Those of them that are in every answer of QIDO-RS about their level."""

PERIODS: Final = (
    (BY_KEYWORD["StudyDate"], BY_KEYWORD["StudyTime"]),
    (BY_KEYWORD["SeriesDate"], BY_KEYWORD["SeriesTime"]),
)
"""Dates and times that are one moment in combined matching and when a time zone is asked for."""


def tables_of(level: Level) -> tuple[Level, ...]:
    """The tables that an entity of ``level`` is made of."""
    return TABLES[: TABLES.index(level) + 1] if level in TABLES else ("STUDY",)

"""The attributes that searches match and return, by level: where each is kept and how it is written in DICOM JSON.

Source: PS3.18 10.6.1, F.2
"""

import re
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydicom.datadict import dictionary_VR, tag_for_keyword

from standards.errors import PermanentError

Level = Literal["study", "series", "instance"]
LEVELS: Final[tuple[Level, ...]] = ("study", "series", "instance")


@dataclass(frozen=True)
class Attribute:
    """An attribute kept in a column. ``default`` ones are returned without being asked for."""

    keyword: str
    level: Level
    column: str
    default: bool = True
    in_file: bool = True

    @property
    def tag(self) -> str:
        """Eight hexadecimal digits."""
        return tag_of(self.keyword)

    @property
    def vr(self) -> str:
        """From the dictionary."""
        return dictionary_VR(int(self.tag, 16))


def tag_of(name: str) -> str:
    """Tag of a keyword, or of eight hexadecimal digits itself. Raises: PermanentError("unknown-attribute")."""
    if re.fullmatch(r"[0-9A-Fa-f]{8}", name):
        return name.upper()
    tag = tag_for_keyword(name)
    if tag is None:
        raise PermanentError("unknown-attribute", f"{name[:80]!r} is neither a tag nor a keyword of DICOM.")
    return f"{tag:08X}"


COLUMNS: Final[tuple[Attribute, ...]] = (
    Attribute("StudyDate", "study", "study_date"),
    Attribute("StudyTime", "study", "study_time"),
    Attribute("AccessionNumber", "study", "accession_number"),
    Attribute("ReferringPhysicianName", "study", "referring_physician_name"),
    Attribute("TimezoneOffsetFromUTC", "study", "timezone_offset_from_utc", default=False),
    Attribute("InstitutionName", "study", "institution_name", default=False),
    Attribute("StudyDescription", "study", "study_description"),
    Attribute("PatientName", "study", "patient_name"),
    Attribute("PatientID", "study", "patient_id"),
    Attribute("IssuerOfPatientID", "study", "issuer_of_patient_id", default=False),
    Attribute("PatientBirthDate", "study", "patient_birth_date"),
    Attribute("PatientSex", "study", "patient_sex"),
    Attribute("StudyInstanceUID", "study", "study_instance_uid"),
    Attribute("StudyID", "study", "study_id"),
    Attribute("Modality", "series", "modality"),
    Attribute("SeriesDescription", "series", "series_description"),
    Attribute("SeriesDate", "series", "series_date", default=False),
    Attribute("SeriesTime", "series", "series_time", default=False),
    Attribute("BodyPartExamined", "series", "body_part_examined", default=False),
    Attribute("StationName", "series", "station_name", default=False),
    Attribute("SeriesInstanceUID", "series", "series_instance_uid"),
    Attribute("SeriesNumber", "series", "series_number"),
    Attribute("SOPClassUID", "instance", "sop_class_uid"),
    Attribute("SOPInstanceUID", "instance", "sop_instance_uid"),
    Attribute("AvailableTransferSyntaxUID", "instance", "transfer_syntax_uid"),
    Attribute("InstanceNumber", "instance", "instance_number"),
    Attribute("Rows", "instance", "rows"),
    Attribute("Columns", "instance", "columns"),
    Attribute("NumberOfFrames", "instance", "number_of_frames"),
)
BY_TAG: Final = {attribute.tag: attribute for attribute in COLUMNS}
OF_LEVEL: Final = {level: tuple(a for a in COLUMNS if a.level == level) for level in LEVELS}


def element(tag: str, vr: str, value: Any) -> dict[str, Any]:
    """One element of DICOM JSON; an empty value leaves ``Value`` out."""
    values = value if isinstance(value, list) else [value]
    values = [item for item in values if item not in ("", None)]
    if vr == "PN":
        values = [_person_name(str(item)) for item in values]
    return {"vr": vr, "Value": values} if values else {"vr": vr}


def _person_name(value: str) -> dict[str, str]:
    groups = zip(("Alphabetic", "Ideographic", "Phonetic"), value.split("="), strict=False)
    return {name: group for name, group in groups if group}


def column_elements(row: Any, level: Level, wanted: frozenset[str] | None) -> dict[str, dict[str, Any]]:
    """What ``row`` says at its level: default and ``wanted`` attributes (None: all)."""
    found = {
        a.tag: element(a.tag, a.vr, getattr(row, a.column))
        for a in OF_LEVEL[level]
        if a.default or wanted is None or a.tag in wanted
    }
    for tag, kept in row.attributes.items():
        if wanted is None or tag in wanted:
            found.setdefault(tag, kept)
    return found

"""From the header of an instance to the rows of the index: which attribute belongs to which level."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from django.db import models
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from pacs_node.study_index.models import Instance, Series, Study
from standards.matching import normal_form
from standards.part10 import Header, text
from standards.person_names import folds, rough_name, sort_key

# What is kept in ``attributes`` beside the columns, for QIDO-RS and C-FIND returns.
STUDY_ATTRIBUTES: Final = (
    "PatientBirthTime", "PatientAge", "PatientSize", "PatientWeight", "PatientComments", "OtherPatientIDs",
    "OtherPatientNames", "EthnicGroup", "PregnancyStatus", "AdmittingDiagnosesDescription",
    "NameOfPhysiciansReadingStudy", "RequestingPhysician", "ProcedureCodeSequence", "PatientSpeciesDescription",
    "ResponsiblePerson",
)  # fmt: skip
SERIES_ATTRIBUTES: Final = (
    "Laterality", "ProtocolName", "Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "InstitutionName",
    "InstitutionalDepartmentName", "PerformingPhysicianName", "OperatorsName", "PatientPosition",
    "FrameOfReferenceUID", "PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime",
    "PerformedProcedureStepID", "PerformedProcedureStepDescription", "RequestAttributesSequence",
    "SpacingBetweenSlices", "SliceThickness",
)  # fmt: skip
INSTANCE_ATTRIBUTES: Final = (
    "ImageType", "AcquisitionNumber", "AcquisitionDate", "AcquisitionTime", "ContentDate", "ContentTime",
    "InstanceCreationDate", "InstanceCreationTime", "BitsAllocated", "BitsStored", "SamplesPerPixel",
    "PhotometricInterpretation", "ImagePositionPatient", "ImageOrientationPatient", "SliceLocation", "PixelSpacing",
    "WindowCenter", "WindowWidth", "ConceptNameCodeSequence", "ContentLabel", "CompletionFlag", "VerificationFlag",
    "DocumentTitle", "MIMETypeOfEncapsulatedDocument", "PresentationIntentType", "ViewPosition", "ImageLaterality",
)  # fmt: skip


@dataclass(frozen=True)
class IndexRows:
    """The column values of the three levels."""

    study: dict[str, Any]
    series: dict[str, Any]
    instance: dict[str, Any]


def index_rows(header: Header, *, default_issuer: str = "") -> IndexRows:
    """What the index keeps of an instance. Values too long for a column are cut; the stored file has them whole."""
    dataset = header.dataset
    name, physician = text(dataset, "PatientName"), text(dataset, "ReferringPhysicianName")
    alphabetic, ideographic, phonetic = folds(name)
    return IndexRows(
        study=_fitted(
            Study,
            {
                "study_instance_uid": header.study_instance_uid,
                "patient_id": text(dataset, "PatientID"),
                "issuer_of_patient_id": text(dataset, "IssuerOfPatientID") or default_issuer,
                "patient_name": name,
                "patient_name_fold": alphabetic,
                "patient_name_ideographic_fold": ideographic,
                "patient_name_phonetic_fold": phonetic,
                "patient_name_latin": rough_name(name),
                "patient_name_sort": sort_key(name),
                "patient_birth_date": _date(dataset, "PatientBirthDate"),
                "patient_sex": text(dataset, "PatientSex"),
                "study_date": _date(dataset, "StudyDate"),
                "study_time": _time(dataset, "StudyTime"),
                "timezone_offset_from_utc": text(dataset, "TimezoneOffsetFromUTC"),
                "accession_number": text(dataset, "AccessionNumber"),
                "study_id": text(dataset, "StudyID"),
                "study_description": text(dataset, "StudyDescription"),
                "referring_physician_name": physician,
                "referring_physician_name_fold": folds(physician)[0],
                "referring_physician_name_latin": rough_name(physician),
                "institution_name": text(dataset, "InstitutionName"),
                "attributes": json_attributes(dataset, STUDY_ATTRIBUTES),
            },
        ),
        series=_fitted(
            Series,
            {
                "series_instance_uid": header.series_instance_uid,
                "modality": text(dataset, "Modality"),
                "series_number": integer(dataset, "SeriesNumber"),
                "series_description": text(dataset, "SeriesDescription"),
                "series_date": _date(dataset, "SeriesDate"),
                "series_time": _time(dataset, "SeriesTime"),
                "body_part_examined": text(dataset, "BodyPartExamined"),
                "station_name": text(dataset, "StationName"),
                "attributes": json_attributes(dataset, SERIES_ATTRIBUTES),
            },
        ),
        instance=_fitted(
            Instance,
            {
                "sop_instance_uid": header.sop_instance_uid,
                "sop_class_uid": header.sop_class_uid,
                "transfer_syntax_uid": header.transfer_syntax,
                "instance_number": integer(dataset, "InstanceNumber"),
                "number_of_frames": max(integer(dataset, "NumberOfFrames") or 1, 1),
                "rows": _unsigned(dataset, "Rows"),
                "columns": _unsigned(dataset, "Columns"),
                "size": header.total_length,
                "attributes": json_attributes(dataset, INSTANCE_ATTRIBUTES),
            },
        ),
    )


def integer(dataset: Dataset, keyword: str) -> int | None:
    """The first value of an element as a 32-bit integer, or None if it is absent or not one."""
    try:
        value = int(float(text(dataset, keyword).split("\\")[0]))
    except (ValueError, OverflowError):
        return None
    return value if -(2**31) <= value < 2**31 else None


def _date(dataset: Dataset, keyword: str) -> str:
    """A DA as YYYYMMDD, the retired form with dots too; "" for what is none: it would lie in no range."""
    return normal_form(text(dataset, keyword), "DA")


def _time(dataset: Dataset, keyword: str) -> str:
    """A TM without the colons of its retired form; "" for what is none."""
    value = text(dataset, keyword).replace(":", "")
    return value if normal_form(value, "TM") else ""


def _unsigned(dataset: Dataset, keyword: str) -> int | None:
    value = integer(dataset, keyword)
    return value if value is not None and value >= 0 else None


def json_attributes(dataset: Dataset, keywords: Iterable[str]) -> dict[str, Any]:
    """These attributes in the DICOM JSON Model, those that are absent or unreadable left out.

    Source: PS3.18 F.2
    """
    found: dict[str, Any] = {}
    for keyword in keywords:
        tag = tag_for_keyword(keyword)
        if tag is None or tag not in dataset:
            continue
        try:
            found[f"{tag:08X}"] = _without_nul(dataset[tag].to_json_dict(None, 0))
        except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError, OverflowError):
            continue  # one broken value must not cost the instance; the stored file keeps it as it came
    return found


def _without_nul(value: Any) -> Any:
    """JSON without U+0000, which PostgreSQL cannot hold, and without numbers that are not JSON."""
    if isinstance(value, str):
        return value.replace("\0", "")
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, dict):
        return {key: _without_nul(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nul(item) for item in value]
    return value


def _fitted(model: type[models.Model], values: dict[str, Any]) -> dict[str, Any]:
    fitted = {}
    for name, value in values.items():
        limit = getattr(model._meta.get_field(name), "max_length", None)
        fitted[name] = value.replace("\0", "")[:limit] if isinstance(value, str) else value
    return fitted

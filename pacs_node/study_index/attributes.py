"""From the header of an instance to the rows of the index: which attribute belongs to which level."""

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from math import isfinite
from typing import Any, Final

from django.db import models
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from pacs_node.study_index.models import Instance, Series, Study
from standards.data_dictionary import tag_of
from standards.matching import normal_form
from standards.part10 import UNREADABLE, Header, text
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


# What the columns of study and series are made of.
_STUDY_AND_SERIES: Final = (
    "SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
    "StudyInstanceUID", "StudyDate", "StudyTime", "TimezoneOffsetFromUTC", "AccessionNumber", "StudyID",
    "StudyDescription", "ReferringPhysicianName", "InstitutionName", "SeriesInstanceUID", "Modality", "SeriesNumber",
    "SeriesDescription", "SeriesDate", "SeriesTime", "BodyPartExamined", "StationName",
    *STUDY_ATTRIBUTES, *SERIES_ATTRIBUTES,
)  # fmt: skip
_REMEMBERED: Final = 1024


@dataclass(frozen=True)
class IndexRows:
    """The column values of the three levels. ``origin``: equal for two instances only if study and series are."""

    study: dict[str, Any]
    series: dict[str, Any]
    instance: dict[str, Any]
    origin: Hashable


def index_rows(header: Header, *, default_issuer: str = "") -> IndexRows:
    """What the index keeps of an instance. Values too long for a column are cut; the stored file has them whole.

    Study and series values are made once for all instances that say the same of them: nobody may change them.
    """
    dataset = header.dataset
    origin = (default_issuer, tuple(dataset.original_character_set or ()), _values(dataset, _tags(_STUDY_AND_SERIES)))
    with _lock:
        upper = _upper.get(origin)
    if upper is None:
        upper = (_study_row(header, default_issuer), _series_row(header))
        with _lock:
            _upper[origin] = upper
            if len(_upper) > _REMEMBERED:
                _upper.popitem(last=False)
    return IndexRows(*upper, _instance_row(header), origin)


_upper: OrderedDict[Hashable, tuple[dict[str, Any], dict[str, Any]]] = OrderedDict()
_lock = threading.Lock()


def _values(dataset: Dataset, tags: Iterable[BaseTag]) -> Hashable:
    """The values of these elements as they were read, sequences with all that is in them."""
    return tuple([None if element is None else _value(element) for element in map(dataset._dict.get, tags)])


def _value(element: RawDataElement | DataElement) -> Hashable:
    if isinstance(element, RawDataElement):
        return element.VR, element.value
    if element.VR == "SQ":
        return tuple((tuple(item._dict), _values(item, item._dict)) for item in element.value)
    return element.VR, str(element.value)


def _study_row(header: Header, default_issuer: str) -> dict[str, Any]:
    dataset = header.dataset
    name, physician = text(dataset, "PatientName"), text(dataset, "ReferringPhysicianName")
    return _fitted(
        Study,
        {
            "study_instance_uid": header.study_instance_uid,
            "patient_id": text(dataset, "PatientID"),
            "issuer_of_patient_id": text(dataset, "IssuerOfPatientID") or default_issuer,
            **_name_columns(name),
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
    )


def _series_row(header: Header) -> dict[str, Any]:
    dataset = header.dataset
    return _fitted(
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
    )


def _instance_row(header: Header) -> dict[str, Any]:
    dataset = header.dataset
    return _fitted(
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
    )


def _name_columns(name: str) -> dict[str, str]:
    alphabetic, ideographic, phonetic = folds(name)
    return {
        "patient_name": name,
        "patient_name_fold": alphabetic,
        "patient_name_ideographic_fold": ideographic,
        "patient_name_phonetic_fold": phonetic,
        "patient_name_latin": rough_name(name),
        "patient_name_sort": sort_key(name),
    }


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
    raw = dataset._dict.get(_tags((keyword,))[0])
    if isinstance(raw, RawDataElement) and raw.VR == "US" and raw.value is not None and len(raw.value) == 2:
        return int.from_bytes(raw.value, "little" if raw.is_little_endian else "big")
    value = integer(dataset, keyword)
    return value if value is not None and value >= 0 else None


def json_attributes(dataset: Dataset, keywords: tuple[str, ...]) -> dict[str, Any]:
    """These attributes in the DICOM JSON Model, those that are absent or unreadable left out.

    Source: PS3.18 F.2
    """
    found: dict[str, Any] = {}
    present = dataset._dict
    for tag in (tag for tag in _tags(keywords) if tag in present):
        raw = present[tag]
        try:
            if isinstance(raw, RawDataElement) and len(raw.value or b"") < 256 and (raw.value or b"").isascii():
                found[f"{tag:08X}"] = _raw_json(raw)
            else:
                found[f"{tag:08X}"] = _without_nul(dataset[tag].to_json_dict(None, 0))
        except UNREADABLE:
            continue  # one broken value must not cost the instance; the stored file keeps it as it came
    return found


@cache
def _tags(keywords: tuple[str, ...]) -> tuple[BaseTag, ...]:
    return tuple(tag_of(tag) for keyword in keywords if (tag := tag_for_keyword(keyword)) is not None)


def _raw_json(raw: RawDataElement) -> dict[str, Any]:
    """An element that is all ASCII, whatever the character set. What changes from slice to slice is read directly."""
    value = (raw.value or b"").strip(b" \0")
    if raw.VR == "DS" and value:
        numbers = [float(part) for part in value.split(b"\\")]
        if all(map(isfinite, numbers)):
            return {"vr": "DS", "Value": numbers}
    elif raw.VR in ("DA", "TM", "UI", "CS") and value and b"\\" not in value:
        return {"vr": raw.VR, "Value": [value.decode("ascii")]}
    return _remembered_json(raw._replace(value_tell=0))


@lru_cache(4096)
def _remembered_json(raw: RawDataElement) -> dict[str, Any]:
    """What all images of a series say is converted once; nobody changes the answer."""
    return dict(_without_nul(Dataset({raw.tag: raw})[raw.tag].to_json_dict(None, 0)))


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
    limits = _limits(model)
    return {
        name: value.replace("\0", "")[: limits[name]] if isinstance(value, str) else value
        for name, value in values.items()
    }


@cache
def _limits(model: type[models.Model]) -> dict[str, int | None]:
    return {field.name: getattr(field, "max_length", None) for field in model._meta.get_fields()}

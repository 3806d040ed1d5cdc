"""Rows of the catalogue in the DICOM JSON Model.

Source: PS3.18 F.2, PS3.18 10.6.3.3
"""

from typing import Any

from ris_central.catalogue.dicomweb.holding import Holding
from ris_central.catalogue.models import Series, Study

Attributes = dict[str, dict[str, Any]]


def element(vr: str, *values: object) -> dict[str, Any]:
    """An element of the JSON model; empty values are left out, as the standard wants."""
    kept = [value for value in values if value not in (None, "")]
    if vr == "PN":
        kept = [_name(str(value)) for value in kept]
    return {"vr": vr, "Value": kept} if kept else {"vr": vr}


def _name(value: str) -> dict[str, str]:
    groups = dict(zip(("Alphabetic", "Ideographic", "Phonetic"), value.split("="), strict=False))
    return {key: text for key, text in groups.items() if text}


def of_study(study: Study, patient_id: str, series_count: int, root: str) -> Attributes:
    """What QIDO-RS answers for a study. ``root`` is the absolute URL of ``/dicom-web``."""
    birth = study.patient.birth_date
    return {
        "00080005": element("CS", "ISO_IR 192"),
        "00080020": element("DA", study.study_date),
        "00080030": element("TM", study.study_time),
        "00080050": element("SH", study.accession_number),
        "00080061": element("CS", *study.modalities),
        "00080080": element("LO", study.institution_name),
        "00080090": element("PN", study.referring_physician_name),
        "00081030": element("LO", study.study_description),
        "00081190": element("UR", f"{root}/studies/{study.study_instance_uid}"),
        "00100010": element("PN", study.patient.name),
        "00100020": element("LO", patient_id),
        "00100021": element("LO", study.issuer_of_patient_id),
        "00100030": element("DA", f"{birth:%Y%m%d}" if birth else ""),
        "00100040": element("CS", study.patient.sex),
        "0020000D": element("UI", study.study_instance_uid),
        "00200010": element("SH", study.study_id),
        "00201206": element("IS", series_count),
        "00201208": element("IS", study.instances_known or getattr(study, "foreign_count", None)),
    }


def of_series(series: Series, study_instance_uid: str, root: str) -> Attributes:
    """What QIDO-RS answers for a series."""
    return {
        "00080005": element("CS", "ISO_IR 192"),
        "00080021": element("DA", series.series_date),
        "00080031": element("TM", series.series_time),
        "00080060": element("CS", series.modality),
        "0008103E": element("LO", series.series_description),
        "00180015": element("CS", series.body_part_examined),
        "00081190": element("UR", f"{root}/studies/{study_instance_uid}/series/{series.series_instance_uid}"),
        "0020000D": element("UI", study_instance_uid),
        "0020000E": element("UI", series.series_instance_uid),
        "00200011": element("IS", series.series_number),
        "00201209": element("IS", series.instance_count),
    }


PRIVATE_CREATOR = "REGIS"


def of_holders(holding: Holding, *, listed_elsewhere: bool = False) -> Attributes:
    """Who holds it: AE titles, how quickly it can be had, and, in a private block, names of nodes and their counts.

    ``listed_elsewhere``: a PACS outside the region lists it; what only that has must be fetched from there.
    """
    is_foreign = listed_elsewhere and not holding.nodes
    return {
        "00080054": element("AE", *(node.ae_title for node, _ in holding.nodes)),
        "00080056": element("CS", "NEARLINE" if is_foreign else holding.availability),
        "00090010": element("LO", PRIVATE_CREATOR),
        "00091001": element("LO", *(node.name for node, _ in holding.nodes)),
        "00091002": element("IS", *(count for _, count in holding.nodes)),
    }

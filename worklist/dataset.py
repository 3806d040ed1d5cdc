"""A scheduled step as the attributes of the Modality Worklist.

Source: PS3.4 K.6.1.2.2 (Table K.6-1)
"""

from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from worklist.feed import WorklistItem

LIMITS: Final = {"SH": 16, "LO": 64, "CS": 16, "AE": 16}
_PERSON_NAME_GROUP: Final = 64
_PRIORITIES: Final = {"STAT", "HIGH", "ROUTINE", "MEDIUM", "LOW"}


def item_dataset(item: WorklistItem) -> Dataset:
    """The whole item in Unicode; dates and times are those of the site's zone."""
    starts = local(item)
    step = Dataset()
    step.ScheduledStationAETitle = item.scheduled_station_ae_title
    step.ScheduledProcedureStepStartDate = starts.strftime("%Y%m%d")
    step.ScheduledProcedureStepStartTime = starts.strftime("%H%M%S")
    ends = item.ends_at.astimezone(ZoneInfo(item.time_zone))
    step.ScheduledProcedureStepEndDate = ends.strftime("%Y%m%d")
    step.ScheduledProcedureStepEndTime = ends.strftime("%H%M%S")
    step.Modality = item.modality
    step.ScheduledPerformingPhysicianName = item.scheduled_performing_physician_name
    step.ScheduledProcedureStepDescription = item.scheduled_procedure_step_description
    step.ScheduledProcedureStepID = item.scheduled_procedure_step_id
    step.ScheduledStationName = item.scheduled_station_name
    step.ScheduledProcedureStepLocation = ""
    step.ScheduledProcedureStepStatus = item.status
    step.ScheduledProtocolCodeSequence = []
    step.PreMedication = ""
    step.RequestedContrastAgent = ""

    dataset = Dataset()
    dataset.ScheduledProcedureStepSequence = [step]
    dataset.RequestedProcedureID = item.requested_procedure_id
    dataset.RequestedProcedureDescription = item.requested_procedure_description
    dataset.RequestedProcedureCodeSequence = []
    dataset.RequestedProcedurePriority = (
        item.requested_procedure_priority if item.requested_procedure_priority in _PRIORITIES else ""
    )
    dataset.StudyInstanceUID = item.study_instance_uid
    dataset.ReferencedStudySequence = []
    dataset.PatientTransportArrangements = ""
    dataset.ReasonForTheRequestedProcedure = item.reason_for_the_requested_procedure
    dataset.AccessionNumber = item.accession_number
    dataset.RequestingPhysician = item.referring_physician_name
    dataset.ReferringPhysicianName = item.referring_physician_name
    dataset.InstitutionName = item.institution_name
    dataset.AdmissionID = ""
    dataset.CurrentPatientLocation = ""
    dataset.ReferencedPatientSequence = []
    dataset.PatientName = item.patient_name
    dataset.PatientID = item.patient_id
    dataset.IssuerOfPatientID = item.issuer_of_patient_id
    dataset.PatientBirthDate = item.patient_birth_date
    dataset.PatientSex = item.patient_sex
    dataset.PatientWeight = item.patient_weight_kg
    dataset.ConfidentialityConstraintOnPatientDataDescription = ""
    dataset.PatientState = ""
    dataset.PregnancyStatus = item.pregnancy_status
    dataset.MedicalAlerts = item.medical_alerts
    dataset.Allergies = item.allergies
    dataset.SpecialNeeds = ""
    return fitted(dataset)


def local(item: WorklistItem) -> datetime:
    """When the step starts, on the clock of the site."""
    return item.starts_at.astimezone(ZoneInfo(item.time_zone))


def fitted(dataset: Dataset) -> Dataset:
    """``dataset`` with texts cut to the length of their VR, counted in characters; changed in place.

    Transliteration makes names longer (Щ is Shch), and devices refuse a whole answer for one value that is too long.
    Source: PS3.5 6.2
    """
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                fitted(item)
        elif element.VR == "PN" and element.value:
            groups = [group[:_PERSON_NAME_GROUP] for group in str(element.value).split("=")]
            dataset[element.tag] = _same_kind(element, "=".join(groups))
        elif element.VR in LIMITS and isinstance(element.value, str):
            dataset[element.tag] = _same_kind(element, element.value[: LIMITS[element.VR]])
    return dataset


def _same_kind(element: DataElement, value: str) -> DataElement:
    return DataElement(element.tag, element.VR, value)

"""The wire form of the schedule feed: what the centre tells a node to put on its Modality Worklist.

Source: PS3.4 K.6.1.2 (attributes of the Modality Worklist).
"""

from pydantic import AwareDatetime, BaseModel, ConfigDict


class WorklistItem(BaseModel):
    """One Scheduled Procedure Step with the order and the patient it belongs to.

    Text is Unicode; the SCP encodes it in the character set of the device that asks. ``starts_at`` carries its zone;
    ``time_zone`` is the site's IANA zone, in which DICOM dates and times are written.
    """

    model_config = ConfigDict(frozen=True)

    scheduled_procedure_step_id: str
    scheduled_procedure_step_description: str = ""
    scheduled_station_ae_title: str
    scheduled_station_name: str = ""
    scheduled_performing_physician_name: str = ""
    modality: str
    starts_at: AwareDatetime
    ends_at: AwareDatetime
    time_zone: str = "Europe/Moscow"
    status: str = "SCHEDULED"

    accession_number: str
    requested_procedure_id: str
    requested_procedure_description: str = ""
    study_instance_uid: str
    referring_physician_name: str = ""
    reason_for_the_requested_procedure: str = ""
    requested_procedure_priority: str = "ROUTINE"
    institution_name: str = ""

    patient_name: str
    patient_id: str
    issuer_of_patient_id: str = ""
    patient_birth_date: str = ""
    patient_sex: str = ""
    medical_alerts: str = ""
    allergies: str = ""
    pregnancy_status: int | None = None
    patient_weight_kg: float | None = None


class DeviceRules(BaseModel):
    """What a node knows of an application entity that may talk to it.

    ``character_set`` is what the device reads and, when it sends none of its own, what it is assumed to write.
    ``host``/``port`` are needed only for C-MOVE destinations; ``address`` limits where the AE may call from.
    """

    model_config = ConfigDict(frozen=True)

    ae_title: str
    modality: str = ""
    character_set: str = "ISO_IR 192"
    issuer_of_patient_id: str = ""
    time_zone: str = "Europe/Moscow"
    address: str = ""
    host: str = ""
    port: int = 0
    may_store: bool = True
    may_query: bool = True
    may_retrieve: bool = True

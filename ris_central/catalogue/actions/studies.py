"""Finding the study that a node means, alone; and what a node says of it, as fields of ours."""

from django.db import connection

from gateway.envelope import StudyDescription
from ris_central.catalogue.models import Study


def lock_study(study_instance_uid: str) -> None:
    """Let one transaction at a time write to the studies of this UID."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [study_instance_uid])


def known_study(study_instance_uid: str, patient_id: str) -> Study | None:
    """The study of this UID under this patient id, as a node that knows no issuer can name it."""
    return (
        Study.objects.select_for_update(of=("self",))
        .select_related("site")
        .filter(study_instance_uid=study_instance_uid, dicom_patient_id=patient_id)
        .order_by("id")
        .first()
    )


def study_values(description: StudyDescription) -> dict[str, str]:
    """Fields of ``Study`` as a node tells them."""
    return {
        "study_date": description.study_date,
        "study_time": description.study_time,
        "accession_number": description.accession_number,
        "study_id": description.study_id,
        "study_description": description.study_description[:256],
        "referring_physician_name": description.referring_physician_name[:324],
        "institution_name": description.institution_name[:256],
    }

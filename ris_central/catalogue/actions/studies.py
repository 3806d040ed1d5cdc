"""Finding the study that a node means, alone; and what a node says of it, as fields of ours."""

from collections.abc import Iterable

from django.db import connection

from gateway.envelope import StudyDescription
from ris_central.catalogue.models import Study
from ris_central.federation.prepared import execute


def lock_study(study_instance_uid: str) -> None:
    """Let one transaction at a time write to the studies of this UID."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [study_instance_uid])


def lock_studies(study_instance_uids: Iterable[str]) -> dict[tuple[str, str], Study]:
    """As ``lock_study``, several in the order that all keep; the studies of these UIDs by UID and device's patient id.

    The rows are locked as well, so that nobody completes or settles them meanwhile.
    """
    values = {"uids": sorted(study_instance_uids)}
    execute(
        "SELECT count(pg_advisory_xact_lock(hashtextextended(uid, 0))) FROM unnest(%(uids)s::text[]) AS uid", values
    )
    fields = [field.attname for field in Study._meta.concrete_fields]
    rows = execute(
        f"SELECT {', '.join(fields)} FROM catalogue_study WHERE study_instance_uid = ANY(%(uids)s::text[])"  # noqa: S608
        " ORDER BY id DESC FOR NO KEY UPDATE",
        values,
    )
    studies = [Study.from_db(connection.alias, fields, row) for row in rows]
    return {(study.study_instance_uid, study.dicom_patient_id): study for study in studies}


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

"""Bring signed documents into the archive. The rows themselves are the outbox: nothing is lost with a worker."""

from datetime import timedelta

import structlog
from celery import shared_task
from django.db import transaction
from django.utils import timezone

from ris_central.catalogue.archive import store
from ris_central.reporting.documents.rendering import as_dicom
from ris_central.reporting.models import ReportDocument
from standards.errors import PermanentError, TransientError

PERIODIC = {"reporting-store": {"task": "reporting.store_documents", "schedule": 3.0, "options": {"expires": 3}}}
_LONGEST = 900.0
_LEASE = timedelta(minutes=2)

log = structlog.get_logger()


@shared_task(name="reporting.store_documents")
def store_documents() -> None:
    """Store every document that is due. Each is taken by one worker; one failure stops no other."""
    due = ReportDocument.objects.filter(stored_at=None, next_attempt_at__lte=timezone.now())
    for key in list(due.order_by("next_attempt_at").values_list("pk", flat=True)[:50]):
        store_document(key)


def store_document(key: int) -> bool:
    """Store one document unless another worker has it or it is not due; whether the archive has it now.

    The lease ends by itself, so a worker that dies holds nothing up; the object is the same each time it is sent.
    """
    with transaction.atomic():
        document = (
            ReportDocument.objects.select_for_update(skip_locked=True, of=("self",))
            .filter(pk=key, stored_at=None, next_attempt_at__lte=timezone.now())
            .first()
        )
        if document is None:
            return False
        document.attempts += 1
        document.next_attempt_at = timezone.now() + _LEASE
        document.save(update_fields=["attempts", "next_attempt_at"])
    document = ReportDocument.objects.select_related("report__study__patient", "report__study__site").get(pk=key)
    try:
        store(document.report.study.study_instance_uid, as_dicom(document))
    except (TransientError, PermanentError) as error:
        # What the archive refuses for good is tried too, rarely: after a person has acted there it goes through.
        wait = _LONGEST if isinstance(error, PermanentError) else min(3.0 * 2 ** min(document.attempts, 10), _LONGEST)
        document.next_attempt_at = timezone.now() + timedelta(seconds=wait)
        document.last_error = str(error)[:255]
        document.save(update_fields=["next_attempt_at", "last_error"])
        log.warning("report-not-stored", document=document.pk, code=error.code, attempts=document.attempts)
        return False
    document.stored_at, document.last_error = timezone.now(), ""
    document.save(update_fields=["stored_at", "last_error"])
    return True

"""What the catalogue does by itself every few seconds."""

from datetime import timedelta

import structlog
from celery import shared_task
from django.core.cache import cache
from django.db import DatabaseError
from django.utils import timezone

from ris_central.catalogue.actions.arrivals import adopt_parked
from ris_central.catalogue.actions.manifests import complete, quiet_studies, settle, settled_studies, verify
from ris_central.catalogue.models import ParkedEvent
from standards.errors import RegisError

PERIODIC = {
    "catalogue-settle": {"task": "catalogue.settle", "schedule": 3.0, "options": {"expires": 3}},
    "catalogue-verify": {"task": "catalogue.verify", "schedule": 10.0, "options": {"expires": 10}},
}
VERIFIED = "catalogue.manifests-verified"
PARKED_FOR = timedelta(seconds=60)
"""How long the archive's word on a study waits for the clinic's; after that the study is the archive's own."""

log = structlog.get_logger()


@shared_task(name="catalogue.settle")
def settle_studies() -> None:
    """Complete quiet studies, settle safe ones, adopt those that only the archive knows. One failure stops no other."""
    now = timezone.now()
    for study_key in quiet_studies(now):
        complete(study_key)
    for study_key in settled_studies():
        settle(study_key)
    waiting = ParkedEvent.objects.select_related("node__site").filter(parked_at__lt=now - PARKED_FOR)
    for parked in waiting.order_by("id")[:50]:
        try:
            adopt_parked(parked)
        except (RegisError, DatabaseError) as error:
            log.warning("study-not-adopted", study=parked.study_instance_uid, error=str(error))


@shared_task(name="catalogue.verify")
def verify_manifests() -> None:
    """Hold some manifests against their root hashes, where the last look ended: a million takes some six hours."""
    cache.set(VERIFIED, verify(cache.get(VERIFIED, 0)), None)

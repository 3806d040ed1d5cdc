"""Priors of the patients of today and tomorrow are fetched back before anybody asks for them."""

from datetime import timedelta
from typing import Final

import structlog
from django.db.models import Exists, OuterRef
from django.utils import timezone

from gateway.registry import every
from pacs_node.clinic.models import WorklistEntry
from pacs_node.config import config
from pacs_node.storage.stores import storage
from pacs_node.study_index.models import Instance, Study
from pacs_node.study_index.recalling import recall_study
from standards.errors import RegisError

log = structlog.get_logger(__name__)

_SECONDS: Final = 900.0
_MOST_STUDIES: Final = 20
"""A patient's latest so many."""


def wanted_priors() -> list[str]:
    """Study Instance UIDs of recent studies that are away, of the patients on the worklist until tomorrow's end."""
    years = config().prefetch_years
    if not years:
        return []
    now = timezone.localtime()
    end = (now + timedelta(days=2)).replace(hour=0, minute=0, second=0, microsecond=0)
    oldest = f"{now:%Y%m%d}".replace(f"{now:%Y}", f"{now.year - years:04}", 1)
    away = Instance.objects.filter(series__study=OuterRef("pk"), released_at=None, holding__away_at__isnull=False)
    found: dict[str, None] = {}
    entries = WorklistEntry.objects.filter(starts_at__gte=now - timedelta(hours=12), starts_at__lt=end)
    for item in entries.order_by("starts_at").values_list("item", flat=True):
        patient_id, issuer = item.get("patient_id", ""), item.get("issuer_of_patient_id", "")
        if not patient_id:
            continue
        studies = Study.objects.filter(Exists(away), patient_id=patient_id, study_date__gte=oldest)
        if issuer:
            studies = studies.filter(issuer_of_patient_id__in=("", issuer))
        for uid in studies.order_by("-study_date").values_list("study_instance_uid", flat=True)[:_MOST_STUDIES]:
            found[uid] = None
    return list(found)


def prefetch() -> int:
    """Fetch them back while there is space above the mark at which tiering begins; how many instances came."""
    came, store = 0, storage()
    for uid in wanted_priors():
        if store.watermarks.wanted(store.total_bytes(), store.free_bytes()):
            log.warning("no-space-to-prefetch", study_instance_uid=uid)
            break
        try:
            back, failed = recall_study(uid)
        except RegisError as error:
            log.warning("prefetch-stopped", study_instance_uid=uid, error=str(error))
            break
        came += back
        if failed:
            log.warning("prefetch-incomplete", study_instance_uid=uid, missing=len(failed), error=failed[0])
    return came


def _run() -> None:
    if came := prefetch():
        log.info("priors-prefetched", instances=came)


def register() -> None:
    """Called once, when the app is ready."""
    every(_SECONDS, _run)

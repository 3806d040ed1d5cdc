"""Completeness: a quiet study is complete; once the archive has all of it, its rows become manifests."""

from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from ris_central.audit.actions import record
from ris_central.catalogue.actions.announcing import announce_changed
from ris_central.catalogue.models import InstanceHolding, Manifest, Series, SeriesHolder, SeriesInstance, Study
from ris_central.federation.prepared import execute
from ris_central.orders.actions import steps_completed
from standards.digests import root_hash

VERIFIED_AT_ONCE = 500
_FIELDS = (
    "sop_instance_uid",
    "sop_class_uid",
    "transfer_syntax_uid",
    "dataset_sha256",
    "pixel_sha256",
    "frames_sha256",
    "instance_number",
    "number_of_frames",
    "size",
)


def quiet_studies(now: datetime) -> list[int]:
    """Keys of studies that are not complete and got no instance for the quiet period."""
    before = now - timedelta(seconds=settings.CONFIG.study_quiet_seconds)
    return list(
        Study.objects.filter(complete_at=None, last_instance_at__lt=before, instances_known__gt=0)
        .order_by("last_instance_at")
        .values_list("pk", flat=True)[:200]
    )


def settled_studies() -> list[int]:
    """Keys of complete studies of which the archive has all, and that still have rows."""
    rows = SeriesInstance.objects.filter(
        series__study__complete_at__isnull=False,
        series__study__instances_safe=F("series__study__instances_known"),
    )
    return list(rows.order_by().values_list("series__study_id", flat=True).distinct()[:200])


@transaction.atomic
def complete(study_key: int, *, now: datetime | None = None) -> bool:
    """Mark a study complete unless something came meanwhile; whether it was."""
    now = now or timezone.now()
    before = now - timedelta(seconds=settings.CONFIG.study_quiet_seconds)
    study = (
        Study.objects.select_for_update(of=("self",))
        .select_related("service_request")
        .filter(pk=study_key, complete_at=None, last_instance_at__lt=before)
        .first()
    )
    if study is None:
        return False
    study.complete_at = now
    study.save(update_fields=["complete_at"])
    if study.service_request is not None:
        steps_completed(study.service_request)
    announce_changed(study)
    return True


@transaction.atomic
def settle(study_key: int) -> int:
    """Turn the rows of a complete study, safe at the archive, into a manifest a series; how many series were."""
    study = Study.objects.select_for_update().filter(pk=study_key, complete_at__isnull=False).first()
    if study is None or study.instances_safe != study.instances_known:
        return 0
    settled = 0
    for series in study.series.filter(instances__isnull=False).distinct():
        entries = [
            dict(zip(_FIELDS, row, strict=True))
            for row in series.instances.order_by("instance_number", "sop_instance_uid").values_list(*_FIELDS)
        ]
        latest = series.manifests.order_by("-version").first()
        Manifest.objects.create(
            series=series,
            version=latest.version + 1 if latest else 1,
            count=len(entries),
            root_hash=root_hash((entry["sop_instance_uid"], entry["dataset_sha256"]) for entry in entries),
            entries=entries,
        )
        series.instances.all().delete()
        settled += 1
    return settled


_DAMAGED = """
SELECT m.series_id FROM (SELECT * FROM catalogue_manifest WHERE id > %(after)s AND id <= %(to)s) AS m
WHERE NOT EXISTS (SELECT FROM catalogue_manifest n WHERE n.series_id = m.series_id AND n.version > m.version)
  AND m.count || ' ' || m.root_hash <> (
    SELECT count(*) || ' ' || encode(sha256(convert_to(coalesce(string_agg(
      e.sop_instance_uid || ' ' || e.dataset_sha256 || chr(10), ''
      ORDER BY e.sop_instance_uid COLLATE "C", e.dataset_sha256 COLLATE "C"), ''), 'UTF8')), 'hex')
    FROM jsonb_to_recordset(m.entries) AS e(sop_instance_uid text, dataset_sha256 text))
ORDER BY m.series_id
"""


@transaction.atomic
def verify(after: int) -> int:
    """Hold the next manifests against their own root hashes; the key of the last one, 0 after the very last.

    What is told of a series whose manifest was damaged is believed no more, so that the next reconciliation with every
    holder finds a difference, and has the series told anew.
    """
    keys = Manifest.objects.filter(pk__gt=after).order_by("pk").values_list("pk", flat=True)[:VERIFIED_AT_ONCE]
    last = max(keys, default=0)
    for (series_key,) in execute(_DAMAGED, {"after": after, "to": last}):
        series = Series.objects.select_related("study").get(pk=series_key)
        holders = SeriesHolder.objects.filter(series=series, count__gt=0).exclude(root_hash="")
        if holders.update(root_hash=""):
            record(
                "manifest.damaged", actor="centre", entity=series.study, detail={"series": series.series_instance_uid}
            )
    return last


def rehydrate(series: Series) -> None:
    """Make rows of the newest manifest again, with the holders that have all of it, because the series changes."""
    if series.instances.exists():
        return
    manifest = series.manifests.order_by("-version").first()
    if manifest is None:
        return
    rows = SeriesInstance.objects.bulk_create([SeriesInstance(series=series, **entry) for entry in manifest.entries])
    nodes = series.holders.filter(root_hash=manifest.root_hash, count=manifest.count).values_list("node_id", flat=True)
    InstanceHolding.objects.bulk_create(
        [InstanceHolding(instance=row, node_id=node) for node in nodes for row in rows], batch_size=5000
    )

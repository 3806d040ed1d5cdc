"""The figures of the region: taken down by the clock, so that a page reads a few hundred rows however big it grows.

Studies a day and modality are recounted for the days that changed; volumes follow the manifests in the order in which
they were made; nodes are sampled. Nothing here scans studies or instances when somebody looks.
"""

from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models import Count, F, Max, Min, Sum
from django.utils import timezone

from ris_central.accounts.models import User
from ris_central.catalogue.models import Study
from ris_central.federation import queries as federation
from ris_central.federation.models import Node
from ris_central.monitoring.models import NodeSample, Progress, SiteVolume, StudyCount
from ris_central.orders.models import Device
from ris_central.organizations import queries as organizations
from ris_central.organizations.models import Site

SAMPLE_SECONDS = 300
FULL_DETAIL = timedelta(days=2)
KEPT = timedelta(days=400)
MANIFESTS_AT_ONCE = 2000
SETTLED = timedelta(minutes=2)
"""A manifest that is younger may have one before it that is not committed yet."""
FORECAST_OVER = timedelta(days=14)
FORECAST_SPAN = timedelta(hours=12)
"""From less than this nothing is foretold."""
AVERAGE_DAYS = 30
NOT_IMAGING = ("SR", "KO", "PR", "SEG", "REG", "RTSTRUCT", "RTPLAN", "RTDOSE", "DOC", "OT", "AU", "")


@transaction.atomic
def sample(now: datetime | None = None) -> int:
    """Take down how every node was when it was last heard; how many samples. A silent node has none."""
    now = (now or timezone.now()).replace(microsecond=0)
    rows = []
    for node in Node.objects.filter(last_seen_at__gte=now - timedelta(seconds=2 * SAMPLE_SECONDS)):
        told: dict[str, Any] = node.status or {}
        if "free_bytes" in told:
            rows.append(
                NodeSample(
                    node=node,
                    at=now,
                    free_bytes=told["free_bytes"],
                    stored_bytes=told.get("stored_bytes"),
                    stored_instances=told.get("stored_instances") or 0,
                    events_waiting=told.get("events_waiting") or 0,
                    deliveries_waiting=told.get("deliveries_waiting") or 0,
                    oldest_waiting_seconds=told.get("oldest_waiting_seconds") or 0,
                )
            )
    return len(NodeSample.objects.bulk_create(rows, ignore_conflicts=True))


def prune(now: datetime | None = None) -> int:
    """Keep every sample two days, one an hour after that, none after 400 days; how many went."""
    now = now or timezone.now()
    gone = NodeSample.objects.filter(at__lt=now - KEPT).delete()[0]
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM monitoring_nodesample s WHERE s.at < %s AND EXISTS (SELECT 1 FROM monitoring_nodesample o"
            " WHERE o.node_id = s.node_id AND o.at > s.at AND date_trunc('hour', o.at) = date_trunc('hour', s.at))",
            [now - FULL_DETAIL],
        )
        return gone + int(cursor.rowcount)


_COUNT = """
WITH placed AS (
  SELECT s.site_id, s.modalities,
         (COALESCE(s.started_at, s.first_seen_at) AT TIME ZONE t.time_zone)::date AS day
  FROM catalogue_study s JOIN organizations_site t ON t.id = s.site_id
  WHERE s.instances_known > 0 {where}  -- what only a PACS outside the region lists was not made at our devices
), counted AS (
  SELECT site_id, day, '' AS modality, count(*) AS studies FROM placed GROUP BY 1, 2
  UNION ALL
  SELECT site_id, day, m, count(*) FROM placed CROSS JOIN LATERAL
    (SELECT DISTINCT unnest(modalities) AS m) AS u WHERE m <> '' GROUP BY 1, 2, 3
)
INSERT INTO monitoring_studycount (site_id, day, modality, studies) SELECT site_id, day, modality, studies FROM counted
"""


@transaction.atomic
def count_studies(*, everything: bool = False, now: datetime | None = None) -> None:
    """Count anew the days of studies that something came for since the last time; every day if ``everything``."""
    now = now or timezone.now()
    progress, _ = Progress.objects.select_for_update().get_or_create(name="studies")
    if everything or progress.at is None:
        StudyCount.objects.all().delete()
        with connection.cursor() as cursor:
            cursor.execute(_COUNT.format(where=""))
    else:
        _count_changed(progress.at - SETTLED)
    progress.at = now
    progress.save(update_fields=["at"])


def _count_changed(since: datetime) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT DISTINCT s.site_id, (COALESCE(s.started_at, s.first_seen_at) AT TIME ZONE t.time_zone)::date,"
            " t.time_zone FROM catalogue_study s JOIN organizations_site t ON t.id = s.site_id"
            " WHERE s.last_instance_at >= %s",
            [since],
        )
        for site, day, zone in cursor.fetchall():
            StudyCount.objects.filter(site=site, day=day).delete()
            edges = [day, zone, day + timedelta(days=1), zone]
            where = (
                "AND s.site_id = %s AND ("
                " s.started_at >= (%s::timestamp AT TIME ZONE %s) AND s.started_at < (%s::timestamp AT TIME ZONE %s)"
                " OR s.started_at IS NULL AND s.first_seen_at >= (%s::timestamp AT TIME ZONE %s)"
                " AND s.first_seen_at < (%s::timestamp AT TIME ZONE %s))"
            )
            cursor.execute(_COUNT.format(where=where), [site, *edges, *edges])


_NEW_BYTES = """
SELECT s.site_id,
       sum(m.sign * (SELECT COALESCE(sum((e->>'size')::bigint), 0) FROM jsonb_array_elements(m.entries) e)),
       sum(m.sign * m.count)
FROM (
  SELECT id, series_id, entries, count, 1 AS sign FROM catalogue_manifest WHERE id > %s AND id <= %s
  UNION ALL
  SELECT o.id, o.series_id, o.entries, o.count, -1 FROM catalogue_manifest n
    JOIN catalogue_manifest o ON o.series_id = n.series_id AND o.version = n.version - 1
  WHERE n.id > %s AND n.id <= %s
) m JOIN catalogue_series r ON r.id = m.series_id JOIN catalogue_study s ON s.id = r.study_id
GROUP BY s.site_id
"""


@transaction.atomic
def add_volumes(now: datetime | None = None) -> int:
    """Add what the manifests made since the last time take to their sites; how many manifests were looked at."""
    now = now or timezone.now()
    progress, _ = Progress.objects.select_for_update().get_or_create(name="manifests")
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id FROM catalogue_manifest WHERE id > %s AND created_at < %s ORDER BY id LIMIT %s",
            [progress.position, now - SETTLED, MANIFESTS_AT_ONCE],
        )
        keys = [row[0] for row in cursor.fetchall()]
        if not keys:
            return 0
        span = [progress.position, keys[-1]]
        cursor.execute(_NEW_BYTES, span + span)
        for site, size, instances in cursor.fetchall():
            SiteVolume.objects.get_or_create(site_id=site)
            SiteVolume.objects.filter(site_id=site).update(
                bytes=F("bytes") + size, instances=F("instances") + instances
            )
    progress.position, progress.at = keys[-1], now
    progress.save(update_fields=["position", "at"])
    return len(keys)


_NEWEST = """
SELECT s.site_id, sum({what}) FROM (SELECT DISTINCT ON (series_id) id, series_id FROM catalogue_manifest WHERE id <= %s
      ORDER BY series_id, version DESC) n
JOIN catalogue_manifest m ON m.id = n.id
JOIN catalogue_series r ON r.id = m.series_id JOIN catalogue_study s ON s.id = r.study_id
WHERE %s::bigint[] IS NULL OR s.site_id = ANY(%s)
GROUP BY 1
"""
_SIZE = "(SELECT sum((e->>'size')::bigint) FROM jsonb_array_elements(m.entries) e)"


@transaction.atomic
def mend_volumes() -> int:
    """Count the volumes of those sites anew whose manifests are not those that were added up, because studies were
    deleted, or belong to another site since; how many sites. Counts are compared, so that sizes are read of few."""
    progress, _ = Progress.objects.select_for_update().get_or_create(name="manifests")
    with connection.cursor() as cursor:
        cursor.execute(_NEWEST.format(what="m.count"), [progress.position, None, None])
        present: dict[int, int] = {site: int(count) for site, count in cursor.fetchall()}
        believed = dict(SiteVolume.objects.values_list("site_id", "instances"))
        wrong = [site for site in {*present, *believed} if present.get(site, 0) != believed.get(site, 0)]
        cursor.execute(_NEWEST.format(what=_SIZE), [progress.position, wrong, wrong])
        sizes = dict(cursor.fetchall())
    for site in wrong:
        SiteVolume.objects.update_or_create(
            site_id=site, defaults={"bytes": int(sizes.get(site) or 0), "instances": present.get(site, 0)}
        )
    return len(wrong)


@transaction.atomic
def measure_mirrors() -> None:
    """How much of what each site made is safe at the archive: the one look over all studies, taken by the clock."""
    safe = (
        Study.objects.order_by()
        .values("site")
        .filter(instances_known__gt=0)
        .annotate(known=Sum("instances_known"), safe=Sum("instances_safe"), studies=Count("pk"))
    )
    behind = {
        row["site"]: row
        for row in Study.objects.filter(instances_safe__lt=F("instances_known"))
        .order_by()
        .values("site")
        .annotate(n=Count("pk"), since=Min("last_instance_at"))
    }
    for row in safe:
        late: dict[str, Any] = dict(behind.get(row["site"], {}))
        SiteVolume.objects.update_or_create(
            site_id=row["site"],
            defaults={
                "studies": row["studies"],
                "instances_known": row["known"] or 0,
                "instances_safe": row["safe"] or 0,
                "behind": late.get("n", 0),
                "behind_since": late.get("since"),
            },
        )


def days_until_full(samples: list[tuple[datetime, int]], reserve: int = 0) -> float | None:
    """Days until the free bytes reach ``reserve`` on the line of least squares through ``(when, free bytes)``.

    None: not enough samples, or the space does not shrink.
    """
    if len(samples) < 3 or samples[-1][0] - samples[0][0] < FORECAST_SPAN:
        return None
    start = samples[0][0]
    xs = [(at - start).total_seconds() / 86400 for at, _ in samples]
    ys = [float(free) for _, free in samples]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread if spread else 0.0
    if slope >= -1e6:  # less than a megabyte a day is no trend
        return None
    return max(0.0, (ys[-1] - reserve) / -slope)


def forecasts(nodes: list[Node], now: datetime | None = None) -> dict[int, float | None]:
    """Days until full by node."""
    now = now or timezone.now()
    found: dict[int, list[tuple[datetime, int]]] = {}
    rows = NodeSample.objects.filter(node__in=nodes, at__gte=now - FORECAST_OVER, free_bytes__isnull=False)
    # One sample an hour is plenty for a line over days.
    hours: dict[tuple[int, datetime], tuple[datetime, int]] = {}
    for key, at, free in rows.order_by("at").values_list("node_id", "at", "free_bytes"):
        hours[key, at.replace(minute=0, second=0)] = (at, free or 0)
    for (key, _), one in hours.items():
        found.setdefault(key, []).append(one)
    return {node.pk: days_until_full(found.get(node.pk, [])) for node in nodes}


@dataclass
class Organisation:
    """One column of the table of the region: an organisation, what it has and does."""

    site: Site
    since: date | None
    bytes: int
    devices: dict[str, int] = field(default_factory=dict)
    studies: dict[str, int] = field(default_factory=dict)
    studies_total: int = 0
    a_day: float = 0.0
    days: list[int] = field(default_factory=list)
    queue_age: int = 0
    behind: int = 0
    behind_since: datetime | None = None
    days_until_full: float | None = None
    free_bytes: int | None = None
    nodes: list[Node] = field(default_factory=list)

    @property
    def full_days(self) -> int:
        """Whole days until the disk is full, for those that have a trend."""
        return int(self.days_until_full or 0)

    @property
    def devices_total(self) -> int:
        """All modalities."""
        return sum(self.devices.values())


@dataclass
class Region:
    """The table: organisations, the modalities they have between them, and when it was counted."""

    organisations: list[Organisation]
    modalities: list[str]
    counted_at: datetime | None


def region(user: User, since: date | None = None, until: date | None = None) -> Region:
    """The figures of every organisation that the user may see; studies of these days, or of all times."""
    sites = list(organizations.visible_to(user).exclude(kind=Site.Kind.CONSULTANT).order_by("name"))
    volumes = {one.site_id: one for one in SiteVolume.objects.filter(site__in=sites)}
    found = {
        site.pk: Organisation(
            site=site,
            since=None,
            bytes=volumes[site.pk].bytes if site.pk in volumes else 0,
            behind=volumes[site.pk].behind if site.pk in volumes else 0,
            behind_since=volumes[site.pk].behind_since if site.pk in volumes else None,
        )
        for site in sites
    }
    _add_devices(found)
    _add_studies(found, since, until)
    _add_nodes(found, list(federation.visible_to(user).filter(revoked_at=None).order_by("name")))
    modalities = sorted({name for one in found.values() for name in (*one.devices, *one.studies)})
    at = Progress.objects.filter(name="studies").aggregate(Max("at"))["at__max"]
    return Region(list(found.values()), modalities, at)


def _add_devices(found: dict[int, Organisation]) -> None:
    rows = Device.objects.filter(site__in=list(found), is_active=True).exclude(modality="").order_by()
    for site, modality, count in rows.values_list("site", "modality").annotate(n=Count("pk")):
        found[site].devices[modality] = count


def _add_studies(found: dict[int, Organisation], since: date | None, until: date | None) -> None:
    rows = StudyCount.objects.filter(site__in=list(found)).order_by()
    if since is not None:
        rows = rows.filter(day__gte=since)
    if until is not None:
        rows = rows.filter(day__lte=until)
    for site, modality, count in rows.values_list("site", "modality").annotate(n=Sum("studies")):
        if modality == "":
            found[site].studies_total = count
        elif modality not in NOT_IMAGING:
            found[site].studies[modality] = count
    end = until or timezone.localdate()
    first = end - timedelta(days=AVERAGE_DAYS - 1)
    by_day: dict[tuple[int, date], int] = {
        (site, day): count
        for site, day, count in StudyCount.objects.filter(
            site__in=list(found), modality="", day__gte=first, day__lte=end
        ).values_list("site", "day", "studies")
    }
    for key, one in found.items():
        one.days = [by_day.get((key, first + timedelta(days=number)), 0) for number in range(AVERAGE_DAYS)]
        one.a_day = sum(one.days) / AVERAGE_DAYS


def _add_nodes(found: dict[int, Organisation], nodes: list[Node]) -> None:
    full = forecasts(nodes)
    for node in nodes:
        one = found.get(node.site_id)
        if one is None:
            continue
        told: dict[str, Any] = node.status or {}
        one.nodes.append(node)
        if node.joined_at is not None:
            joined = timezone.localdate(node.joined_at)
            one.since = min(one.since, joined) if one.since else joined
        one.queue_age = max(one.queue_age, int(told.get("oldest_waiting_seconds") or 0))
        if (free := told.get("free_bytes")) is not None:
            one.free_bytes = min(one.free_bytes, free) if one.free_bytes is not None else free
        days = full[node.pk]
        if days is not None:
            one.days_until_full = min(one.days_until_full, days) if one.days_until_full is not None else days

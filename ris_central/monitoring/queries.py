"""The state of sites, nodes and of the centre itself."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import redis
from django.conf import settings
from django.core.cache import cache
from django.db import DatabaseError, connection
from django.db.models import Count, Q, QuerySet, Sum
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, can
from ris_central.catalogue.models import Study
from ris_central.federation.models import Node
from ris_central.monitoring.models import Alert, RefusedAssociation
from ris_central.organizations import queries as organizations
from ris_central.organizations.models import Site

SILENT = timedelta(seconds=90)
HEARTBEAT_KEY = "regis:worker-heartbeat"
HEARTBEAT_SECONDS = 10
LOW_DISK = 5 * 10**9
SKEW_SECONDS = 60
_SUMS_KEY = "regis:site-sums"


def nodes_visible_to(user: User) -> QuerySet[Node]:
    """Nodes of the sites of who asks."""
    if not can(user, Capability.SEE_SITES):
        return Node.objects.none()
    return Node.objects.filter(site__in=organizations.visible_to(user)).select_related("site")


def refused_visible_to(user: User) -> QuerySet[RefusedAssociation]:
    """Peers refused at these nodes and not admitted since."""
    return RefusedAssociation.objects.filter(node__in=nodes_visible_to(user), admitted_at=None).select_related("node")


def alerts_visible_to(user: User) -> QuerySet[Alert]:
    """Alerts of the nodes of who asks, newest first; those of the centre itself for who administers it."""
    mine = Q(node__in=nodes_visible_to(user))
    if can(user, Capability.ADMINISTER):
        mine |= Q(node=None)
    return Alert.objects.filter(mine).select_related("node__site").order_by("-opened_at")


@dataclass(frozen=True)
class NodeState:
    """What a person wants to know of a node. ``state`` is one of ok, warn, bad, waiting."""

    node: Node
    state: str
    version: str
    free_bytes: int | None
    stored: int | None
    events_waiting: int
    deliveries_waiting: int
    oldest_waiting_seconds: int
    clock_skew: int | None

    @property
    def backed_up_at(self) -> datetime | None:
        """When it was backed up last, as it says."""
        return self._moment("backed_up_at")

    @property
    def certificate_until(self) -> datetime | None:
        """When its TLS certificate ends."""
        return self._moment("certificate_until")

    @property
    def roster_until(self) -> datetime | None:
        """When its list of people ends."""
        return self._moment("roster_until")

    def _moment(self, name: str) -> datetime | None:
        told = (self.node.status or {}).get(name)
        return parse_datetime(told) if isinstance(told, str) else None

    @property
    def low_disk(self) -> bool:
        """Less than 5 GB are left."""
        return self.free_bytes is not None and self.free_bytes < LOW_DISK

    @property
    def skewed(self) -> bool:
        """Its clock is so wrong that tokens may be refused."""
        return self.clock_skew is not None and abs(self.clock_skew) > SKEW_SECONDS


def state_of(node: Node, now: datetime | None = None) -> NodeState:
    """The node as its last heartbeat told."""
    now = now or timezone.now()
    told: dict[str, Any] = node.status or {}
    clock = parse_datetime(str(told.get("clock", ""))) if told else None
    skew = node.clock_skew_seconds  # also of a node whose signatures are refused because of its clock
    if skew is None and clock and node.last_seen_at:
        skew = round((clock - node.last_seen_at).total_seconds())
    found = NodeState(
        node=node,
        state="ok",
        version=str(told.get("version", "")),
        free_bytes=told.get("free_bytes"),
        stored=told.get("stored_instances"),
        events_waiting=int(told.get("events_waiting", 0)),
        deliveries_waiting=int(told.get("deliveries_waiting", 0)),
        oldest_waiting_seconds=int(told.get("oldest_waiting_seconds", 0)),
        clock_skew=skew,
    )
    if node.joined_at is None:
        state = "waiting"
    elif node.revoked_at is not None or node.last_seen_at is None or now - node.last_seen_at > SILENT:
        state = "bad"
    elif found.low_disk or found.skewed or found.oldest_waiting_seconds > 600:
        state = "warn"
    else:
        state = "ok"
    return NodeState(**{**found.__dict__, "state": state})


@dataclass(frozen=True)
class SiteState:
    """A site with its nodes, and how much of what it made is safe at the archive."""

    site: Site
    nodes: list[NodeState]
    people: int
    devices: int
    instances_known: int
    instances_safe: int
    studies: int

    @property
    def percent(self) -> int:
        """Of its instances, those safe; only all of them make 100."""
        return 100 * self.instances_safe // self.instances_known if self.instances_known else 100


def _sums() -> dict[int, dict[str, int]]:
    """By site: known and safe instances, studies. As it is now while that is quickly counted; of a big region as it
    was a while ago, so that looking never takes more than a fiftieth of the time.
    """
    if (kept := cache.get(_SUMS_KEY)) is not None:
        return dict(kept)
    began = time.monotonic()
    rows = Study.objects.order_by().values("site")
    rows = rows.filter(instances_known__gt=0)  # else only a PACS outside the region lists it
    rows = rows.annotate(known=Sum("instances_known"), safe=Sum("instances_safe"), studies=Count("pk"))
    found: dict[int, dict[str, int]] = {row["site"]: dict(row) for row in rows}  # type: ignore[arg-type]  # all numbers
    if (took := time.monotonic() - began) > 0.1:
        cache.set(_SUMS_KEY, found, min(600, int(50 * took)))
    return found


def site_states(user: User) -> list[SiteState]:
    """Every site that who asks may see."""
    sites = organizations.visible_to(user) if can(user, Capability.SEE_SITES) else Site.objects.none()
    sites = sites.annotate(
        people=Count("memberships", distinct=True), device_count=Count("devices", distinct=True)
    ).order_by("name")
    sums = _sums()
    nodes: dict[int, list[NodeState]] = {}
    for node in nodes_visible_to(user).order_by("name"):
        nodes.setdefault(node.site_id, []).append(state_of(node))
    found = []
    for site in sites:
        total = sums.get(site.pk, {"known": 0, "safe": 0, "studies": 0})
        found.append(
            SiteState(
                site=site,
                nodes=nodes.get(site.pk, []),
                people=site.people,
                devices=site.device_count,
                instances_known=total["known"] or 0,
                instances_safe=total["safe"] or 0,
                studies=total["studies"],
            )
        )
    return found


def health() -> dict[str, bool]:
    """Whether each part that the centre stands on answers now."""
    parts = {"database": False, "redis": False, "worker": False}
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        parts["database"] = True
    except DatabaseError:
        pass  # that is the answer
    try:
        beaten = cache.get(HEARTBEAT_KEY)
        parts["redis"] = True
        if beaten is not None:
            age = datetime.now(UTC).timestamp() - float(beaten)
            parts["worker"] = age < 3 * HEARTBEAT_SECONDS
    except redis.RedisError:
        pass  # that is the answer
    return parts


def queue_length() -> int:
    """Tasks that wait for a worker."""
    with redis.Redis.from_url(settings.CELERY_BROKER_URL, socket_timeout=2) as broker:
        return int(broker.llen("celery"))

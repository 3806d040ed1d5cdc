"""What is where, what is on its way and why not: for the study's page and the site's."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count, F, OuterRef, QuerySet, Subquery, Sum
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from ris_central.catalogue import queries, reach
from ris_central.catalogue.models import DeliveryState, InstanceHolding, Manifest, Series, SeriesHolder, Study
from ris_central.catalogue.reasons import HELD, NODE_AWAY, NODE_AWAY_ADVICE, Text, reason
from ris_central.federation.models import Node


@dataclass(frozen=True)
class HolderRow:
    """A node and what it holds of a study. ``equal``: digest by digest what the region knows. ``proofs`` by kind."""

    node: Node
    held: int
    equal: int
    in_touch: bool
    proofs: dict[str, int]

    @property
    def is_archive(self) -> bool:
        """The archive's copy is what makes a study safe."""
        return self.node.kind == Node.Kind.ARCHIVE


@dataclass(frozen=True)
class HeldBack:
    """What a rule keeps back, why and until when."""

    label: Text
    until: datetime | None
    instances: int


@dataclass(frozen=True)
class Trouble:
    """What failed or waits, how often, and what to do."""

    label: Text
    advice: Text
    instances: int


@dataclass(frozen=True)
class DeliveryRow:
    """A study on its way from a node to a destination, with a reason for everything that has not arrived."""

    state: DeliveryState
    held_back: list[HeldBack]
    troubles: list[Trouble]
    on_the_way: int
    seconds_left: int | None
    bytes_left: int
    bytes_per_second: int
    node_away_since: datetime | None
    failing_since: datetime | None
    is_held: bool
    """By a person: here or, as the node told, there."""

    @property
    def is_done(self) -> bool:
        """Whether all of it is safe there."""
        return self.state.receipted >= self.state.total

    @property
    def percent(self) -> int:
        """Of the study; only all of it makes 100."""
        return 100 * self.state.receipted // self.state.total if self.state.total else 0


def holder_rows(study: Study) -> list[HolderRow]:
    """Every node that holds something of the study, the archive first, in a fixed number of queries."""
    held = {
        row["node"]: row["n"]
        for row in SeriesHolder.objects.filter(series__study=study, count__gt=0)
        .values("node")
        .annotate(n=Sum("count"))
        .order_by()
    }
    equal: dict[int, int] = {}
    rows = InstanceHolding.objects.filter(instance__series__study=study).values("node").annotate(n=Count("pk"))
    for row in rows.order_by():
        equal[row["node"]] = row["n"]
    newest = Manifest.objects.filter(series=OuterRef("series")).order_by("-version")
    settled = SeriesHolder.objects.filter(series__study=study, series__instances__isnull=True).annotate(
        whole=Subquery(newest.values("root_hash")[:1])
    )
    for holder in settled:
        if holder.whole == holder.root_hash:
            equal[holder.node_id] = equal.get(holder.node_id, 0) + holder.count
    proofs: dict[str, dict[str, int]] = {}
    for state in DeliveryState.objects.filter(study=study):
        for kind, count in state.told.get("proofs", {}).items():
            kinds = proofs.setdefault(state.destination, {})
            kinds[kind] = kinds.get(kind, 0) + count
    found = [
        HolderRow(node, held[node.pk], equal.get(node.pk, 0), reach.in_touch(node), proofs.get(node.name, {}))
        for node in Node.objects.select_related("site").filter(pk__in=held)
    ]
    return sorted(found, key=lambda row: (not row.is_archive, -row.held, row.node.name))


def delivery_rows(states: list[DeliveryState]) -> list[DeliveryRow]:
    """The deliveries with what their nodes told of them. ``node`` and ``study`` are expected to be loaded."""
    return [_delivery(state) for state in states]


def _delivery(state: DeliveryState) -> DeliveryRow:
    told: dict[str, Any] = state.told
    held_back = [
        HeldBack(
            HELD.get(one["reason"], one["reason"]),
            parse_datetime(one["until"]) if one.get("until") else None,
            int(one.get("instances", 0)),
        )
        for one in told.get("held", [])
    ]
    errors: dict[str, int] = dict(told.get("errors", {}))
    if not errors and state.last_error and state.receipted < state.total:
        errors[state.last_error] = state.failed or state.total - state.receipted
    troubles = [Trouble(*reason(error), count) for error, count in sorted(errors.items())]
    on_the_way = max(0, state.total - state.receipted - state.failed - sum(one.instances for one in held_back))
    away_since = None
    if state.receipted < state.total and not reach.in_touch(state.node):
        away_since = state.node.last_seen_at or state.updated_at
        troubles.insert(0, Trouble(NODE_AWAY, NODE_AWAY_ADVICE, state.total - state.receipted))
    left = int(told.get("total_bytes", 0)) - int(told.get("receipted_bytes", 0))
    return DeliveryRow(
        state=state,
        held_back=held_back,
        troubles=troubles,
        on_the_way=on_the_way,
        seconds_left=_seconds_left(state, on_the_way),
        bytes_left=max(0, left),
        bytes_per_second=int(told.get("bytes_per_second", 0)),
        node_away_since=away_since,
        failing_since=parse_datetime(told["failing_since"]) if told.get("failing_since") else None,
        is_held=state.study.held_at is not None or any(one["reason"] == "held" for one in told.get("held", [])),
    )


def _seconds_left(state: DeliveryState, on_the_way: int) -> int | None:
    """What the node told, less the time since; None where nothing moves or it said nothing."""
    told = state.told.get("seconds_left")
    if told is None or not on_the_way:
        return None
    return max(1, int(told) - int((timezone.now() - state.updated_at).total_seconds()))


@dataclass(frozen=True)
class MissingSeries:
    """A series that cannot be looked at in full now: how many images are missing, and who holds them."""

    series: Series
    instances: int
    holders: list[HolderRow]


@dataclass(frozen=True)
class Opening:
    """Whether a study can be looked at now. ``state``:

    ``ready``, all of it; ``arriving``, the first images; ``partly``, who holds the rest is away; ``coming``, nothing
    yet, but a node that holds it is in touch and sends it; ``away``, who holds it is away; ``foreign``, only a PACS
    outside the region lists it; ``nowhere``, nobody holds it any more.
    """

    state: str
    open_now: int
    known: int
    seconds_left: int | None
    rows: list[HolderRow]
    held_back: list[HeldBack]
    away_since: datetime | None
    reader: Node | None
    missing: list["MissingSeries"]

    @property
    def percent(self) -> int:
        """Of the study, what can be looked at."""
        return min(100, 100 * self.open_now // self.known) if self.known else 0


def opening(study: Study) -> Opening:
    """How the study opens from here, at this moment."""
    rows = holder_rows(study)
    held = {row.node.pk: row.held for row in rows}
    nodes = queries.nearest_nodes(study.pk)
    answering = reach.reachable(nodes)
    reader = next((node for node in nodes if node.pk in answering), None)
    missing = _missing(study, answering, rows)
    open_now = max(0, study.instances_known - sum(one.instances for one in missing))
    deliveries = delivery_rows(list(study.deliveries.select_related("node")))
    moving = [row.seconds_left for row in deliveries if row.seconds_left is not None]
    if study.instances_known and open_now >= study.instances_known:
        state = "ready"
    elif open_now:
        comes = any(row.in_touch and not row.is_archive for one in missing for row in one.holders)
        state = "arriving" if comes else "partly"
    elif any(row.in_touch for row in rows if not row.is_archive):
        state = "coming"
    elif held:
        state = "away"
    else:
        state = "foreign" if study.foreign_holdings.filter(gone_at=None).exists() else "nowhere"
    heard = [row.node.last_seen_at for row in rows if row.node.last_seen_at is not None]
    return Opening(
        state=state,
        open_now=open_now,
        known=study.instances_known,
        seconds_left=max(moving) if moving else None,
        rows=rows,
        held_back=[one for row in deliveries for one in row.held_back],
        away_since=max(heard) if heard else None,
        reader=reader,
        missing=missing,
    )


def _missing(study: Study, answering: set[int], rows: list[HolderRow]) -> list[MissingSeries]:
    """The series of which the nodes that answer have not all: of each, what the best of them lacks."""
    held: dict[int, dict[int, int]] = {}
    told = SeriesHolder.objects.filter(series__study=study, count__gt=0)
    for series, node, count in told.values_list("series_id", "node_id", "count"):
        held.setdefault(series, {})[node] = count
    found = []
    for one in study.series.order_by("series_number", "pk"):
        counts = held.get(one.pk, {})
        here = max((count for node, count in counts.items() if node in answering), default=0)
        if here < one.instance_count:
            elsewhere = [row for row in rows if row.node.pk not in answering and counts.get(row.node.pk, 0) > here]
            found.append(MissingSeries(one, one.instance_count - here, elsewhere))
    return found


def unfinished(states: QuerySet[DeliveryState]) -> QuerySet[DeliveryState]:
    """Of these deliveries, those that have not arrived whole: failed ones first, then the oldest word."""
    return states.filter(receipted__lt=F("total")).order_by("-failed", "updated_at", "pk")

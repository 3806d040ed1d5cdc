"""The ledger as a whole: what is laid on it, what the rules hold back of it, and what it says when asked."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from django.db import transaction
from django.db.models import Count, Min, Q, QuerySet, Sum
from django.utils import timezone

from gateway import registry, rules
from gateway.envelope import Configuration, Directory, Held, OutsideDestination, Peer, Queue
from gateway.models import Delivery, JoinState, OutboxEntry, StudyPriority
from gateway.protocols import HeldInstance, InstanceOrigin
from gateway.rates import traffic
from gateway.rules import Asked, Decision

DELIVERY_PROGRESS: Final = "delivery.progress"
_AT_ONCE: Final = 1000
"""Rows changed in one transaction: whoever stores images waits no longer than for that."""
_OPEN: Final = (Delivery.Status.WAITING, Delivery.Status.FAILED)


Places = dict[str, Peer | OutsideDestination | None]


def destinations_of(state: JoinState, configuration: Configuration) -> Places:
    """Where this node's images go to, by name: None for a peer that is not announced yet. A peer's name is its own."""
    directory = Directory.model_validate(state.directory)
    peers = {peer.name: peer for peer in directory.peers}
    outside: Places = {place.name: place for place in configuration.mirror.outside}
    return outside | {name: peers.get(name) for name in directory.mirror_to}


class Judge:
    """The rules at one moment."""

    def __init__(self, state: JoinState, now: datetime | None = None) -> None:
        self.configuration = Configuration.model_validate(state.configuration or {})
        self.policy = self.configuration.mirror
        self.destinations = destinations_of(state, self.configuration)
        self.now = (now or timezone.now()).astimezone(rules.zone(state.directory.get("time_zone", "UTC")))
        self.may_leave = rules.in_checkpoint(self.policy.checkpoints)

    def decide(self, destination: str, modality: str, asked: Asked | None) -> Decision | None:
        """See ``rules.decide``."""
        return rules.decide(self.policy, destination, modality, self.now, asked=asked, may_leave=self.may_leave)

    def titles_at(self, destination: str) -> frozenset[str]:
        """AE titles under which instances come that are at this destination already."""
        place = self.destinations[destination]
        if isinstance(place, OutsideDestination):
            return self.configuration.titles_at(place)
        return frozenset({destination, place.ae_title if place else destination})

    def signature(self) -> tuple[object, ...]:
        """Equal as long as the rules say the same of everything that can wait."""
        modalities = sorted({name for rule in self.policy.rules for name in rule.modalities} | {""})
        wishes = (None, Asked(0), Asked(rules.ROUTINE))
        said = [
            self.decide(destination, modality, asked)
            for destination in sorted(self.destinations)
            for modality in modalities
            for asked in wishes
        ]
        return (*sorted(self.destinations), *said)


def asked_for(studies: Iterable[str]) -> dict[str, Asked]:
    """What somebody asked for these studies."""
    rows = StudyPriority.objects.filter(study_instance_uid__in=set(studies))
    return {row.study_instance_uid: Asked(row.priority, row.is_held) for row in rows}


def lay_on(state: JoinState, instances: list[HeldInstance]) -> None:
    """Open a row for each of these instances and each destination that the rules send it to, once."""
    judge = Judge(state)
    if not instances or not judge.destinations:
        return
    origins = registry.store().origins([instance.instance_key for instance in instances])
    asked = asked_for(instance.study_instance_uid for instance in instances)
    rows: list[Delivery] = []
    for instance in instances:
        origin = origins.get(instance.instance_key) or InstanceOrigin("", "", 0)
        for name in judge.destinations:
            decision = judge.decide(name, origin.modality, asked.get(instance.study_instance_uid))
            came_from_there = origin.source_ae_title in judge.titles_at(name)
            if decision is not None and not came_from_there:
                rows.append(_row(instance, origin, name, decision))
    Delivery.objects.bulk_create(rows, ignore_conflicts=True)
    _mend(instances, origins)
    announce({(row.study_instance_uid, row.destination) for row in rows})


def _row(instance: HeldInstance, origin: InstanceOrigin, destination: str, decision: Decision) -> Delivery:
    return Delivery(
        **instance._asdict(),
        destination=destination,
        priority=decision.priority,
        size=origin.size,
        modality=origin.modality[:16],
        held_by=decision.held_by,
        held_until=decision.until,
        next_attempt_at=timezone.now(),
    )


def _mend(instances: list[HeldInstance], origins: dict[int, InstanceOrigin]) -> None:
    """Rows that were there already: what they do not know yet, and what came again after it was let go of."""
    here = Delivery.objects.filter(instance_key__in=[instance.instance_key for instance in instances])
    for row in here.filter(size=0):
        if origin := origins.get(row.instance_key):
            Delivery.objects.filter(pk=row.pk).update(size=origin.size, modality=origin.modality[:16])
    # What was released and came again must be proved safe again before its file goes again.
    here.filter(released_at__isnull=False).update(
        status=Delivery.Status.WAITING, proof="", released_at=None, receipted_at=None, next_attempt_at=timezone.now()
    )


def announce(pairs: Iterable[tuple[str, str]]) -> None:
    """Have the centre told how far these ``(study, destination)`` are."""
    OutboxEntry.objects.bulk_create(
        [
            OutboxEntry(kind=DELIVERY_PROGRESS, body={"study_instance_uid": study, "destination": destination})
            for study, destination in sorted(pairs)
        ]
    )


def decide_again(judge: Judge, study_instance_uid: str = "") -> int:
    """Have the rules decide again what is open, of one study or of all; how many rows changed."""
    open_rows = Delivery.objects.filter(status__in=_OPEN)
    wishes = StudyPriority.objects.all()
    if study_instance_uid:
        open_rows = open_rows.filter(study_instance_uid=study_instance_uid)
        wishes = wishes.filter(study_instance_uid=study_instance_uid)
    changed = 0
    kinds = list(wishes.values_list("priority", "is_held").distinct())
    for destination, modality in list(open_rows.values_list("destination", "modality").distinct()):
        rows = open_rows.filter(destination=destination, modality=modality)
        unasked = rows.exclude(study_instance_uid__in=wishes.values("study_instance_uid"))
        changed += _settle(unasked, judge, destination, modality, None)
        for priority, is_held in kinds:
            of_kind = wishes.filter(priority=priority, is_held=is_held).values("study_instance_uid")
            changed += _settle(
                rows.filter(study_instance_uid__in=of_kind), judge, destination, modality, Asked(priority, is_held)
            )
    return changed


def _settle(rows: QuerySet[Delivery], judge: Judge, destination: str, modality: str, asked: Asked | None) -> int:
    decision = judge.decide(destination, modality, asked) if destination in judge.destinations else None
    if decision is not None:
        since = Q(held_until=decision.until) if decision.until else Q(held_until__isnull=True)
        rows = rows.exclude(Q(priority=decision.priority) & Q(held_by=decision.held_by) & since)
    changed = 0
    while lot := list(rows.values_list("pk", "study_instance_uid")[:_AT_ONCE]):
        chosen = Delivery.objects.filter(pk__in=[pk for pk, _ in lot])
        with transaction.atomic():
            if decision is None:
                chosen.filter(status__in=_OPEN).delete()
            else:
                chosen.update(priority=decision.priority, held_by=decision.held_by, held_until=decision.until)
            announce({(study, destination) for _, study in lot})
        changed += len(lot)
    return changed


# What the ledger says


def _counted(rows: QuerySet[Delivery]) -> dict[str, Any]:
    closed, failed = Q(status__in=Delivery.CLOSED), Q(status=Delivery.Status.FAILED)
    return rows.aggregate(
        total=Count("pk"),
        receipted=Count("pk", filter=closed),
        failed=Count("pk", filter=failed),
        total_bytes=Sum("size", default=0),
        receipted_bytes=Sum("size", filter=closed, default=0),
        failed_bytes=Sum("size", filter=failed, default=0),
        wire_bytes=Sum("wire_bytes", filter=closed, default=0),
    )


def _held(rows: QuerySet[Delivery]) -> list[Held]:
    groups = (
        rows.filter(status=Delivery.Status.WAITING)
        .exclude(held_by="")
        .values("held_by", "held_until")
        .order_by("held_by", "held_until")
        .annotate(instances=Count("pk"), bytes=Sum("size"))
    )
    return [
        Held.model_validate(
            {"reason": row["held_by"], "until": row["held_until"], "instances": row["instances"], "size": row["bytes"]}
        )
        for row in groups
    ]


def progress_of(study_instance_uid: str, destination: str) -> dict[str, Any]:
    """How far the ledger is with a study towards a destination: a ``DeliveryProgress`` as it is kept."""
    rows = Delivery.objects.filter(study_instance_uid=study_instance_uid, destination=destination)
    counts, held = _counted(rows), _held(rows)
    failing = rows.exclude(last_error="").exclude(status__in=Delivery.CLOSED)
    errors: dict[str, int] = {}
    for text, count in failing.values_list("last_error").annotate(Count("pk")):
        code = text.partition(":")[0][:64]
        errors[code] = errors.get(code, 0) + count
    trouble = failing.order_by("-next_attempt_at").values_list("last_error", flat=True).first()
    flow = traffic.of(destination)
    under_way = flow.under_way(study_instance_uid)
    left = counts["total_bytes"] - counts["receipted_bytes"] - counts["failed_bytes"] - sum(it.size for it in held)
    return {
        "type": DELIVERY_PROGRESS,
        "study_instance_uid": study_instance_uid,
        "destination": destination,
        **counts,
        "last_error": trouble or (flow.trouble[:255] if left > 0 else ""),
        "under_way_bytes": under_way,
        "held": [it.model_dump(mode="json") for it in held],
        "proofs": dict(rows.filter(status__in=Delivery.CLOSED).values_list("proof").annotate(Count("pk"))),
        "errors": errors,
        "bytes_per_second": flow.files.rate(),
        "seconds_left": flow.seconds(left - under_way + _ahead(rows, destination)) if left > 0 else None,
    }


def _ahead(rows: QuerySet[Delivery], destination: str) -> int:
    """Bytes that go to the destination before the last of these."""
    last = rows.filter(status=Delivery.Status.WAITING, held_by="").order_by("-priority", "-id").first()
    if last is None:
        return 0
    before = Q(priority__lt=last.priority) | Q(priority=last.priority, id__lt=last.pk)
    others = Delivery.objects.filter(before, destination=destination, status=Delivery.Status.WAITING, held_by="")
    return int(
        others.exclude(study_instance_uid=last.study_instance_uid).aggregate(size=Sum("size", default=0))["size"]
    )


def queues(state: JoinState) -> list[Queue]:
    """All that waits, by destination."""
    names = set(destinations_of(state, Configuration.model_validate(state.configuration or {})))
    names |= set(Delivery.objects.filter(status__in=_OPEN).values_list("destination", flat=True).distinct())
    return [_queue(name) for name in sorted(names)]


def _queue(destination: str) -> Queue:
    rows = Delivery.objects.filter(destination=destination, status__in=_OPEN)
    counts, held, flow = _counted(rows), _held(rows), traffic.of(destination)
    left = counts["total_bytes"] - counts["failed_bytes"] - sum(it.size for it in held)
    return Queue(
        destination=destination,
        instances=counts["total"],
        size=counts["total_bytes"],
        failed=counts["failed"],
        held=held,
        bytes_per_second=flow.files.rate(),
        wire_bytes_per_second=flow.wire.rate(),
        seconds_left=flow.seconds(left - flow.under_way()) if left > 0 else None,
        oldest_at=rows.aggregate(at=Min("created_at"))["at"],
        trouble=flow.trouble,
        trouble_since=flow.trouble_since,
    )

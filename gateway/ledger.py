"""The ledger as a whole: what is laid on it, what the rules hold back of it, and what it says when asked."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, cast

from django.db import transaction
from django.db.models import Count, Max, Min, Q, QuerySet, Sum
from django.utils import timezone

from gateway import registry, rules
from gateway.envelope import Configuration, DeliveryProgress, Directory, Held, OutsideDestination, Peer, Queue
from gateway.models import Delivery, JoinState, OutboxEntry, StudyPriority
from gateway.protocols import HeldInstance, InstanceOrigin
from gateway.rates import throttle, traffic
from gateway.rules import Asked, Decision

DELIVERY_PROGRESS: Final = "delivery.progress"
_AT_ONCE: Final = 1000
"""Rows changed in one transaction: whoever stores images waits no longer than for that."""
_KNOWN_SECONDS: Final = 10.0
_SHARE_OF_TIME: Final = 20.0
"""Adding up the queues may take a twentieth of the time."""
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

    def keep_cap(self) -> int | None:
        """Have whatever takes from ``rates.throttle`` keep the cap of the hour; kilobits a second, None for no cap."""
        cap, _ = rules.cap_at(self.policy, self.now)
        throttle.set(cap * 125 if cap else None)
        return cap

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


class _InForce:
    """By which rules all that is open was decided. What is laid on the ledger by others meanwhile is decided again:
    rules may change and change back between two looks.
    """

    def __init__(self) -> None:
        self._signature: tuple[object, ...] | None = None

    def used(self, judge: Judge) -> None:
        """Rows were decided by these rules, in the transaction that is open."""
        signature = judge.signature()
        transaction.on_commit(lambda: self._compare(signature))

    def _compare(self, signature: tuple[object, ...]) -> None:
        if self._signature != signature:
            self._signature = None

    def adopt(self, judge: Judge) -> bool:
        """Hold these for the rules in force; whether they are others, and all that is open is to be decided again."""
        before, self._signature = self._signature, judge.signature()
        return before != self._signature

    def forget(self) -> None:
        """Nobody knows by which rules all was decided."""
        self._signature = None


in_force = _InForce()


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
    in_force.used(judge)
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
        in_force.used(judge)
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
    changed, last = 0, 0
    while lot := list(rows.filter(pk__gt=last).order_by("pk").values_list("pk", "study_instance_uid")[:_AT_ONCE]):
        last = lot[-1][0]
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


@dataclass
class _Sums:
    """What rows of one destination add up to."""

    total: int = 0
    receipted: int = 0
    failed: int = 0
    total_bytes: int = 0
    receipted_bytes: int = 0
    failed_bytes: int = 0
    wire_bytes: int = 0
    held: dict[tuple[str, datetime | None], Held] = field(default_factory=dict)
    proofs: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    last_error: str = ""
    failing_since: datetime | None = None
    to_go: int = 0
    """Bytes that may go now."""
    last: tuple[int, int] = (0, 0)
    """Priority and key of the last of those."""

    def add(self, row: dict[str, Any]) -> None:
        """One group of rows that are alike."""
        count, size, status = row["count"], row["bytes"], row["status"]
        self.total, self.total_bytes = self.total + count, self.total_bytes + size
        if status in Delivery.CLOSED:
            self.receipted, self.receipted_bytes = self.receipted + count, self.receipted_bytes + size
            self.wire_bytes += row["wire"]
            self.proofs[row["proof"]] = self.proofs.get(row["proof"], 0) + count
            return
        if row["last_error"]:
            code = row["last_error"].partition(":")[0][:64]
            self.errors[code] = self.errors.get(code, 0) + count
            self.last_error = row["last_error"]
            since = [one for one in (self.failing_since, row["since"]) if one is not None]
            self.failing_since = min(since, default=None)
        if status == Delivery.Status.FAILED:
            self.failed, self.failed_bytes = self.failed + count, self.failed_bytes + size
        elif row["held_by"]:
            key = (row["held_by"], row["held_until"])
            before = self.held.get(key) or Held(reason=row["held_by"], until=row["held_until"])
            self.held[key] = before.model_copy(
                update={"instances": before.instances + count, "size": before.size + size}
            )
        else:
            self.to_go += size
            self.last = max(self.last, (row["priority"], row["last"]))


def _summed(rows: QuerySet[Delivery]) -> _Sums:
    """By one query of groups: asked for one thing, a database may walk a destination's whole queue for a study."""
    sums = _Sums()
    groups = rows.values("status", "proof", "priority", "held_by", "held_until", "last_error").order_by()
    groups = groups.annotate(count=Count("pk"), bytes=Sum("size"), wire=Sum("wire_bytes"), last=Max("pk"))
    for row in groups.annotate(since=Min("failing_since")):
        sums.add(cast(dict[str, Any], row))
    return sums


def progress_of(study_instance_uid: str, destination: str) -> dict[str, Any]:
    """How far the ledger is with a study towards a destination: a ``DeliveryProgress`` as it is kept."""
    sums = _summed(Delivery.objects.filter(study_instance_uid=study_instance_uid, destination=destination))
    flow = traffic.of(destination)
    under_way = flow.under_way(study_instance_uid)
    ahead = _ahead(destination, *sums.last) if sums.to_go and flow.files.rate() else 0
    return DeliveryProgress(
        study_instance_uid=study_instance_uid,
        destination=destination,
        total=sums.total,
        receipted=sums.receipted,
        failed=sums.failed,
        last_error=sums.last_error or (flow.trouble[:255] if sums.to_go else ""),
        total_bytes=sums.total_bytes,
        receipted_bytes=sums.receipted_bytes,
        failed_bytes=sums.failed_bytes,
        under_way_bytes=under_way,
        wire_bytes=sums.wire_bytes,
        held=list(sums.held.values()),
        proofs=sums.proofs,
        errors=sums.errors,
        failing_since=sums.failing_since or (flow.trouble_since if sums.to_go else None),
        bytes_per_second=flow.files.rate(),
        seconds_left=flow.seconds(max(sums.to_go, ahead) - under_way) if sums.to_go else None,
    ).model_dump(mode="json")


_Queue = list[tuple[int, int, int, int]]
_queues_ahead: dict[str, tuple[float, _Queue]] = {}


def _ahead(destination: str, priority: int, key: int) -> int:
    """Bytes that go to the destination until this row has gone, about: keys rise as instances came."""
    until, queue = _queues_ahead.get(destination, (0.0, []))
    if until < time.monotonic():
        waiting = Delivery.objects.filter(destination=destination, status=Delivery.Status.WAITING, held_by="")
        sums = waiting.values("priority").order_by().annotate(bytes=Sum("size"), first=Min("pk"), last=Max("pk"))
        queue = [(row["priority"], row["bytes"], row["first"], row["last"]) for row in sums]
        _queues_ahead[destination] = (time.monotonic() + _KNOWN_SECONDS, queue)
    urgent = sum(size for other, size, _, _ in queue if other < priority)
    alike = next(((size, first, last) for other, size, first, last in queue if other == priority), (0, key, key))
    size, first, last = alike
    share = 1.0 if last <= first else min(1.0, max(0.0, (key - first) / (last - first)))
    return urgent + int(size * share)


_kept_queues: tuple[float, list[Queue]] = (0.0, [])


def queues(state: JoinState) -> list[Queue]:
    """All that waits, by destination; of a long queue, as it was when there was last time to add it up."""
    global _kept_queues
    begun = time.monotonic()
    if _kept_queues[0] > begun:
        return _kept_queues[1]
    names = set(destinations_of(state, Configuration.model_validate(state.configuration or {})))
    names |= set(Delivery.objects.filter(status__in=_OPEN).values_list("destination", flat=True).distinct())
    found = [_queue(name) for name in sorted(names)]
    _kept_queues = (time.monotonic() + _SHARE_OF_TIME * (time.monotonic() - begun), found)
    return found


def _queue(destination: str) -> Queue:
    rows = Delivery.objects.filter(destination=destination, status__in=_OPEN)
    sums, flow = _summed(rows), traffic.of(destination)
    return Queue(
        destination=destination,
        instances=sums.total,
        size=sums.total_bytes,
        failed=sums.failed,
        held=list(sums.held.values()),
        bytes_per_second=flow.files.rate(),
        wire_bytes_per_second=flow.wire.rate(),
        seconds_left=flow.seconds(sums.to_go - flow.under_way()) if sums.to_go else None,
        oldest_at=rows.aggregate(at=Min("created_at"))["at"],
        trouble=flow.trouble,
        trouble_since=flow.trouble_since,
        encoding=flow.paying.told(),
    )

"""Local disk → institution → archive: what may leave, what stays and why, and the leaving itself.

No copy is let go of before enough others are proved: read back and hashed at the institution, receipted by a peer.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import structlog
from django.db import transaction
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from gateway.actions import record_released
from gateway.models import Delivery
from pacs_node.config import config
from pacs_node.storage.models import Finding, Holding, StudyRetention
from pacs_node.storage.stores import institution, storage
from pacs_node.study_index.copies import (
    INSTITUTION,
    Copy,
    as_received,
    former_paths,
    holding_of,
    open_received,
    other_copies,
    received_key,
)
from pacs_node.study_index.models import Instance, Study
from pacs_node.study_index.snapshots import let_go_lines
from standards.digests import dataset_sha256
from standards.errors import PermanentError, RegisError

log = structlog.get_logger(__name__)

HERE: Final = Q(released_at=None) & (Q(holding=None) | Q(holding__away_at=None))
_SETTLED: Final = timedelta(minutes=10)


@dataclass(frozen=True)
class Verdict:
    """Whether a study leaves the local disk, and why or why not."""

    study_instance_uid: str
    since: datetime
    instances: int
    size: int
    goes: bool
    why: str
    copies: dict[str, datetime] = field(default_factory=dict)
    """Places that have a proved copy of every instance, and when the oldest of these proofs was given."""
    pinned: bool = False

    @property
    def age_days(self) -> int:
        """Whole days since the newest image came, or was fetched back."""
        return (timezone.now() - self.since).days


def plan(*, wanted: int = 0, now: datetime | None = None, until_done: bool = False) -> Iterator[Verdict]:
    """A verdict on every study that has files here, those that came longest ago first.

    ``wanted`` bytes are to be freed: so many studies go beyond those that go for their age. Nothing is changed.
    ``until_done``: stop where only studies follow that stay.
    """
    now = now or timezone.now()
    days, freed = config().tier_after_days, 0
    local = Instance.objects.filter(HERE, series__study=OuterRef("pk"))
    studies = Study.objects.filter(Exists(local)).order_by("created_at", "pk")
    seen: set[str] = set()
    for uid, came in studies.values_list("study_instance_uid", "created_at").iterator(500):
        if until_done and freed >= wanted and not (days and now - came >= timedelta(days=days)):
            return
        if uid in seen:
            continue
        seen.add(uid)
        verdict = judge(uid, now=now, for_age=days, for_space=wanted > freed)
        if verdict is not None:
            freed += verdict.size if verdict.goes else 0
            yield verdict


def judge(uid: str, *, now: datetime, for_age: int = 0, for_space: bool = False) -> Verdict | None:
    """The verdict on one study; None when nothing of it is here. ``for_age``: in days, 0 for never."""
    here = list(local_instances(uid))
    if not here:
        return None
    retention = StudyRetention.objects.filter(study_instance_uid=uid).first()
    since = max(instance.created_at for instance in here)
    if retention is not None and retention.recalled_at is not None:
        since = max(since, retention.recalled_at)
    copies = other_copies(here)
    everywhere = _everywhere(here, copies)
    old = bool(for_age) and now - since >= timedelta(days=for_age)

    def verdict(goes: bool, why: str) -> Verdict:
        pinned = bool(retention and retention.pinned)
        size = sum(instance.size for instance in here)
        return Verdict(uid, since, len(here), size, goes, why, everywhere, pinned)

    if retention is not None and retention.pinned:
        return verdict(False, f"it is pinned: {retention.reason or 'no reason given'}")
    if not old and not for_space:
        wait = f"it came less than {for_age} days ago" if for_age else "there is no rule by age"
        return verdict(False, f"{wait}, and no space is needed")
    if obstacle := _obstacle(here, copies):
        return verdict(False, obstacle)
    return verdict(True, f"it came {(now - since).days} days ago" if old else "space is needed")


def local_instances(uid: str) -> list[Instance]:
    """All instances of a study whose files the main storage should have."""
    chosen = Instance.objects.filter(HERE, series__study__study_instance_uid=uid)
    return list(chosen.select_related("series__study", "holding").order_by("pk"))


def _everywhere(instances: list[Instance], copies: dict[int, list[Copy]]) -> dict[str, datetime]:
    places: dict[str, list[datetime]] = {}
    for instance in instances:
        for copy in copies.get(instance.pk, []):
            places.setdefault(copy.place, []).append(copy.verified_at)
    return {place: min(proofs) for place, proofs in places.items() if len(proofs) == len(instances)}


def _obstacle(instances: list[Instance], copies: dict[int, list[Copy]]) -> str:
    """Why these must not go, "" when they may."""
    needed = max(1, config().minimum_copies)
    short = [instance for instance in instances if len(copies.get(instance.pk, [])) < needed]
    if short:
        return f"{len(short)} of {len(instances)} instances have fewer than {needed} verified copies elsewhere"
    keys = [instance.pk for instance in instances]
    for start in range(0, len(keys), 500):
        open_ones = Delivery.objects.filter(instance_key__in=keys[start : start + 500]).exclude(
            status__in=Delivery.CLOSED
        )
        destination = open_ones.values_list("destination", flat=True).first()
        if destination is not None:
            return f"its mirror to {destination} is not complete"
    return ""


def let_go(instances: list[Instance]) -> int:
    """Have the main storage let go of these files: journal, index, then the files; how many bytes that freed.

    The caller has judged them. They stay in the index and are fetched back when somebody asks for them.
    """
    now, freed = timezone.now(), 0
    by_study: dict[str, list[Instance]] = {}
    for instance in instances:
        by_study.setdefault(instance.series.study.study_instance_uid, []).append(instance)
    for study, members in by_study.items():
        stored = [(instance.path, instance.size) for instance in members]
        stored += [(former, 0) for former in former_paths(members)]
        with transaction.atomic():
            as_received(members)
        storage().append_journal(study, *let_go_lines("tiered", members, now))
        with transaction.atomic():
            for instance in members:
                Holding.objects.update_or_create(instance=instance, defaults={"away_at": now})
            _announce([i for i in members if (h := holding_of(i)) is None or h.institution_verified_at is None])
        for path, size in stored:
            storage().remove(path)
            freed += size
        log.info("study-left-the-disk", study_instance_uid=study, instances=len(members))
    return freed


def _announce(instances: list[Instance]) -> None:
    """Tell the centre that this node holds these no more, at any tier of its own."""
    by_series: dict[int, list[tuple[str, str]]] = {}
    for instance in instances:
        by_series.setdefault(instance.series_id, []).append((instance.sop_instance_uid, instance.dataset_sha256))
    for series_key, released in by_series.items():
        record_released(series_key, released)


# The institution


def copy_to_institution(limit: int = 50) -> int:
    """Copy what the institution does not have yet, oldest first, and read every copy back; how many were copied.

    Raises: TransientError("storage-unreachable", "storage-full").
    """
    store = institution()
    if store is None:
        return 0
    lacking = Instance.objects.filter(
        HERE, Q(holding=None) | Q(holding__institution_verified_at=None), created_at__lt=timezone.now() - _SETTLED
    )
    copied = 0
    for instance in lacking.select_related("series__study", "holding").order_by("pk")[:limit]:
        try:
            copy_one(instance)
        except PermanentError as error:
            log.error("institution-copy-failed", sop_instance_uid=instance.sop_instance_uid, error=str(error))
            Finding.objects.get_or_create(
                kind=Finding.Kind.COPY,
                path=f"institution:{received_key(instance)}"[:255],
                resolved_at=None,
                defaults={"detail": str(error)[:500]},
            )
            continue
        copied += 1
    return copied


def copy_one(instance: Instance) -> None:
    """Copy the received bytes of an instance to the institution's storage, and believe in it once it is read back.

    Raises: PermanentError("instance-gone", "digest-mismatch"), TransientError.
    """
    store, key = institution(), received_key(instance)
    assert store is not None
    path = store.new_incoming()
    try:
        with open_received(instance) as source, path.open("wb") as target:
            while chunk := source.read(1 << 20):
                target.write(chunk)
        if dataset_sha256(path) != instance.dataset_sha256:
            raise PermanentError("digest-mismatch", "the stored file is not what was received; run verify")
        store.place(path, key)
    finally:
        path.unlink(missing_ok=True)
    with store.open_stored(key) as file:
        if dataset_sha256(file) != instance.dataset_sha256:
            raise PermanentError("digest-mismatch", f"{key} lies at the institution with other content")
    now = timezone.now()
    storage().append_journal(
        instance.series.study.study_instance_uid, {"type": "copied", "at": now.isoformat(), "path": key}
    )
    Holding.objects.update_or_create(instance=instance, defaults={"institution_verified_at": now})


def thin_institution(limit: int = 200) -> int:
    """Let go of the institution's copies that are old enough and proved elsewhere often enough; how many."""
    store, days = institution(), config().institution_after_days
    if store is None or not days:
        return 0
    old = Instance.objects.filter(
        released_at=None,
        holding__institution_verified_at__isnull=False,
        created_at__lt=timezone.now() - timedelta(days=days),
    )
    pinned = StudyRetention.objects.filter(pinned=True).values("study_instance_uid")
    old = old.exclude(series__study__study_instance_uid__in=pinned)
    gone = 0
    for instance in old.select_related("series__study", "holding").order_by("pk")[:limit]:
        others = [copy for copy in other_copies([instance]).get(instance.pk, []) if copy.place != INSTITUTION]
        if len(others) < max(1, config().minimum_copies):
            continue
        study, key = instance.series.study.study_instance_uid, received_key(instance)
        storage().append_journal(study, {"type": "copy-let-go", "at": timezone.now().isoformat(), "path": key})
        with transaction.atomic():
            Holding.objects.filter(pk=instance.pk).update(institution_verified_at=None)
            if instance.holding.away_at is not None:
                _announce([instance])
        store.remove(key)
        gone += 1
    return gone


# Pins


@transaction.atomic
def pin(study_instance_uid: str, *, pinned: bool, reason: str = "") -> None:
    """Keep all of a study on the local disk whatever the rules say, or let the rules decide again; journalled."""
    line = {"type": "pin", "at": timezone.now().isoformat(), "pinned": pinned, "reason": reason}
    storage().append_journal(study_instance_uid, line)
    StudyRetention.objects.update_or_create(
        study_instance_uid=study_instance_uid, defaults={"pinned": pinned, "reason": reason[:255]}
    )


def run(*, wanted: int) -> tuple[int, int]:
    """Carry the plan out; (studies that left, bytes freed). One study that fails never stops the rest."""
    studies = freed = 0
    for verdict in plan(wanted=wanted, until_done=True):
        if not verdict.goes:
            continue
        try:
            freed += let_go(local_instances(verdict.study_instance_uid))
            studies += 1
        except RegisError as error:
            log.error("tiering-failed", study_instance_uid=verdict.study_instance_uid, error=str(error))
    return studies, freed

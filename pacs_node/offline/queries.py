"""What registration and the page of what waits show."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, F, Min, Q, QuerySet, Sum
from django.utils import timezone

from gateway.models import Delivery
from pacs_node.clinic.models import ApplicationEntity, RosterMember, WorklistEntry
from pacs_node.offline.models import LocalStep, ReportDraft
from pacs_node.storage.stores import storage
from pacs_node.study_index.models import Instance, Study
from standards.person_names import fold, latin_key
from worklist.feed import WorklistItem

_SHOWN_BACK = timedelta(hours=18)
_MOST_ENTRIES = 500
_MOST_PATIENTS = 12
_LOOKED_AT = 2000
"""The newest steps in which a patient is looked for; older ones are found by their images."""


def devices() -> QuerySet[ApplicationEntity]:
    """What an examination can be scheduled on: whatever asks for the worklist."""
    return ApplicationEntity.objects.filter(may_worklist=True).order_by("ae_title")


@dataclass(frozen=True)
class Line:
    """A step as the registrar's list shows it. ``images``: how many of its study are here."""

    entry: WorklistEntry
    local: LocalStep | None
    images: int


def day_lines(*, since: datetime | None = None) -> list[Line]:
    """The worklist from today on, with what was made or changed here and how many images came."""
    after = since or timezone.now() - _SHOWN_BACK
    entries = list(
        WorklistEntry.objects.filter(starts_at__gte=after).order_by("starts_at", "scheduled_procedure_step_id")[
            :_MOST_ENTRIES
        ]
    )
    names = [entry.scheduled_procedure_step_id for entry in entries]
    local = {
        step.scheduled_procedure_step_id: step
        for step in LocalStep.objects.filter(scheduled_procedure_step_id__in=names)
    }
    images = images_of(entry.item.get("study_instance_uid", "") for entry in entries)
    return [
        Line(
            entry,
            local.get(entry.scheduled_procedure_step_id),
            images.get(entry.item.get("study_instance_uid", ""), 0),
        )
        for entry in entries
    ]


def images_of(studies: Iterable[str]) -> dict[str, int]:
    """How many instances of these Study Instance UIDs are here, where there are any."""
    rows = (
        Instance.objects.filter(
            series__study__study_instance_uid__in=list(studies), is_variant=False, released_at__isnull=True
        )
        .values_list("series__study__study_instance_uid")
        .annotate(count=Count("pk"))
    )
    return dict(rows)


def next_free(ae_title: str, minutes: int, *, now: datetime | None = None) -> datetime:
    """The first moment from now on, at a full five minutes, when the device is free for so long, as known here."""
    start = (now or timezone.now()).replace(second=0, microsecond=0)
    start += timedelta(minutes=-start.minute % 5)
    wanted = timedelta(minutes=minutes)
    rows = WorklistEntry.objects.filter(
        scheduled_station_ae_title=ae_title, starts_at__gte=start - timedelta(hours=24)
    ).order_by("starts_at")
    for entry in rows:
        item = WorklistItem.model_validate(entry.item)
        if item.ends_at <= start:
            continue
        if item.starts_at - start >= wanted:
            break
        start = item.ends_at
    return start


@dataclass(frozen=True)
class KnownPatient:
    """A person this node knows: from the schedule, from registration here, or from stored images."""

    patient_id: str
    issuer: str
    name: str
    birth_date: str
    sex: str


def knows_patient(patient_id: str, issuer: str) -> bool:
    """Whether this number of this issuer is on the worklist here or on a stored study."""
    item = {"item__patient_id": patient_id, "item__issuer_of_patient_id": issuer}
    return (
        WorklistEntry.objects.filter(**item).exists()
        or LocalStep.objects.filter(**item).exists()
        or Study.objects.filter(patient_id=patient_id, issuer_of_patient_id=issuer).exists()
    )


def find_patients(text: str) -> list[KnownPatient]:
    """People whom this node knows; every word of ``text`` is a part of the name in either script, or of the number."""
    words = text.split()
    if not words:
        return []
    found: dict[tuple[str, str], KnownPatient] = {}
    items = [
        *WorklistEntry.objects.order_by("-starts_at").values_list("item", flat=True)[:_LOOKED_AT],
        *LocalStep.objects.order_by("-made_at").values_list("item", flat=True)[:_LOOKED_AT],
    ]
    for item in items:
        if item.get("patient_id") and _fits(words, item):
            key = (item["patient_id"], item.get("issuer_of_patient_id", ""))
            found.setdefault(
                key,
                KnownPatient(
                    *key, item["patient_name"], item.get("patient_birth_date", ""), item.get("patient_sex", "")
                ),
            )
    studies = Study.objects.exclude(patient_id="")
    for word in words:
        fits = Q(patient_id__istartswith=word)
        if folded := fold(word):
            fits |= Q(patient_name_fold__contains=folded)
        if latin := latin_key(word):
            fits |= Q(patient_name_latin__contains=latin)
        studies = studies.filter(fits)
    for study in studies.order_by("-study_date")[:_MOST_PATIENTS]:
        key = (study.patient_id, study.issuer_of_patient_id)
        found.setdefault(key, KnownPatient(*key, study.patient_name, study.patient_birth_date, study.patient_sex))
    return list(found.values())[:_MOST_PATIENTS]


def _fits(words: list[str], item: dict[str, Any]) -> bool:
    name, latin = fold(item["patient_name"]), latin_key(item["patient_name"])
    number = item["patient_id"].casefold()
    return all(
        (fold(word) and fold(word) in name)
        or (latin_key(word) and latin_key(word) in latin)
        or number.startswith(word.casefold())
        for word in words
    )


@dataclass(frozen=True)
class Holding:
    """Why images wait: a reason of ``envelope.Held``, "" for their turn, "failed"; how many, and until when."""

    reason: str
    instances: int
    until: datetime | None


@dataclass(frozen=True)
class Waiting:
    """Images of one urgency that are not proved everywhere. ``size`` in bytes of the files."""

    urgency: str
    studies: int
    instances: int
    size: int
    since: datetime
    why: list[Holding]
    last_error: str


URGENCIES = (("stat", 0, 9), ("urgent", 10, 49), ("routine", 50, 32767))
"""Names of the ledger's priorities, most urgent first: 0 stat, 10 consult, 20 urgent, 50 routine."""


def waiting_by_urgency() -> list[Waiting]:
    """What is open on the ledger, the most urgent first; urgencies of which nothing waits are left out."""
    found = []
    for urgency, least, most in URGENCIES:
        rows = Delivery.objects.exclude(status__in=Delivery.CLOSED).filter(priority__gte=least, priority__lte=most)
        sums = rows.aggregate(
            studies=Count("study_instance_uid", distinct=True),
            instances=Count("instance_key", distinct=True),
            size=Sum("size", default=0),
            since=Min("created_at"),
        )
        if not sums["instances"]:
            continue
        trouble = rows.exclude(last_error="").order_by("-next_attempt_at").values_list("last_error", flat=True)
        found.append(Waiting(urgency, **sums, why=_why(rows), last_error=trouble.first() or ""))
    return found


def _why(rows: QuerySet[Delivery]) -> list[Holding]:
    groups = (
        rows.order_by("held_by", "status")
        .values("held_by", "status")
        .annotate(instances=Count("pk"), until=Min("held_until"))
    )
    return [
        Holding(
            "failed" if group["status"] == Delivery.Status.FAILED else group["held_by"],
            group["instances"],
            group["until"],
        )
        for group in groups
    ]


@dataclass(frozen=True)
class Space:
    """How long the disk lasts. ``days``: at the pace of the last week; None when nothing came or it cannot fill."""

    free: int
    a_day: int
    days: int | None


def space() -> Space:
    """Free bytes above the mark at which images are refused, and how long they last."""
    store = storage()
    total, free = store.total_bytes(), store.free_bytes()
    now = timezone.now()
    week = Instance.objects.filter(created_at__gte=now - timedelta(days=7), released_at__isnull=True).aggregate(
        size=Sum("size"), first=Min("created_at")
    )
    if not week["size"]:
        return Space(free, 0, None)
    span = max((now - week["first"]) / timedelta(days=1), 1.0)
    a_day = int(week["size"] / span)
    left = max(0, free - store.watermarks.refuse.of(total))
    return Space(free, a_day, left // a_day if a_day else None)


def roster_expires() -> datetime | None:
    """When the people of the roster can no longer log in; None without a roster."""
    first: datetime | None = RosterMember.objects.aggregate(first=Min("expires_at"))["first"]
    return first


def untold_steps() -> int:
    """How many steps made or changed here the centre has not taken in yet."""
    return LocalStep.objects.filter(settled_revision__lt=F("revision")).count()


def my_draft(study: Study, author_key: int) -> ReportDraft | None:
    """The draft of this person on this study."""
    return ReportDraft.objects.filter(
        study_instance_uid=study.study_instance_uid, patient_id=study.patient_id, author_id=author_key
    ).first()


def drafts_of_others(study: Study, author_key: int) -> QuerySet[ReportDraft]:
    """What colleagues wrote here on this study: to read, not to change."""
    found = ReportDraft.objects.filter(study_instance_uid=study.study_instance_uid, patient_id=study.patient_id)
    return found.exclude(author_id=author_key).select_related("author").order_by("-updated_at")

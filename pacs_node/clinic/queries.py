"""What the node's pages show. Staff of the site see all that this node holds."""

import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from django.contrib.auth.models import User
from django.db import Error as DatabaseError
from django.db import connection
from django.db.models import Count, Max, Min, Q, QuerySet
from pydicom.dataset import Dataset

from gateway.models import Delivery, JoinState, NumberedEvent, OutboxEntry
from pacs_node.clinic.models import WorklistEntry
from pacs_node.config import config
from pacs_node.storage.stores import storage
from pacs_node.study_index.models import Instance, Study
from standards import part10
from standards.errors import PermanentError
from standards.matching import date_range
from standards.person_names import fold, latin_key
from worklist.feed import WorklistItem

_DAY_FIRST = re.compile(r"(\d{1,2})[./](\d{1,2})[./](\d{4})")
_YEAR_FIRST = re.compile(r"(\d{4})-?(\d{2})-?(\d{2})")
HELD = Q(is_variant=False, released_at__isnull=True)


def visible_to(user: User) -> QuerySet[Study]:
    """Studies that this person may see: all for the staff of the site, none for anyone else."""
    return Study.objects.all() if user.is_authenticated and user.is_active else Study.objects.none()


def _birth_date(word: str) -> str:
    if match := _DAY_FIRST.fullmatch(word):
        return f"{match[3]}{int(match[2]):02}{int(match[1]):02}"
    if match := _YEAR_FIRST.fullmatch(word):
        return "".join(match.groups())
    return ""


def find_studies(user: User, text: str) -> QuerySet[Study]:
    """Studies whose patient fits every word of ``text``: parts of the name in either script, of an id, a date."""
    studies = visible_to(user)
    for word in text.split():
        fits = Q(patient_id__icontains=word) | Q(accession_number__icontains=word)
        if folded := fold(word):
            fits |= Q(patient_name_fold__contains=folded)
        if latin := latin_key(word):
            fits |= Q(patient_name_latin__contains=latin)
        if date := _birth_date(word):
            fits |= Q(patient_birth_date=date) | Q(study_date=date)
        studies = studies.filter(fits)
    return studies.order_by("-study_date", "-study_time", "-pk")


@dataclass(frozen=True)
class StudyLine:
    """A study as the list shows it: instances held here, and how many of those to mirror are receipted."""

    study: Study
    modalities: list[str]
    held: int
    safe: int
    to_deliver: int


def study_lines(studies: Sequence[Study]) -> list[StudyLine]:
    """The lines of one page, by two queries whatever its length."""
    held = (
        Instance.objects.filter(HELD, series__study__in=[study.pk for study in studies])
        .values_list("series__study_id", "series__modality")
        .annotate(count=Count("pk"))
    )
    modalities: dict[int, set[str]] = {}
    counts: dict[int, int] = {}
    for key, modality, count in held:
        modalities.setdefault(key, set()).add(modality)
        counts[key] = counts.get(key, 0) + count
    progress = deliveries_of(studies)
    return [
        StudyLine(
            study,
            sorted(modalities.get(study.pk, set()) - {""}),
            counts.get(study.pk, 0),
            *progress.get(study.study_instance_uid, (0, 0)),
        )
        for study in studies
    ]


@dataclass(frozen=True)
class DestinationProgress:
    """How far the mirror to one destination is."""

    destination: str
    total: int
    receipted: int
    failed: int
    oldest_waiting: datetime | None
    last_error: str
    outside: dict[str, int] = field(default_factory=dict)
    """What a place outside the region proved, by ``Delivery.Proof``: never a receipt."""

    @property
    def closed(self) -> int:
        """How many are done with, by whatever proof."""
        return self.receipted + sum(self.outside.values())

    @property
    def percent(self) -> int:
        """Done with, in whole percent, 100 only when all are."""
        return self.closed * 100 // self.total if self.total else 100


def delivery_progress() -> list[DestinationProgress]:
    """The ledger by destination."""
    status = Delivery.Status
    outside: dict[str, dict[str, int]] = {}
    delivered = Delivery.objects.filter(status=status.DELIVERED).values_list("destination", "proof").order_by("proof")
    for destination, proof, count in delivered.annotate(Count("pk")):
        outside.setdefault(destination, {})[proof] = count
    rows = (
        Delivery.objects.values("destination")
        .annotate(
            total=Count("pk"),
            receipted=Count("pk", filter=Q(status=status.RECEIPTED)),
            failed=Count("pk", filter=Q(status=status.FAILED)),
            oldest_waiting=Min("created_at", filter=~Q(status__in=Delivery.CLOSED)),
            last_error=Max("last_error", filter=~Q(status__in=Delivery.CLOSED)),
        )
        .order_by("destination")
    )
    return [
        DestinationProgress(
            destination=row["destination"],
            total=row["total"],
            receipted=row["receipted"],
            failed=row["failed"],
            oldest_waiting=row["oldest_waiting"],
            last_error=row["last_error"] or "",
            outside=outside.get(row["destination"], {}),
        )
        for row in rows
    ]


def deliveries_of(studies: Iterable[Study]) -> dict[str, tuple[int, int]]:
    """``(receipted, total)`` by Study Instance UID for these studies, over all destinations."""
    rows = (
        Delivery.objects.filter(study_instance_uid__in=[study.study_instance_uid for study in studies])
        .values("study_instance_uid")
        .annotate(total=Count("pk"), receipted=Count("pk", filter=Q(status__in=Delivery.CLOSED)))
    )
    return {row["study_instance_uid"]: (row["receipted"], row["total"]) for row in rows}


@dataclass(frozen=True)
class NodeState:
    """What the status page and the metrics say. Sizes in bytes."""

    joined: JoinState | None
    events_waiting: int
    deliveries: list[DestinationProgress]
    studies: int
    instances: int
    variants: int
    disk_total: int
    disk_free: int
    low_space: bool

    @property
    def disk_used_percent(self) -> int:
        """Of the file system that instances lie on."""
        return (self.disk_total - self.disk_free) * 100 // self.disk_total if self.disk_total else 0


def node_state() -> NodeState:
    """The state of this node now."""
    joined = JoinState.objects.first()
    events = OutboxEntry.objects.count()
    if joined is not None:
        events += NumberedEvent.objects.filter(epoch=joined.epoch, seq__gt=joined.acknowledged_seq).count()
    root = config().storage_root
    root.mkdir(parents=True, exist_ok=True)
    disk = shutil.disk_usage(root)
    return NodeState(
        joined=joined,
        events_waiting=events,
        deliveries=delivery_progress(),
        studies=Study.objects.count(),
        instances=Instance.objects.filter(HELD).count(),
        variants=Instance.objects.filter(is_variant=True).count(),
        disk_total=disk.total,
        disk_free=disk.free,
        low_space=storage().watermarks.refuses(disk.total, disk.free),
    )


def health() -> dict[str, str]:
    """Each part of the node and ``ok`` or what is wrong with it: database, storage, DICOM port."""
    return {"database": _database_health(), "storage": _storage_health(), "dicom": _dicom_health()}


def _database_health() -> str:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError as error:
        return f"does not answer: {type(error).__name__}"
    return "ok"


def _storage_health() -> str:
    root = config().storage_root
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root) as file:
            file.write(b"regis")
            file.flush()
    except OSError as error:
        return f"cannot be written: {os.strerror(error.errno or 0)}"
    disk = shutil.disk_usage(root)
    if storage().watermarks.refuses(disk.total, disk.free):
        return "is nearly full: new images are refused"
    return "ok"


def _dicom_health() -> str:
    port = config().dicom_port or config().dicom_tls_port
    if not port:
        return "ok"
    try:
        socket.create_connection((config().dicom_host, port), timeout=2).close()
    except OSError as error:
        return f"does not listen: {os.strerror(error.errno or 0)}"
    return "ok"


class ClinicSchedule:
    """The cached worklist as a ``worklist.scp.ScheduleSource``."""

    def items(self, query: Dataset) -> Iterator[WorklistItem]:
        """Items narrowed by station and day in SQL; a day is widened by one on both sides, as zones differ."""
        entries = WorklistEntry.objects.order_by("starts_at", "scheduled_procedure_step_id")
        steps = query.get("ScheduledProcedureStepSequence") or []
        if steps:
            station = part10.text(steps[0], "ScheduledStationAETitle")
            if station and not set(station) & set("*?\\"):
                entries = entries.filter(scheduled_station_ae_title=station)
            first, last = date_range(part10.text(steps[0], "ScheduledProcedureStepStartDate"))
            if first:
                entries = entries.filter(starts_at__gte=_midnight(first) - timedelta(days=1))
            if last:
                entries = entries.filter(starts_at__lt=_midnight(last) + timedelta(days=2))
        for entry in entries.iterator(200):
            yield WorklistItem.model_validate(entry.item)


def _midnight(date: str) -> datetime:
    try:
        return datetime.strptime(date, "%Y%m%d").replace(tzinfo=UTC)
    except ValueError:
        raise PermanentError("invalid-range", f"{date} is not a day of the calendar") from None

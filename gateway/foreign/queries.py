"""What was seen at foreign PACS, what is due, and what pages show of it."""

from dataclasses import dataclass
from datetime import datetime

from django.db.models import Count
from django.utils import timezone

from gateway import queries as gateway_queries
from gateway.envelope import ForeignSource
from gateway.foreign.models import ForeignPacs, ForeignStudy, Retrieval


def quirks_of(source: str) -> list[str]:
    """What this PACS was found not to do."""
    return list(ForeignPacs.objects.filter(name=source).values_list("quirks", flat=True).first() or [])


def due_jobs(source: str, *, busy: set[int], now: datetime, by_rule: bool, at_night: bool) -> list[Retrieval]:
    """Fetches whose turn it is, urgent first; without ``by_rule`` those alone that a person asked for."""
    jobs = Retrieval.objects.filter(source=source, status=Retrieval.Status.WAITING, next_attempt_at__lte=now)
    if not by_rule:
        jobs = jobs.filter(by_person=True)
    if not at_night:
        jobs = jobs.filter(at_night=False)
    return list(jobs.exclude(pk__in=busy).order_by("priority", "pk")[:20])


def is_anybody_waiting(source: str) -> bool:
    """Whether a person asked for a study of this PACS that is due."""
    jobs = Retrieval.objects.filter(source=source, status=Retrieval.Status.WAITING, by_person=True)
    return jobs.filter(next_attempt_at__lte=timezone.now()).exists()


@dataclass(frozen=True)
class SourceState:
    """A foreign PACS as the node's page shows it. ``state`` is None before it was first asked."""

    source: ForeignSource
    state: ForeignPacs | None
    studies: int
    waiting: int
    failed: int


def sources() -> list[SourceState]:
    """Every foreign PACS of this node."""
    states = {row.name: row for row in ForeignPacs.objects.all()}
    listed = dict(
        ForeignStudy.objects.filter(gone_at=None).values_list("source").annotate(count=Count("pk")).order_by()
    )
    counted: dict[tuple[str, str], int] = {
        (name, status): count
        for name, status, count in Retrieval.objects.order_by()
        .values_list("source", "status")
        .annotate(count=Count("pk"))
    }
    return [
        SourceState(
            source,
            states.get(source.name),
            listed.get(source.name, 0),
            counted.get((source.name, Retrieval.Status.WAITING), 0),
            counted.get((source.name, Retrieval.Status.FAILED), 0),
        )
        for source in gateway_queries.configuration().foreign
    ]


def open_retrievals() -> list[Retrieval]:
    """What is being fetched or could not be, the urgent first."""
    return list(Retrieval.objects.exclude(status=Retrieval.Status.DONE).order_by("priority", "pk")[:200])

"""Every change of a disc job: ordered and cancelled by people, moved on by the worker that has its lease."""

from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.http import HttpRequest
from django.utils import timezone
from rest_framework.request import Request

from ris_central.accounts.models import User
from ris_central.audit.actions import record
from ris_central.catalogue.actions.announcing import tell_pages
from ris_central.catalogue.models import Study
from ris_central.catalogue.queries import visible_to as visible_studies
from ris_central.discs.models import DiscJob
from ris_central.discs.transitions import RUNNING, check
from standards.errors import PermanentError, RegisError

AnyRequest = HttpRequest | Request | None
DISCS_GROUP = "discs"
LEASE = timedelta(minutes=2)
"""How long a worker may be silent before another one takes the job over."""
_MOST_ATTEMPTS = 12


class Taken(PermanentError):
    """The job was cancelled, or another worker has it: stop without a word."""

    def __init__(self) -> None:
        super().__init__("job-taken")


def folder_of(job: DiscJob) -> Path:
    """Where the job's files lie."""
    return Path(settings.CONFIG.data_dir) / "discs" / str(job.pk)


@transaction.atomic
def order(
    studies: Iterable[Study], user: User, *, medium: str, with_reports: bool = True, request: AnyRequest = None
) -> DiscJob:
    """Order a disc of studies of one patient.

    Raises: PermanentError("nothing-chosen", "several-patients", "study-not-visible", "unknown-medium").
    """
    chosen = list(studies)
    if not chosen:
        raise PermanentError("nothing-chosen", "Choose at least one study.")
    if medium not in DiscJob.Medium.values:
        raise PermanentError("unknown-medium", medium)
    if len({study.patient_id for study in chosen}) != 1:
        raise PermanentError("several-patients", "A disc holds the studies of one patient.")
    if visible_studies(user).filter(pk__in=[study.pk for study in chosen]).count() != len(chosen):
        raise PermanentError("study-not-visible", "At least one of these studies is not open to you.")
    job = DiscJob.objects.create(
        patient_id=chosen[0].patient_id,
        site_id=chosen[0].site_id,
        medium=medium,
        with_reports=with_reports,
        total=sum(study.instances_known for study in chosen),
        requested_by=user,
    )
    job.studies.set(chosen)
    _record("disc.ordered", job, user, request, studies=[study.study_instance_uid for study in chosen], medium=medium)
    announce(job)
    return job


@transaction.atomic
def cancel(job: DiscJob, user: User, *, request: AnyRequest = None) -> DiscJob:
    """Give up a job that is not done; a worker that has it stops at its next step.

    Raises: ConflictError("state-conflict").
    """
    job = DiscJob.objects.select_for_update(of=("self",)).get(pk=job.pk)
    check(job.status, DiscJob.Status.CANCELLED)
    job.status = DiscJob.Status.CANCELLED
    job.save(update_fields=["status"])
    _record("disc.cancelled", job, user, request)
    announce(job)
    return job


@transaction.atomic
def retry(job: DiscJob, user: User, *, medium: str = "", request: AnyRequest = None) -> DiscJob:
    """Try a failed job again, on another medium if one is given; what was collected is not fetched again.

    Raises: PermanentError("state-conflict", "unknown-medium").
    """
    job = DiscJob.objects.select_for_update(of=("self",)).get(pk=job.pk)
    check(job.status, DiscJob.Status.REQUESTED)
    if medium and medium not in DiscJob.Medium.values:
        raise PermanentError("unknown-medium", medium)
    job.status, job.medium = DiscJob.Status.REQUESTED, medium or job.medium
    job.attempts, job.next_attempt_at, job.error_code, job.error_detail = 0, timezone.now(), "", ""
    job.save()
    _record("disc.retried", job, user, request, medium=job.medium)
    announce(job)
    return job


def due_jobs() -> list[int]:
    """Keys of jobs that no worker has now."""
    due = DiscJob.objects.filter(status__in=list(RUNNING), next_attempt_at__lte=timezone.now())
    return list(due.order_by("requested_at").values_list("pk", flat=True)[:20])


@transaction.atomic
def take(job_key: int) -> DiscJob | None:
    """Take a due job for this worker, back at collecting (which skips what it has); None if another one has it."""
    job = (
        DiscJob.objects.select_for_update(skip_locked=True, of=("self",))
        .select_related("patient", "site")
        .filter(pk=job_key, status__in=list(RUNNING), next_attempt_at__lte=timezone.now())
        .first()
    )
    if job is None:
        return None
    if job.status != DiscJob.Status.COLLECTING:
        check(job.status, DiscJob.Status.COLLECTING)
        job.status = DiscJob.Status.COLLECTING
    job.attempts += 1
    job.done = 0
    job.next_attempt_at = timezone.now() + LEASE
    job.save()
    announce(job)
    return job


def progressed(job: DiscJob, *, done: int, total: int, status: str = "") -> None:
    """Note where this worker is and prolong its lease.

    Raises: Taken when the job was cancelled meanwhile.
    """
    to = status or job.status
    if to != job.status:
        check(job.status, to)
    changed = DiscJob.objects.filter(pk=job.pk, status=job.status, attempts=job.attempts).update(
        status=to, done=done, total=total, next_attempt_at=timezone.now() + LEASE
    )
    if not changed:
        raise Taken
    job.status, job.done, job.total = to, done, total
    announce(job)


@transaction.atomic
def completed(job: DiscJob, *, image: Path, size: int, sha256: str, report: dict[str, Any]) -> None:
    """The image was built, read back and compared.

    Raises: Taken.
    """
    check(job.status, DiscJob.Status.COMPLETED)
    changed = DiscJob.objects.filter(pk=job.pk, status=job.status, attempts=job.attempts).update(
        status=DiscJob.Status.COMPLETED,
        image_path=str(image),
        image_bytes=size,
        image_sha256=sha256,
        report=report,
        error_code="",
        error_detail="",
        verified_at=timezone.now(),
    )
    if not changed:
        raise Taken
    job.refresh_from_db()
    _record("disc.completed", job, None, None, sha256=sha256, bytes=size)
    announce(job)


@transaction.atomic
def failed(job: DiscJob, error: RegisError, *, is_permanent: bool) -> None:
    """Name the reason. What may heal by itself is tried again, later each time, and given up after a dozen tries."""
    current = DiscJob.objects.select_for_update(of=("self",)).get(pk=job.pk)
    if current.status not in RUNNING or current.attempts != job.attempts:
        return
    current.error_code, current.error_detail = error.code[:64], error.detail
    if is_permanent or current.attempts >= _MOST_ATTEMPTS:
        check(current.status, DiscJob.Status.FAILED)
        current.status = DiscJob.Status.FAILED
        _record("disc.failed", current, None, None, code=error.code)
    else:
        current.next_attempt_at = timezone.now() + timedelta(seconds=min(5 * 2**current.attempts, 600))
    current.save()
    announce(current)


def announce(job: DiscJob) -> None:
    """Tell the open pages, after the transaction if there is one."""
    transaction.on_commit(partial(tell_pages, DISCS_GROUP, {"type": "disc.changed", "disc": job.pk}))


def _record(action: str, job: DiscJob, user: User | None, request: AnyRequest, **detail: Any) -> None:
    record(action, request=request, actor=user or "centre", entity=job, patient_key=job.patient_id, detail=dict(detail))

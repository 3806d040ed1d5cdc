"""Build discs. A job is taken by lease, so any worker can go on where a dead one stopped."""

import shutil
import time
from datetime import timedelta
from pathlib import Path

import structlog
from celery import shared_task
from django.conf import settings

from publishing.build import build_disc
from publishing.contract import DiscOptions, Progress
from ris_central.discs import actions
from ris_central.discs.collecting import collect
from ris_central.discs.models import DiscJob
from standards.errors import PermanentError, TransientError

PERIODIC = {"discs-due": {"task": "discs.due", "schedule": 3.0, "options": {"expires": 3}}}
_TELL_EVERY = timedelta(seconds=0.4).total_seconds()
_STEPS = {"reading": DiscJob.Status.BUILDING, "viewer": DiscJob.Status.BUILDING, "writing": DiscJob.Status.BUILDING}

log = structlog.get_logger()


@shared_task(name="discs.due")
def due() -> None:
    """Hand every job that waits, or whose worker went silent, to a worker."""
    for key in actions.due_jobs():
        build.apply_async((key,), expires=10)  # a busy worker finds each job once, not once a tick


@shared_task(name="discs.build")
def build(job_key: int) -> None:
    """Build a disc unless another worker has it."""
    run(job_key)


class _Teller:
    """Tells of progress some times a second, not for every file, and always of a new step."""

    def __init__(self, job: DiscJob) -> None:
        self._job = job
        self._told = 0.0

    def collected(self, done: int, total: int) -> None:
        self._tell(DiscJob.Status.COLLECTING, done, total)

    def built(self, progress: Progress) -> None:
        self._tell(_STEPS.get(progress.step, DiscJob.Status.VERIFYING), progress.done, progress.total)

    def _tell(self, status: str, done: int, total: int) -> None:
        now = time.monotonic()
        if status != self._job.status or done == total or now - self._told >= _TELL_EVERY:
            self._told = now
            actions.progressed(self._job, done=done, total=total, status=status)


def run(job_key: int) -> DiscJob | None:
    """Collect, build and verify; the job is completed, failed with a reason, or waits for its next try."""
    job = actions.take(job_key)
    if job is None:
        return None
    folder = actions.folder_of(job)
    teller = _Teller(job)
    try:
        _make_room(folder)
        paths = collect(job, folder / "sources", teller.collected)
        actions.progressed(job, done=0, total=len(paths), status=DiscJob.Status.BUILDING)
        image = folder / "disc.iso"
        options = DiscOptions(
            institution=job.site.name,
            contact=" ".join(part for part in (job.site.address, job.site.phone) if part),
            medium=job.medium,  # type: ignore[arg-type]
            language="ru" if settings.LANGUAGE_CODE.startswith("ru") else "en",
        )
        report = build_disc(paths, image, options=options, progress=teller.built)
        if job.status != DiscJob.Status.VERIFYING:
            actions.progressed(job, done=report.files, total=report.files, status=DiscJob.Status.VERIFYING)
        if report.rejected:
            names = "; ".join(f"{one.code}: {one.reason}" for one in report.rejected[:3])
            raise PermanentError(
                "instances-rejected", f"{len(report.rejected)} instances cannot go on a disc ({names})"
            )
        details = {"instances": report.instances, "label": report.label, "volume_id": report.volume_id}
        actions.completed(job, image=image, size=report.size, sha256=report.sha256, report=details)
    except actions.Taken:
        log.info("disc-given-up", job=job.pk)
        _clean_if_cancelled(job, folder)
        return job
    except PermanentError as error:
        actions.failed(job, error, is_permanent=True)
        return job
    except TransientError as error:
        actions.failed(job, error, is_permanent=False)
        return job
    except OSError as error:
        actions.failed(job, TransientError("disk-full", f"{error.strerror or error}"), is_permanent=False)
        return job
    shutil.rmtree(folder / "sources", ignore_errors=True)
    return job


def _make_room(folder: Path) -> None:
    """The job's folder, without what a worker that died in the middle of building left."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".regis-disc-*"):
        shutil.rmtree(left, ignore_errors=True)


def _clean_if_cancelled(job: DiscJob, folder: Path) -> None:
    if DiscJob.objects.filter(pk=job.pk, status=DiscJob.Status.CANCELLED).exists():
        shutil.rmtree(folder, ignore_errors=True)

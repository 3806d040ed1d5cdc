"""Bring the files of a disc together: series by series from their nearest holder, streamed to disk, resumable."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from ris_central.catalogue.archive import retrieve_series
from ris_central.catalogue.models import Series
from ris_central.catalogue.queries import nearest_nodes
from ris_central.discs.models import DiscJob
from ris_central.reporting.documents.rendering import as_dicom
from ris_central.reporting.models import ReportDocument
from standards.errors import PermanentError, TransientError

_DONE = "complete"
Count = Callable[[int, int], None]


def collect(job: DiscJob, folder: Path, count: Count) -> list[Path]:
    """The folders with everything that belongs on the disc; ``count(done, total)`` after every file.

    A series that was fetched whole is not fetched again.

    Raises: TransientError("holder-unreachable", "instances-missing"), PermanentError("nothing-held").
    """
    reports = set(
        ReportDocument.objects.filter(report__study__in=job.studies.all()).values_list("series_instance_uid", flat=True)
    )
    wanted = [
        series
        for series in Series.objects.filter(study__in=job.studies.all())
        .select_related("study")
        .order_by("study", "series_number", "pk")
        if series.series_instance_uid not in reports
    ]
    total = sum(series.instance_count for series in wanted)
    done = 0
    folders = []
    count(0, total)
    for series in wanted:
        target = folder / str(series.study_id) / str(series.pk)
        marker = target / _DONE
        if not marker.exists():
            for number in _fetch(series, target):
                count(done + number, total)
            marker.touch()
        done += sum(1 for _ in target.glob("*.dcm"))
        count(done, total)
        folders.append(target)
    if job.with_reports:
        folders += list(_reports(job, folder / "reports"))
    return [path for one in folders for path in sorted(one.glob("*.dcm"))]


def _fetch(series: Series, target: Path) -> Iterator[int]:
    study = series.study.study_instance_uid
    nodes = nearest_nodes(series.study_id, series.series_instance_uid)
    if not nodes:
        raise PermanentError("nothing-held", f"No node holds series {series.series_instance_uid} any more.")
    problem: TransientError | None = None
    for node in nodes:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        number = 0
        try:
            for part in retrieve_series(node, study, series.series_instance_uid):
                with (target / f"{number:06d}.dcm").open("wb") as file:
                    for piece in part:
                        file.write(piece)
                number += 1
                yield number
        except TransientError as error:
            problem = error
            continue
        if number >= _expected(series):
            return
        problem = TransientError("instances-missing", f"{node.name} gave {number} of {_expected(series)} instances")
    if problem is not None:
        raise problem


def _expected(series: Series) -> int:
    """Instances to get; two contents under one UID are one instance to whoever asks by UID."""
    rows = series.instances.values("sop_instance_uid").distinct().count()
    if rows:
        return rows
    manifest = series.manifests.order_by("-version").first()
    return len({entry["sop_instance_uid"] for entry in manifest.entries}) if manifest else series.instance_count


def _reports(job: DiscJob, target: Path) -> Iterator[Path]:
    """The newest PDF and SR of each signed report, from the centre itself, in the archive already or not."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    documents = ReportDocument.objects.filter(report__study__in=job.studies.all()).select_related(
        "report__study__patient", "report__study__site"
    )
    for document in documents.order_by("report", "kind", "-number").distinct("report", "kind"):
        (target / f"{document.report_id}-{document.kind}.dcm").write_bytes(as_dicom(document))
    yield target

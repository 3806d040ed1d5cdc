"""Restoring the index from the files alone: what the storage holds is the truth, its files say where they came from,
journals say what left."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog
from django.core.exceptions import ValidationError
from django.db import DatabaseError, transaction
from django.utils.dateparse import parse_datetime

from pacs_node.storage.layout import as_received_key
from pacs_node.storage.models import Holding, StudyRetention
from pacs_node.storage.stores import storage
from pacs_node.study_index.actions import bring_in
from pacs_node.study_index.counts import recount
from pacs_node.study_index.models import Instance, Series, Study
from pacs_node.study_index.recalling import mark_here
from pacs_node.study_index.snapshots import restore_let_go
from standards.errors import PermanentError

log = structlog.get_logger(__name__)

AWAY = ("tiered",)
GIVEN_UP = ("released", "pixels-removed")
BACK = ("recalled", "healed", "stored", "conflict")


@dataclass
class Report:
    """What a reindex found: counts, files that are not what the journal says, and rows whose file is gone."""

    studies: int = 0
    files: int = 0
    added: int = 0
    elsewhere: int = 0
    damaged: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


@dataclass
class Journal:
    """What a study's journal says now: of each path of a received file the lines on what came there, the line by
    which it left if that is the last word, when it was copied; and the pin."""

    arrivals: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    left: dict[str, dict[str, Any]] = field(default_factory=dict)
    copied: dict[str, str] = field(default_factory=dict)
    pin: dict[str, Any] | None = None

    @classmethod
    def of(cls, study_instance_uid: str) -> "Journal":
        """Read it from the storage, oldest line first."""
        journal = cls()
        for line in storage().journal(study_instance_uid):
            kind, path = line.get("type"), line.get("path")
            if kind == "pin":
                journal.pin = line
            if not isinstance(path, str):
                continue
            if kind in BACK:
                journal.arrivals.setdefault(path, []).append(line)
                journal.left.pop(path, None)
            elif kind in AWAY + GIVEN_UP and "rows" in line:
                journal.left[path] = line
            elif kind == "copied":
                journal.copied[path] = str(line.get("at"))
            elif kind == "copy-let-go":
                journal.copied.pop(path, None)
        return journal

    def came_back(self, path: str) -> bool:
        """Whether its last word on the file at ``path`` is that it came, whatever the index says."""
        return path in self.arrivals and path not in self.left

    def came(self, key: str) -> dict[str, dict[str, Any]]:
        """By digest, the first lines on arrivals under the name of the file at ``key``, whatever its encoding now."""
        lines = self.arrivals.get(as_received_key(key), [])
        return {str(line["dataset_sha256"]): line for line in reversed(lines) if "dataset_sha256" in line}


def reindex(report: Report | None = None) -> Iterator[Report]:
    """Bring every stored file into the index; rows that exist keep their keys. Yields progress after each study.

    A damaged file is named and left where it is. A row whose file is gone is named and kept: only people delete.
    """
    report = report or Report()
    for study_instance_uid in storage().study_instance_uids():
        report.studies += 1
        journal = Journal.of(study_instance_uid)
        added: list[str] = []
        keys = list(storage().keys_of_study(study_instance_uid))
        for key in keys:
            report.files += 1
            came_back = journal.came_back(key)
            journal.left.pop(key, None)
            try:
                if bring_in(key, journal.came(key)):
                    added.append(key)
                elif came_back:
                    _restore_return(key)
            except (PermanentError, OSError) as error:
                log.error("stored-file-damaged", key=key, error=str(error))
                report.damaged.append(f"{key}: {error}")
        report.added += len(added)
        _restore_arrival(added)
        _restore_the_rest(study_instance_uid, keys, journal, report)
        yield report
    held = Instance.objects.filter(released_at__isnull=True, holding__away_at__isnull=True)
    report.missing = [path for path in held.values_list("path", flat=True).iterator() if not storage().exists(path)]
    yield report


def _time(text: str) -> datetime | None:
    try:
        return parse_datetime(text)
    except ValueError:
        return None


def _restore_return(key: str) -> None:
    """The index is older than the journal: it has yet to hear that what was let go of came back."""
    gone = Instance.objects.filter(path=key, released_at__isnull=False).select_related("series__study", "holding")
    for instance in gone:
        with transaction.atomic():
            mark_here(instance)


def _restore_arrival(keys: list[str]) -> None:
    """Instances came when their files were written, not now: rules by age go on as before."""
    with transaction.atomic():
        for start in range(0, len(keys), 500):
            rows = list(Instance.objects.filter(path__in=keys[start : start + 500]).select_related("series__study"))
            for row in rows:
                if written := storage().modified(row.path):
                    row.created_at = min(row.created_at, datetime.fromtimestamp(written, UTC))
                    study = row.series.study
                    Study.objects.filter(pk=study.pk, created_at__gt=row.created_at).update(created_at=row.created_at)
            Instance.objects.bulk_update(rows, ["created_at"])


def _restore_the_rest(study_instance_uid: str, keys: list[str], journal: Journal, report: Report) -> None:
    """What has no file here: instances let go of, the copies at the institution, the pin."""
    for path, line in journal.left.items():
        released = line["type"] in GIVEN_UP
        try:
            if restore_let_go(line, released=released, copied_at=journal.copied.get(path, "")):
                report.elsewhere += 1
        except (LookupError, TypeError, ValueError, AttributeError, ValidationError, DatabaseError) as error:
            log.error("journal-line-damaged", path=path, error=repr(error))
            report.damaged.append(f"{path}: the journal's line on how it left: {type(error).__name__}: {error}")
    now_at = {as_received_key(key): key for key in keys}
    for path, at in journal.copied.items():
        instance = Instance.objects.filter(path=now_at.get(path, path)).first()
        if instance is not None:
            Holding.objects.get_or_create(instance=instance, defaults={"institution_verified_at": _time(at)})
    if journal.pin is not None:
        StudyRetention.objects.get_or_create(
            study_instance_uid=study_instance_uid,
            defaults={"pinned": bool(journal.pin.get("pinned")), "reason": str(journal.pin.get("reason", ""))[:255]},
        )
    if journal.left:
        series = Series.objects.filter(study__study_instance_uid=study_instance_uid)
        recount(series.values_list("pk", flat=True))

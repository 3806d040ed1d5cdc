"""Removing the pixels of a study while the study, its reports and its key images stay."""

from dataclasses import dataclass
from typing import Final

from django.db import transaction
from django.utils import timezone
from pydicom.dataset import Dataset

from gateway.actions import record_released
from pacs_node.config import config
from pacs_node.storage.models import Holding, StudyRetention
from pacs_node.storage.stores import storage
from pacs_node.study_index.copies import as_received, former_paths, other_copies
from pacs_node.study_index.counts import recount
from pacs_node.study_index.models import Instance
from pacs_node.study_index.snapshots import let_go_lines
from standards.errors import PermanentError
from standards.part10 import read_header, text

KEY_OBJECT_SELECTION: Final = "1.2.840.10008.5.1.4.1.1.88.59"
SEGMENTATIONS: Final = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_DEEPEST: Final = 32


@dataclass(frozen=True)
class Removal:
    """What goes and what stays of a study."""

    goes: list[Instance]
    key_images: list[Instance]
    without_pixels: list[Instance]

    @property
    def size(self) -> int:
        """Bytes that go."""
        return sum(instance.size for instance in self.goes)


def plan_removal(study_instance_uid: str) -> Removal:
    """What goes: images, but for those a Key Object Selection of the study refers to, and segmentations.

    Raises: PermanentError("not-found"), and those of reading the Key Object Selections.
    """
    held = Instance.objects.filter(series__study__study_instance_uid=study_instance_uid, released_at=None)
    instances = list(held.select_related("series__study", "holding", "recompression").order_by("pk"))
    if not instances:
        raise PermanentError("not-found", f"nothing of study {study_instance_uid} is held here")
    referred: set[str] = set()
    for instance in instances:
        if instance.sop_class_uid == KEY_OBJECT_SELECTION:
            with storage().open(instance.path) as file:
                referred |= _references(read_header(file).dataset)
    with_pixels = [i for i in instances if i.rows is not None and i.sop_class_uid not in SEGMENTATIONS]
    chosen = {instance.pk for instance in with_pixels if instance.sop_instance_uid not in referred}
    return Removal(
        goes=[instance for instance in with_pixels if instance.pk in chosen],
        key_images=[instance for instance in with_pixels if instance.pk not in chosen],
        without_pixels=[i for i in instances if i.rows is None or i.sop_class_uid in SEGMENTATIONS],
    )


def _references(dataset: Dataset, depth: int = 0) -> set[str]:
    """Every Referenced SOP Instance UID of the content, not of the evidence (which may name the whole study)."""
    found = set[str]()
    for item in dataset.get("ContentSequence") or []:
        for reference in item.get("ReferencedSOPSequence") or []:
            found.add(text(reference, "ReferencedSOPInstanceUID"))
        if depth < _DEEPEST:
            found |= _references(item, depth + 1)
    return found - {""}


def remove_pixels(study_instance_uid: str, *, even_the_last_copy: bool = False) -> Removal:
    """Remove them, journalled; ``recalling.recall_study(…, released=True)`` brings back what has copies elsewhere.

    Raises: PermanentError("no-other-copy") when some have fewer proved copies elsewhere than the rules want, unless
        ``even_the_last_copy``; "study-pinned"; "not-found".
    """
    pinned = StudyRetention.objects.filter(study_instance_uid=study_instance_uid, pinned=True).first()
    if pinned is not None:
        why = pinned.reason or "no reason given"
        raise PermanentError("study-pinned", f"it is pinned: {why}; `pin {study_instance_uid} --off` lets go of it")
    removal = plan_removal(study_instance_uid)
    copies = other_copies(removal.goes)
    short = [i for i in removal.goes if len(copies.get(i.pk, [])) < max(1, config().minimum_copies)]
    if short and not even_the_last_copy:
        raise PermanentError(
            "no-other-copy", f"{len(short)} of {len(removal.goes)} images have too few verified copies elsewhere"
        )
    if not removal.goes:
        return removal
    now = timezone.now()
    stored = [instance.path for instance in removal.goes] + former_paths(removal.goes)
    with transaction.atomic():
        as_received(removal.goes)
    storage().append_journal(study_instance_uid, *let_go_lines("pixels-removed", removal.goes, now))
    with transaction.atomic():
        keys = [instance.pk for instance in removal.goes]
        for start in range(0, len(keys), 500):
            some = keys[start : start + 500]
            Instance.objects.filter(pk__in=some).update(released_at=now)
            Holding.objects.filter(pk__in=some).update(away_at=None)
        recount({instance.series_id for instance in removal.goes})
        by_series: dict[int, list[tuple[str, str]]] = {}
        for instance in removal.goes:
            by_series.setdefault(instance.series_id, []).append((instance.sop_instance_uid, instance.dataset_sha256))
        for series_key, released in by_series.items():
            record_released(series_key, released)
    for path in stored:
        storage().remove(path)
    return removal

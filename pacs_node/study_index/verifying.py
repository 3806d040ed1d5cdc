"""Re-hashing what is stored: bit rot, missing files, files nobody knows, healed or explained one by one.

The walk goes by studies in the order of their folders. For each it compares three things: the files, the index and the
journal. What is damaged is moved aside when good bytes take its place; nothing is ever deleted for being wrong.
"""

import hashlib
import os
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import BinaryIO, Final

import structlog
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from pacs_node.storage.layout import is_recompressed, is_variant, study_key
from pacs_node.storage.models import Finding, Holding
from pacs_node.storage.stores import institution, storage
from pacs_node.study_index.actions import bring_in
from pacs_node.study_index.copies import holding_of, received_key, recompression_of
from pacs_node.study_index.models import Instance, Study
from pacs_node.study_index.recalling import mark_here, put_back
from pacs_node.study_index.reindexing import Journal
from standards.errors import PermanentError, RegisError
from standards.file_meta import read_file_meta

log = structlog.get_logger(__name__)

SETTLED_SECONDS: Final = 60.0
_CHUNK: Final = 1 << 20


@dataclass
class Step:
    """A piece of the walk: bytes read since the last one, and ``study`` once all of that study is done."""

    size: int = 0
    files: int = 0
    study: str = ""


@dataclass
class Known:
    """What index and journal say of one study."""

    held: dict[str, Instance] = field(default_factory=dict)
    released: dict[str, Instance] = field(default_factory=dict)
    former: dict[str, int] = field(default_factory=dict)
    journal: Journal = field(default_factory=Journal)
    open_findings: set[str] = field(default_factory=set)


Steps = Iterator[Step]


def verify(after: str = "", *, settled_seconds: float = SETTLED_SECONDS) -> Steps:
    """One round over all studies behind the key ``after``, then what has no folder and what is half received.

    A file younger than ``settled_seconds`` that the index does not know is left to the process that brings it.
    """
    began = timezone.now()
    for study in storage().study_instance_uids(after):
        yield from _study(study, settled_seconds)
        yield Step(study=study_key(study))
    for study in _without_folder():
        yield from _study(study, settled_seconds)
    for key in storage().strays():
        found(Finding.Kind.FOREIGN, key, "lies where no study belongs; import what is wanted of it, then take it away")
    _half_received()
    if not after:
        _close_unseen(began)
    yield Step()


def _known(study: str) -> Known:
    known = Known()
    rows = Instance.objects.filter(series__study__study_instance_uid=study)
    for instance in rows.select_related("series__study", "holding", "recompression"):
        (known.held if instance.released_at is None else known.released)[instance.path] = instance
        recompressed = recompression_of(instance)
        if recompressed is not None and recompressed.former_path:
            known.former[recompressed.former_path] = instance.pk
    known.journal = Journal.of(study)
    prefix = study_key(study) + "/"
    known.open_findings = set(
        Finding.objects.filter(resolved_at=None, path__startswith=prefix).values_list("path", flat=True)
    )
    return known


def _study(study: str, settled_seconds: float) -> Steps:
    keys = list(storage().keys_of_study(study))  # before the rows: what arrives meanwhile is seen in the rows only
    known = _known(study)
    for key in keys:
        if (instance := known.held.pop(key, None)) is not None:
            yield from _file(instance, known)
        elif (gone := known.released.get(key)) is not None:
            _half_released(gone, known.journal)
        elif key not in known.former:
            yield from _unknown(key, known, settled_seconds)
    for instance in known.held.values():
        yield from _without_file(instance, known)
    for key in storage().foreign(study):
        found(Finding.Kind.FOREIGN, key, "neither an instance nor a journal; Regis writes no such file")
    yield from _institution_copies(study)


def _file(instance: Instance, known: Known) -> Steps:
    """Hash a stored file and mend it when it is not what the index says."""
    key = instance.path
    try:
        with storage().open_stored(key) as file:
            wrong = yield from _wrong(file, instance)
    except OSError as error:
        wrong = f"it cannot be read: {error.strerror or error}"
    except RegisError as error:
        if error.code != "instance-gone":
            raise
        yield from _without_file(instance, known)
        return
    yield Step(files=1)
    if not wrong:
        mark_here(instance)  # a recall or a release may have been cut short by a crash
        if key in known.open_findings:
            resolve(key, "the file is whole again")
        return
    fresh = Instance.objects.filter(pk=instance.pk, path=key, released_at=None).first()
    if fresh is None:
        return  # it was recompressed or released while it was read
    finding = found(Finding.Kind.DAMAGED, key, wrong)
    _heal(instance, finding, damaged=key)


def _wrong(file: BinaryIO, instance: Instance) -> Generator[Step, None, str]:
    """Why the file is not what the index says, "" when it is."""
    _forget_cached(file)
    try:
        meta = read_file_meta(file)
    except PermanentError as error:
        return str(error)
    digest = hashlib.sha256()
    file.seek(meta.dataset_offset)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        yield Step(size=len(chunk))
    _forget_cached(file)
    recompressed = recompression_of(instance)
    expected = recompressed.stored_sha256 if recompressed is not None else instance.dataset_sha256
    if digest.hexdigest() != expected:
        return f"its data set has the digest {digest.hexdigest()[:16]}…, not {expected[:16]}…"
    if meta.transfer_syntax_uid != instance.transfer_syntax_uid:
        return f"its file meta names the transfer syntax {meta.transfer_syntax_uid[:64]!r}"
    return ""


def _forget_cached(file: BinaryIO) -> None:
    """Have the file read from the disk, not from memory, where rot does not show; and keep memory for others."""
    with suppress(OSError):  # what is read over the network has no descriptor
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _heal(instance: Instance, finding: Finding, *, damaged: str = "") -> None:
    """Put good bytes in the place of damaged or missing ones. Without any to be had, a damaged file stays in place."""
    try:
        done = put_back(instance, damaged=damaged)
    except RegisError as error:
        detail = f"{finding.detail.split(' — ')[0]} — not healed: {error}"
        Finding.objects.filter(pk=finding.pk).update(detail=detail[:500], last_at=timezone.now())
        log.error("not-healed", path=finding.path, error=str(error))
        return
    resolve(finding.path, f"healed from {done.place}" + (f"; the damaged file lies at {done.aside}" if damaged else ""))


def _without_file(instance: Instance, known: Known) -> Steps:
    holding = holding_of(instance)
    if holding is not None and holding.away_at is not None:
        return
    if storage().exists(instance.path):
        return  # it arrived while the study was walked
    fresh = Instance.objects.filter(pk=instance.pk, path=instance.path, released_at=None).first()
    if fresh is None or Holding.objects.filter(pk=instance.pk, away_at__isnull=False).exists():
        return  # it left, as it should, while the study was walked
    _heal(instance, found(Finding.Kind.MISSING, instance.path, "the index has it, the storage has not"))
    yield Step()


def _half_released(instance: Instance, journal: Journal) -> None:
    """A file that was let go of by journal and index, and a crash kept its removal from being done."""
    if not Instance.objects.filter(pk=instance.pk, released_at__isnull=False).exists():
        return
    if journal.came_back(instance.path):
        found(Finding.Kind.ORPHAN, instance.path, "let go of by the index; the journal knows that it came back since")
        with transaction.atomic():
            mark_here(instance)
        resolve(instance.path, "brought into the index")
        return
    storage().remove(instance.path)
    found(Finding.Kind.ORPHAN, instance.path, "left by a crash while it was being let go of")
    resolve(instance.path, "let go of")


def _unknown(key: str, known: Known, settled_seconds: float) -> Steps:
    """A file without a row: brought in when it is whole, put aside when it is not."""
    if 0 <= time.time() - storage().modified(key) < settled_seconds or Instance.objects.filter(path=key).exists():
        return
    why = "left by a crash before the index commit, so nobody was answered for it"
    finding = found(Finding.Kind.ORPHAN, key, why)
    size = 0
    try:
        added = bring_in(key, known.journal.came(key))
        with storage().open(key) as file:
            size = file.seek(0, 2)
    except PermanentError as error:
        aside = storage().set_aside(key)
        resolve(key, f"put aside at {aside}: {error}")
    except OSError as error:
        detail = f"the index does not know it, and it cannot be read: {error.strerror or error}"
        Finding.objects.filter(pk=finding.pk).update(detail=detail[:500])
    else:
        if added or Instance.objects.filter(path=key).exists():
            resolve(key, "brought into the index")
        elif is_recompressed(key):
            storage().remove(key)
            resolve(key, "removed: made from an instance that lies there as it was received")
        else:
            aside = storage().set_aside(key)
            resolve(key, f"put aside at {aside}: the index has the same content at another path")
    log.warning("orphan", path=finding.path, variant=is_variant(key))
    yield Step(size=size, files=1)


def _institution_copies(study: str) -> Steps:
    """Read the institution's copies of a study back: what is promised as a copy must be one."""
    store = institution()
    if store is None:
        return
    rows = Instance.objects.filter(series__study__study_instance_uid=study, released_at=None).filter(
        Q(holding__institution_verified_at__isnull=False) | Q(holding__away_at__isnull=False)
    )
    for instance in rows.select_related("series__study", "holding"):
        key = received_key(instance)
        if instance.holding.institution_verified_at is None and not store.exists(key):
            yield Step()
            continue  # away, and its copies are elsewhere
        digest = hashlib.sha256()
        try:
            with store.open_stored(key) as file:
                file.seek(read_file_meta(file).dataset_offset)
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    yield Step(size=len(chunk))
            wrong = "" if digest.hexdigest() == instance.dataset_sha256 else "the copy is damaged"
        except PermanentError as error:
            wrong = str(error)
        except OSError as error:
            wrong = f"it cannot be read: {error.strerror or error}"
        yield Step(files=1)
        path = f"institution:{key}"
        if not wrong:
            Holding.objects.filter(pk=instance.pk).update(institution_verified_at=timezone.now())
            resolve(path, "the copy is whole")
            continue
        found(Finding.Kind.COPY, path, wrong)
        if store.exists(key):
            store.set_aside(key)
        Holding.objects.filter(pk=instance.pk).update(institution_verified_at=None)


def _without_folder() -> Iterator[str]:
    """Studies of which the index holds something here, and the storage has not even the folder."""
    uids = Study.objects.order_by("study_instance_uid").values_list("study_instance_uid", flat=True).distinct()
    for uid in uids.iterator(1000):
        if not storage().has_study(uid):
            yield uid


def _half_received() -> None:
    for name, alive in storage().half_received():
        if not alive:
            path = f"incoming/{name}"
            found(Finding.Kind.ORPHAN, path, "half received when its process ended; nobody was answered for it")
            storage().remove(path)
            resolve(path, "removed")


def _close_unseen(began: datetime) -> None:
    """What a whole round did not find again is no more: a person took a file away, or deleted the instance.

    A damaged copy is not looked at again before it is made anew, which closes its finding.
    """
    unseen = Finding.objects.filter(resolved_at=None, last_at__lt=began).exclude(kind=Finding.Kind.COPY)
    unseen.update(resolved_at=timezone.now(), resolution="it is there no more")


def found(kind: Finding.Kind, path: str, detail: str) -> Finding:
    """Write a finding down, once however often it is seen. A name that is no text is shown with escapes."""
    path = path.encode("utf-8", "backslashreplace").decode("utf-8")
    finding, created = Finding.objects.get_or_create(
        kind=kind, path=path[:255], resolved_at=None, defaults={"detail": detail[:500]}
    )
    if created:
        log.warning("storage-finding", kind=str(kind), path=path, detail=detail)
    else:
        Finding.objects.filter(pk=finding.pk).update(last_at=timezone.now())
    return finding


def resolve(path: str, resolution: str) -> None:
    """Close the open findings of a path."""
    Finding.objects.filter(path=path[:255], resolved_at=None).update(
        resolved_at=timezone.now(), resolution=resolution[:255]
    )

"""Taking instances in: durable first, then indexed, then answered."""

import errno
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from django.db import IntegrityError, OperationalError, transaction
from django.utils import timezone

from gateway.actions import record_conflict, record_stored
from pacs_node.storage.filesystem import storage
from pacs_node.storage.layout import instance_key, is_variant, variant_key
from pacs_node.study_index.attributes import IndexRows, index_rows
from pacs_node.study_index.models import Instance, Series, Study
from standards.digests import dataset_sha256, pixel_sha256
from standards.errors import PermanentError, TransientError
from standards.part10 import Header, read_header, write_file_meta
from standards.sop_classes import STORAGE_SOP_CLASSES

Outcome = Literal["stored", "duplicate", "conflict"]

_STORABLE = frozenset(STORAGE_SOP_CLASSES)
_COPY_BYTES = 1 << 20
# Two senders of one instance take turns; the unique constraints decide between processes.
_turns = [threading.Lock() for _ in range(256)]


@dataclass(frozen=True)
class Ingested:
    """An instance taken in. ``duplicate``: it was here already; ``conflict``: kept aside, its UID is used otherwise."""

    instance: Instance
    outcome: Outcome


@dataclass(frozen=True)
class Source:
    """Who brought an instance, and what is assumed where it is silent."""

    ae_title: str
    address: str = ""
    default_character_set: str = ""
    default_issuer: str = ""


def ingest(
    content: BinaryIO | Path,
    *,
    source_ae_title: str,
    address: str = "",
    expected_sop_class: str | None = None,
    expected_sop_instance: str | None = None,
    transfer_syntax: str | None = None,
    default_character_set: str = "",
    default_issuer: str = "",
) -> Ingested:
    """Take one instance in from a stream or a file (which stays): on return it survives a power cut and is found.

    ``content`` is a Part 10 file or, with ``transfer_syntax``, a bare data set whose SOP UIDs are the expected ones.

    Raises:
        PermanentError: what can never be stored (``standards.part10.read_header``), "sop-class-mismatch",
            "sop-instance-mismatch", "sop-class-not-supported".
        TransientError: "storage-full", "database-busy".
    """
    incoming = storage().new_incoming()
    meta = b""
    if transfer_syntax is not None:
        meta = write_file_meta(expected_sop_class or "", expected_sop_instance or "", transfer_syntax)
    try:
        if isinstance(content, Path):
            with content.open("rb") as file:
                _copy(meta, file, incoming)
        else:
            _copy(meta, content, incoming)
        return ingest_incoming(
            incoming,
            Source(source_ae_title, address, default_character_set, default_issuer),
            expected_sop_class=expected_sop_class,
            expected_sop_instance=expected_sop_instance,
        )
    finally:
        incoming.unlink(missing_ok=True)


def ingest_incoming(
    incoming: Path,
    source: Source,
    *,
    expected_sop_class: str | None = None,
    expected_sop_instance: str | None = None,
) -> Ingested:
    """:func:`ingest` for a Part 10 file that lies in the storage's ``incoming`` already; it is moved from there."""
    with incoming.open("rb") as file:
        header = read_header(file, default_charset=source.default_character_set)
        _check(header, expected_sop_class, expected_sop_instance)
        dataset_digest = dataset_sha256(file)
        pixel_digest = pixel_sha256(file, header)
    rows = index_rows(header, default_issuer=source.default_issuer)
    rows.instance.update(dataset_sha256=dataset_digest, pixel_sha256=pixel_digest, source_ae_title=source.ae_title[:64])
    try:
        with _turns[hash(header.sop_instance_uid) % len(_turns)]:
            return _store(incoming, header, rows, source)
    except OperationalError as error:
        raise TransientError("database-busy", str(error)) from error


def _copy(meta: bytes, stream: BinaryIO, target: Path) -> None:
    with target.open("xb") as file:
        chunk = meta or stream.read(_COPY_BYTES)
        while chunk:
            try:
                file.write(chunk)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise TransientError("storage-full", "the disk of the storage is full") from error
                raise
            chunk = stream.read(_COPY_BYTES)


def _check(header: Header, expected_sop_class: str | None, expected_sop_instance: str | None) -> None:
    if expected_sop_class is not None and header.sop_class_uid != expected_sop_class.strip("\0 "):
        raise PermanentError(
            "sop-class-mismatch", f"announced {expected_sop_class}, the data set says {header.sop_class_uid}"
        )
    if expected_sop_instance is not None and header.sop_instance_uid != expected_sop_instance.strip("\0 "):
        raise PermanentError(
            "sop-instance-mismatch", f"announced {expected_sop_instance}, the data set says {header.sop_instance_uid}"
        )
    if header.sop_class_uid not in _STORABLE:
        raise PermanentError("sop-class-not-supported", f"{header.sop_class_uid} is not a storage SOP class")


def _store(path: Path, header: Header, rows: IndexRows, source: Source) -> Ingested:
    """Place the file, then index it. When another process wins a race, look again at what is there now."""
    study, series, sop = header.study_instance_uid, header.series_instance_uid, header.sop_instance_uid
    digest = rows.instance["dataset_sha256"]
    for _ in range(4):
        known = list(Instance.objects.filter(sop_instance_uid=sop))
        current = next((instance for instance in known if not instance.is_variant), None)
        same = next((instance for instance in known if instance.dataset_sha256 == digest), None)
        if same is not None:
            _drop_unindexed(path)
            if same.released_at is None and not storage().exists(same.path):
                storage().place(path, same.path)  # the file was lost outside of Regis: this copy heals it
            return Ingested(same, "duplicate")
        key = instance_key(study, series, sop)
        if current is not None or not _place(path, key, digest):
            key = variant_key(study, series, sop, digest)
            if not _place(path, key, digest):
                raise TransientError("storage-damaged", f"{key} lies on the storage with other content")
        path = storage().local_path(key)
        storage().append_journal(study, _journal_line(key, header, rows, source, current))
        try:
            return _index(rows, key, source, current)
        except IntegrityError:
            continue
    raise TransientError("database-busy", "other processes keep storing the same instance")


def _place(path: Path, key: str, digest: str) -> bool:
    """Whether the bytes lie at ``key`` now: placed, or left there by a process that ended before it indexed them."""
    if storage().place(path, key):
        return True
    with storage().open(key) as file:
        try:
            return dataset_sha256(file) == digest
        except PermanentError:
            return False


def _drop_unindexed(path: Path) -> None:
    """Remove a file that lost a race after it was placed; one in ``incoming`` is removed by its owner."""
    root = storage().root
    if path.is_relative_to(root / "studies"):
        key = path.relative_to(root).as_posix()
        if not Instance.objects.filter(path=key).exists():
            storage().remove(key)


def _journal_line(
    key: str, header: Header, rows: IndexRows, source: Source, current: Instance | None
) -> dict[str, Any]:
    line = {
        "type": "conflict" if is_variant(key) else "stored",
        "at": timezone.now().isoformat(),
        "path": key,
        "series_instance_uid": header.series_instance_uid,
        "sop_instance_uid": header.sop_instance_uid,
        "dataset_sha256": rows.instance["dataset_sha256"],
        "pixel_sha256": rows.instance["pixel_sha256"],
        "source_ae_title": source.ae_title,
        "address": source.address,
        "default_character_set": source.default_character_set,
        "default_issuer": source.default_issuer,
    }
    if current is not None:
        line["kept_sha256"] = current.dataset_sha256
    return line


@transaction.atomic
def _index(rows: IndexRows, key: str, source: Source, current: Instance | None) -> Ingested:
    study, created = Study.objects.get_or_create(
        study_instance_uid=rows.study["study_instance_uid"],
        patient_id=rows.study["patient_id"],
        issuer_of_patient_id=rows.study["issuer_of_patient_id"],
        defaults=rows.study,
    )
    if not created:
        _fill_blanks(study, rows.study)
    series, created = Series.objects.get_or_create(
        study=study, series_instance_uid=rows.series["series_instance_uid"], defaults=rows.series
    )
    if not created:
        _fill_blanks(series, rows.series)
    variant = is_variant(key)
    instance = Instance.objects.create(series=series, path=key, is_variant=variant, **rows.instance)
    record_stored(
        instance_key=instance.pk,
        series_key=series.pk,
        study_instance_uid=study.study_instance_uid,
        sop_instance_uid=instance.sop_instance_uid,
        dataset_sha256=instance.dataset_sha256,
    )
    if variant:
        record_conflict(
            study_instance_uid=study.study_instance_uid,
            sop_instance_uid=instance.sop_instance_uid,
            kept_sha256=current.dataset_sha256 if current else "",
            variant_sha256=instance.dataset_sha256,
            source_ae_title=source.ae_title,
        )
    return Ingested(instance, "conflict" if variant else "stored")


def _fill_blanks(row: Study | Series, values: dict[str, Any]) -> None:
    """What the first instance did not say, a later one may; nothing that was said changes."""
    missing = [name for name, value in values.items() if value not in ("", None, {}) and not getattr(row, name)]
    missing = [name for name in missing if getattr(row, name) != values[name]]
    if missing:
        for name in missing:
            setattr(row, name, values[name])
        row.save(update_fields=[*missing, "updated_at"])


def index_stored(key: str, header: Header, *, dataset_digest: str, pixel_digest: str | None, source: Source) -> bool:
    """Bring a file that already lies in the storage into the index (reindex, restore); False when it is there.

    Raises: TransientError("database-busy").
    """
    rows = index_rows(header, default_issuer=source.default_issuer)
    rows.instance.update(dataset_sha256=dataset_digest, pixel_sha256=pixel_digest, source_ae_title=source.ae_title[:64])
    uid = header.sop_instance_uid
    if Instance.objects.filter(sop_instance_uid=uid, dataset_sha256=dataset_digest).exists():
        return False
    current = Instance.objects.filter(sop_instance_uid=uid, is_variant=False).first()
    try:
        _index(rows, key, source, current)
    except OperationalError as error:
        raise TransientError("database-busy", str(error)) from error
    return True


def release(instances: list[Instance]) -> None:
    """Let go of the files of these instances: journal, index, then the files; the index keeps that they were here."""
    held = [instance for instance in instances if instance.released_at is None]
    by_study: dict[str, list[Instance]] = {}
    for instance in held:
        by_study.setdefault(instance.series.study.study_instance_uid, []).append(instance)
    now = timezone.now()
    for study, members in by_study.items():
        storage().append_journal(
            study,
            *(
                {
                    "type": "released",
                    "at": now.isoformat(),
                    "path": instance.path,
                    "sop_instance_uid": instance.sop_instance_uid,
                    "dataset_sha256": instance.dataset_sha256,
                }
                for instance in members
            ),
        )
    Instance.objects.filter(pk__in=[instance.pk for instance in held]).update(released_at=now)
    for instance in instances:
        storage().remove(instance.path)

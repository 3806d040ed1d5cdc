"""Backup and restore of a node: its database, secrets and keys in one archive; instances by manifest or with it.

The archive is a tar file: ``backup.json``, ``database.sqlite3`` or ``tables/*.copy``, ``files/…`` of the data folder,
``manifest.tsv`` (path, size, digest of every instance held) and, if asked for, ``storage/…``.
"""

import io
import json
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from django.apps import apps
from django.core.management import call_command
from django.core.management.color import no_style
from django.db import connection, transaction
from django.db.migrations.recorder import MigrationRecorder
from django.utils import timezone

from gateway.actions import new_epoch
from pacs_node.config import config
from pacs_node.storage.filesystem import FilesystemStorage
from pacs_node.storage.layout import JOURNAL, study_key
from pacs_node.storage.stores import storage
from pacs_node.study_index.models import Instance, Study
from pacs_node.study_index.reindexing import Report, reindex
from standards.errors import PermanentError

FORMAT: Final = 1
LAST_BACKUP: Final = "last-backup.json"
"""In the data folder: when the last backup was made, and of what size."""
_NOT_KEPT: Final = ("node.sqlite3", "static", "log", "logs", LAST_BACKUP)


@dataclass
class Restored:
    """What a restore brought back, and which instances of the manifest the storage does not hold."""

    instances: int = 0
    missing: list[str] = field(default_factory=list)
    index: Report = field(default_factory=Report)


def backup(target: Path, *, with_instances: bool = False) -> int:
    """Write a backup while the node serves; how many instances its manifest names. The file is private (0600)."""
    fresh = target.with_name(f".{target.name}.part")
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=0o600)
    with TemporaryDirectory(dir=target.parent) as folder, tarfile.open(fresh, "w") as archive:
        _add_text(archive, "backup.json", json.dumps(_description()))
        _add_database(archive, Path(folder))
        for path in _own_files():
            archive.add(path, f"files/{path.relative_to(config().data_dir.absolute()).as_posix()}")
        count = _add_manifest(archive, Path(folder))
        if with_instances:
            for study in storage().study_instance_uids():
                _add_study(archive, study)
    fresh.replace(target)
    note = config().data_dir / LAST_BACKUP
    fresh_note = note.with_suffix(".part")
    fresh_note.write_text(json.dumps({"at": timezone.now().isoformat(), "bytes": target.stat().st_size}))
    fresh_note.replace(note)
    return count


def restore(source: Path) -> Restored:
    """Bring a backup back into this node, which must be empty, under a new epoch of events.

    What the storage holds beyond the backup is indexed again, so nothing that was acknowledged is forgotten.

    Raises: PermanentError "not-a-backup", "node-not-empty", "other-version", "other-database".
    """
    with tarfile.open(source) as archive:
        description = _read_description(archive)
        _check_target(description)
        with TemporaryDirectory(dir=config().data_dir) as folder:
            unpacked = Path(folder)
            _unpack(archive, unpacked)
            _restore_files(unpacked / "files", config().data_dir.absolute())
            _restore_storage(unpacked / "storage")
            _restore_database(unpacked)
            call_command("migrate", interactive=False, verbosity=0)
            new_epoch()
            named = [
                line.split("\t")[0] for line in (unpacked / "manifest.tsv").read_text(encoding="ascii").splitlines()
            ]
    restored = Restored(len(named))
    for restored.index in reindex():
        pass
    gone = set(restored.index.missing)  # not what another tier holds, nor what lies there in another encoding by now
    restored.missing = [path for path in named if path in gone]
    os.sync()  # the operator may throw the backup away once this returns
    return restored


def _description() -> dict[str, Any]:
    return {
        "format": FORMAT,
        "at": timezone.now().isoformat(),
        "name": config().name,
        "ae_title": config().ae_title,
        "database": connection.vendor,
        "migrations": sorted(".".join(key) for key in MigrationRecorder(connection).applied_migrations()),
    }


def _read_description(archive: tarfile.TarFile) -> dict[str, Any]:
    try:
        member = archive.extractfile("backup.json")
        description = json.loads(member.read()) if member else None
    except (KeyError, ValueError):
        description = None
    if not isinstance(description, dict):
        raise PermanentError("not-a-backup", "there is no backup.json in it")
    return description


def _check_target(description: dict[str, Any]) -> None:
    if description.get("format") != FORMAT:
        raise PermanentError("other-version", f"the backup has format {description.get('format')}")
    if description["database"] != connection.vendor:
        raise PermanentError("other-database", f"the backup is of {description['database']}")
    if "study_index_study" in connection.introspection.table_names() and Study.objects.exists():
        raise PermanentError("node-not-empty", "this node holds studies; restore into an empty one")


def _unpack(archive: tarfile.TarFile, folder: Path) -> None:
    """Regular files only, and none outside of ``folder``. (Early releases of Python 3.11 have no extraction filter.)"""
    for member in archive:
        target = (folder / member.name).resolve()
        content = archive.extractfile(member) if member.isreg() else None
        if content is None or not target.is_relative_to(folder.resolve()):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch(mode=0o600)
        with target.open("wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)


def _own_files() -> Iterator[Path]:
    root = config().data_dir.absolute()
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root).parts
        if path.is_symlink() or not path.is_file() or inside[0].startswith(_NOT_KEPT):
            continue
        if inside[:2] == ("proxy", "spool"):
            continue  # copies on their way come and go at any moment; the old PACS has what they are of
        if not path.is_relative_to(storage().root) and not any(part.startswith(".") for part in inside):
            yield path


def _add_text(archive: tarfile.TarFile, name: str, content: str) -> None:
    data = content.encode("utf-8")
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o600
    archive.addfile(member, io.BytesIO(data))


def _add_study(archive: tarfile.TarFile, study_instance_uid: str) -> None:
    store, key = storage(), study_key(study_instance_uid)
    if type(store) is FilesystemStorage:
        archive.add(store.root / key, f"storage/{key}")
        return
    for path in store.keys_of_study(study_instance_uid):
        with store.open_stored(path) as file:
            member = tarfile.TarInfo(f"storage/{path}")
            member.size, member.mode = file.seek(0, io.SEEK_END), 0o600
            file.seek(0)
            archive.addfile(member, file)
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in store.journal(study_instance_uid))
    if lines:
        _add_text(archive, f"storage/{key}/{JOURNAL}", lines)


def _add_manifest(archive: tarfile.TarFile, folder: Path) -> int:
    path, count = folder / "manifest.tsv", 0
    rows = (
        Instance.objects.filter(released_at__isnull=True).order_by("pk").values_list("path", "size", "dataset_sha256")
    )
    with path.open("w", encoding="ascii") as file:
        for row in rows.iterator():
            file.write("\t".join(map(str, row)) + "\n")
            count += 1
    archive.add(path, "manifest.tsv")
    return count


def _add_database(archive: tarfile.TarFile, folder: Path) -> None:
    if connection.vendor == "sqlite":
        copy = folder / "database.sqlite3"
        connection.ensure_connection()
        target = sqlite3.connect(copy)
        try:
            connection.connection.backup(target)
        finally:
            target.close()
        archive.add(copy, "database.sqlite3")
        return
    with _snapshot() as cursor:
        for table in sorted(connection.introspection.table_names()):
            path = folder / f"{table}.copy"
            with path.open("wb") as file, cursor.copy(f"COPY {connection.ops.quote_name(table)} TO STDOUT") as copying:
                for chunk in copying:
                    file.write(chunk)
            archive.add(path, f"tables/{table}.copy")
            path.unlink()


@contextmanager
def _snapshot() -> Iterator[Any]:
    """A cursor that sees the whole database at one moment."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield cursor


def _restore_files(unpacked: Path, target: Path) -> None:
    if not unpacked.is_dir():
        return
    for path in sorted(unpacked.rglob("*")):
        if path.is_file():
            place = target / path.relative_to(unpacked)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)


def _restore_storage(unpacked: Path) -> None:
    """The stored files of the backup into this node's storage, of whatever kind it is."""
    store = storage()
    if type(store) is FilesystemStorage:
        _restore_files(unpacked, store.root)
        return
    for path in sorted(unpacked.rglob("*")):
        if path.suffix == ".dcm":
            store.place(path, path.relative_to(unpacked).as_posix())
        elif path.name == JOURNAL:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            store.append_journal(path.parent.name, *lines)


def _restore_database(unpacked: Path) -> None:
    if connection.vendor == "sqlite":
        copy = sqlite3.connect(unpacked / "database.sqlite3")
        try:
            connection.ensure_connection()
            copy.backup(connection.connection)
        finally:
            copy.close()
        connection.close()
        return
    call_command("migrate", interactive=False, verbosity=0)
    files = {path.stem: path for path in (unpacked / "tables").glob("*.copy")}
    tables = [table for table in connection.introspection.table_names() if table in files]
    quoted = ", ".join(connection.ops.quote_name(table) for table in tables)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL DEFERRED")
        cursor.execute(f"TRUNCATE {quoted} CASCADE")
        for table in tables:
            with cursor.copy(f"COPY {connection.ops.quote_name(table)} FROM STDIN") as copying:
                copying.write(files[table].read_bytes())
        for statement in connection.ops.sequence_reset_sql(no_style(), apps.get_models(include_auto_created=True)):
            cursor.execute(statement)

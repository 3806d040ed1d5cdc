"""Instances on a filesystem, written so that what was answered is still there after a power cut."""

import errno
import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import structlog

from pacs_node.storage.incoming import Incoming
from pacs_node.storage.layout import ASIDE, JOURNAL, STUDIES, is_instance_key, is_study_folder, study_key
from pacs_node.storage.watermarks import Space, Watermarks
from standards.errors import PermanentError, TransientError

log = structlog.get_logger(__name__)

_OUT_OF_SPACE = {errno.ENOSPC, errno.EDQUOT}


_SPARE = 4


def fsync_path(path: Path | str) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(incoming: Incoming | Path, target: str) -> None:
    if isinstance(incoming, Path):
        os.link(incoming, target)
    else:
        incoming.link(target)


class FilesystemStorage:
    """Storage in the folder ``root``; refuses new instances when ``watermarks`` say that the disk is nearly full.

    ``recall(key)``, when set, is asked for a file that is not here and answers whether it has put it back.
    """

    def __init__(self, root: Path, *, watermarks: Watermarks | None = None) -> None:
        self.root = root.absolute()
        self.watermarks = watermarks or Watermarks(Space())
        self.recall: Callable[[str], bool] | None = None
        self.incoming = self.root / "incoming"
        self._spare: list[Incoming] = []
        self._durable: set[str] = set()
        self._journal_locks = [threading.Lock() for _ in range(64)]
        self._make_durable(self.incoming)

    def new_incoming(self) -> Path:
        """A fresh path on the storage's own filesystem. Raises: TransientError("storage-full")."""
        self.check_space()
        return self.incoming / f"{os.getpid()}-{uuid.uuid4().hex}.dcm"

    def check_space(self, coming: int = 0) -> None:
        """Raises: TransientError("storage-full") below the watermark, or if ``coming`` bytes more would lead there."""
        usage = shutil.disk_usage(self.root)
        total, free = usage.total, usage.free
        if coming and self.watermarks.refuse.of(total) > free - coming:
            raise TransientError("storage-full", f"only {free // 1_000_000} MB are free for {coming // 1_000_000} MB")
        if self.watermarks.refuses(total, free):
            raise TransientError("storage-full", f"only {free // 1_000_000} MB are free on the storage")

    def receive(self, meta: bytes) -> Incoming:
        """A file to receive an instance into, beginning with ``meta``.

        Raises: TransientError("storage-full"), PermanentError("length-out-of-bounds").
        """
        self.check_space()
        try:
            incoming = self._spare.pop()
        except IndexError:
            incoming = Incoming(self.incoming)
        try:
            return incoming.begin(meta)
        except PermanentError:
            incoming.close()
            raise

    def prepare(self) -> None:
        """Open the next file to receive into before it is needed: a sender pauses between two instances."""
        if len(self._spare) < _SPARE:
            self._spare.append(Incoming(self.incoming))

    def place(self, incoming: Incoming | Path, key: str) -> bool:
        """Give the file its name, durably with all its parents; False when the key is taken (the file stays).

        A path is moved from where it lies. The name comes first, so that one flush of the filesystem's log serves file
        and folder. A file torn by a power cut in between is not in the index, and its own meta group tells that it is
        not whole: the next that asks for the name sets it aside.
        """
        target = f"{self.root}/{key}"
        folder = target.rpartition("/")[0]
        try:
            if not self._name(incoming, target, folder):
                return False
            if isinstance(incoming, Path):
                fsync_path(incoming)
                incoming.unlink()
            else:
                incoming.sync()
            fsync_path(folder)
        except OSError as error:
            raise self._translated(error) from error
        return True

    def _name(self, incoming: Incoming | Path, target: str, folder: str) -> bool:
        if isinstance(incoming, Incoming):
            incoming.write_out()
        self._make_durable(folder)
        try:
            _link(incoming, target)  # unlike a rename, a link never replaces what is there
        except FileExistsError:
            return False
        except FileNotFoundError:  # the folder was removed behind our back (last instance released)
            self._durable.clear()
            self._make_durable(folder)
            _link(incoming, target)
        return True

    def open(self, key: str) -> BinaryIO:
        """The file at ``key``, fetched back if need be.

        Raises: PermanentError("instance-gone"), TransientError("recall-failed").
        """
        try:
            return (self.root / key).open("rb")
        except FileNotFoundError:
            return self.local_path(key).open("rb")

    def open_stored(self, key: str) -> BinaryIO:
        """The file itself, whatever a cache may hold. Raises: as ``open``."""
        return self.open(key)

    def local_path(self, key: str) -> Path:
        """The file at ``key`` as a path of this machine, fetched back if need be.

        Raises: PermanentError("instance-gone"), TransientError("recall-failed").
        """
        path = self.root / key
        if not path.is_file() and not (self.recall is not None and self.recall(key) and path.is_file()):
            raise PermanentError("instance-gone", f"{key} is not on the storage")
        return path

    def exists(self, key: str) -> bool:
        """Whether a file lies at ``key`` now, without fetching it back."""
        return (self.root / key).is_file()

    def set_aside(self, key: str) -> str:
        """Move the file at ``key`` out of the way for a person to look at, durably; where it lies now."""
        aside = f"{ASIDE}/{key.removeprefix(STUDIES + '/')}.{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        target = self.root / aside
        self._make_durable(target.parent)
        (self.root / key).rename(target)
        fsync_path(target.parent)
        fsync_path((self.root / key).parent)
        return aside

    def remove(self, key: str) -> None:
        """Let go of the file at ``key``, durably; nothing happens when it is gone."""
        path = self.root / key
        if path.is_file():
            path.unlink()
            fsync_path(path.parent)

    def append_journal(self, study_instance_uid: str, *lines: dict[str, Any]) -> None:
        """Add lines to the study's journal, durably. Raises: TransientError("storage-full")."""
        folder = self.root / study_key(study_instance_uid)
        text = "".join(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line in lines)
        try:
            self._make_durable(folder)
            with self._journal_locks[hash(folder) % len(self._journal_locks)]:
                self._append(folder / JOURNAL, text.encode("utf-8"))
        except OSError as error:
            raise self._translated(error) from error

    def _append(self, path: Path, data: bytes) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                data = b"\n" + data  # a crash tore the last line: leave it as it is, start a new one
            written = 0
            while written < len(data):
                written += os.write(descriptor, data[written:])
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if not size:
            fsync_path(path.parent)

    def journal(self, study_instance_uid: str) -> Iterator[dict[str, Any]]:
        """The lines of the study's journal, oldest first; a line torn by a crash is left out and logged."""
        path = self.root / study_key(study_instance_uid) / JOURNAL
        if not path.is_file():
            return
        with path.open("rb") as file:
            yield from self._lines(file, study_instance_uid)

    @staticmethod
    def _lines(journal: Iterable[bytes], study_instance_uid: str) -> Iterator[dict[str, Any]]:
        for number, raw in enumerate(journal, start=1):
            try:
                line = json.loads(raw)
            except ValueError:
                log.warning("journal-line-torn", study_instance_uid=study_instance_uid, line=number)
                continue
            if isinstance(line, dict):
                yield line

    def study_instance_uids(self, after: str = "") -> Iterator[str]:
        """Every study that has a folder, in the order of ``layout.study_key``; those behind the key ``after`` only."""
        for parent in sorted((self.root / STUDIES).glob("??")):
            if f"{STUDIES}/{parent.name}" < after[: len(STUDIES) + 3]:
                continue
            for folder in sorted(parent.iterdir()) if parent.is_dir() else ():
                key = f"{STUDIES}/{parent.name}/{folder.name}"
                if key > after and is_study_folder(key) and folder.is_dir():
                    yield folder.name

    def strays(self) -> Iterator[str]:
        """What lies among the studies' folders and is none: files, and folders with files, of a person's making."""
        studies = self.root / STUDIES
        for parent in sorted(studies.iterdir()) if studies.is_dir() else ():
            for path in sorted(parent.iterdir()) if parent.is_dir() else (parent,):
                key = path.relative_to(self.root).as_posix()
                if not path.is_dir() or (not is_study_folder(key) and any(one.is_file() for one in path.rglob("*"))):
                    yield key

    def keys_of_study(self, study_instance_uid: str) -> Iterator[str]:
        """The keys of all instances in the study's folder, variants last."""
        folder = self.root / study_key(study_instance_uid)
        found = (path.relative_to(self.root).as_posix() for path in folder.rglob("*.dcm") if path.is_file())
        keys = [key for key in found if is_instance_key(key)]
        yield from sorted(keys, key=lambda key: (key.split("/")[3] == "variants", key))

    def has_study(self, study_instance_uid: str) -> bool:
        """Whether the study has a folder."""
        return (self.root / study_key(study_instance_uid)).is_dir()

    def modified(self, key: str) -> float:
        """When the file at ``key`` was written, in seconds since 1970; 0 when there is none."""
        try:
            return (self.root / key).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def foreign(self, study_instance_uid: str) -> Iterator[str]:
        """Whatever lies in the study's folder and is neither an instance nor the journal."""
        folder = self.root / study_key(study_instance_uid)
        for path in sorted(folder.rglob("*")):
            key = path.relative_to(self.root).as_posix()
            if path.is_file() and not is_instance_key(key) and path != folder / JOURNAL:
                yield key

    def half_received(self) -> Iterator[tuple[str, bool]]:
        """``(name, whether its process lives)`` of each file that is being received, or was when a process ended."""
        for path in sorted(path for path in self.incoming.iterdir() if not path.is_dir()):
            owner = path.name.split("-", 1)[0]
            yield path.name, owner.isdigit() and Path(f"/proc/{owner}").exists()

    def total_bytes(self) -> int:
        """The size of the disk that instances lie on, or are received on."""
        return shutil.disk_usage(self.root).total

    def free_bytes(self) -> int:
        """How many bytes an ordinary process can still write."""
        return shutil.disk_usage(self.root).free

    def clean_incoming(self) -> int:
        """Remove what processes that are gone left half-written; how many files that were."""
        removed = 0
        for path in [path for path in self.incoming.iterdir() if not path.is_dir()]:
            owner = path.name.split("-", 1)[0]
            alive = owner.isdigit() and int(owner) != os.getpid() and Path(f"/proc/{owner}").exists()
            if not alive:
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def _make_durable(self, folder: Path | str) -> None:
        """Make ``folder`` and make sure that each name on the way to it is on the disk.

        A folder that exists may have been made a moment ago by another thread that has not flushed it yet,
        so "exists" is not enough: each is flushed once in the life of this process.
        """
        if str(folder) in self._durable:
            return
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for child in (folder, *folder.parents):
            if str(child) in self._durable or child == self.root.parent:
                break
            fsync_path(child.parent)
        if len(self._durable) > 50_000:
            self._durable.clear()
        self._durable.add(str(folder))

    @staticmethod
    def _translated(error: OSError) -> Exception:
        if error.errno in _OUT_OF_SPACE:
            return TransientError("storage-full", "the disk of the storage is full")
        return error

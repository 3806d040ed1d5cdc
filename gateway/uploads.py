"""Large instances on their way in: chunks that come in any order, several at once, twice or not at all.

An upload is a folder in the spool: the file, with room for all of it taken at once, and the digests of the chunks that
are there. Whatever is killed at whatever moment, the next one who asks is told what is still missing. A chunk counts
only when its digest agrees, the file only when all three do.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import structlog

from gateway import encoding, registry
from standards.digests import Digests, digests
from standards.errors import PermanentError, TransientError

log = structlog.get_logger(__name__)

MOST_CHUNKS: Final = 1 << 20
_DIGEST: Final = 32
_NONE: Final = bytes(_DIGEST)
_SPARE: Final = 256 << 20
"""The disk of the spool keeps so many bytes free whatever the storage's own mark says."""


def folder() -> Path:
    """Where uploads lie."""
    return registry.node().data_dir / "spool" / "uploads"


@dataclass(frozen=True)
class Upload:
    """One instance of ``size`` bytes that a sender brings in chunks of ``chunk`` bytes; the last one is shorter."""

    sender: str
    sop_instance_uid: str
    dataset_sha256: str
    size: int
    chunk: int

    def __post_init__(self) -> None:
        """Raises: PermanentError("bad-upload")."""
        if not (0 < self.chunk <= encoding.MOST_RAW and 0 < self.size <= self.chunk * MOST_CHUNKS):
            raise PermanentError("bad-upload", f"{self.size} bytes in chunks of {self.chunk}")

    @property
    def path(self) -> Path:
        """Its folder."""
        said = "\n".join(
            (self.sender, self.sop_instance_uid, self.dataset_sha256, str(self.size), str(self.chunk))
        ).encode()
        return folder() / hashlib.sha256(said).hexdigest()[:40]

    @property
    def count(self) -> int:
        """How many chunks it has."""
        return -(-self.size // self.chunk)

    def length(self, index: int) -> int:
        """How long a chunk is. Raises: PermanentError("bad-upload")."""
        if not 0 <= index < self.count:
            raise PermanentError("bad-upload", f"chunk {index} of {self.count}")
        return min(self.chunk, self.size - index * self.chunk)

    def begin(self) -> list[tuple[int, int]]:
        """Take room for it, if it is new; the chunks that are missing, as ranges without their ends.

        Raises: TransientError("storage-full").
        """
        if not self.path.exists():
            self._make()
        return self.missing()

    def _make(self) -> None:
        # What was uploaded is copied into the storage before it goes, so there must be room for it twice.
        registry.store().check_room(2 * self.size)
        folder().mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder()).free < self.size + _SPARE:
            raise TransientError("storage-full", f"no room in the spool for {self.size // 1_000_000} MB")
        fresh = folder() / f"new-{uuid.uuid4().hex}"
        fresh.mkdir()
        try:
            with (fresh / "data").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, self.size)
            (fresh / "chunks").write_bytes(_NONE * self.count)
            fresh.rename(self.path)
        except OSError as error:
            shutil.rmtree(fresh, ignore_errors=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise TransientError("storage-full", "the disk of the spool is full") from error
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else another request was first
                raise

    def missing(self) -> list[tuple[int, int]]:
        """The chunks that are not there. Raises: TransientError("no-upload")."""
        with self._open("chunks") as file:
            told = file.read()
        ranges: list[tuple[int, int]] = []
        for index in range(self.count):
            if told[index * _DIGEST : (index + 1) * _DIGEST] != _NONE:
                continue
            if ranges and ranges[-1][1] == index:
                ranges[-1] = (ranges[-1][0], index + 1)
            else:
                ranges.append((index, index + 1))
        return ranges

    def take(self, index: int, raw: bytes, sha256: bytes) -> None:
        """Keep a chunk whose digest the sender promised; again and again with the same effect.

        Raises: TransientError "not-restored", "no-upload", "still-checking", "storage-full"; PermanentError
            "bad-upload".
        """
        if len(raw) != self.length(index) or hashlib.sha256(raw).digest() != sha256:
            raise TransientError("not-restored", f"chunk {index} is not what the sender encoded")
        try:
            with self._open("data") as data, self._open("chunks") as chunks:
                if os.pread(chunks.fileno(), _DIGEST, index * _DIGEST) == sha256:
                    return
                _lock(chunks, fcntl.LOCK_SH)
                # While it is being written it does not count, so a kill in between leaves no half chunk.
                os.pwrite(chunks.fileno(), _NONE, index * _DIGEST)
                _write(data.fileno(), raw, index * self.chunk)
                os.pwrite(chunks.fileno(), sha256, index * _DIGEST)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise TransientError("storage-full", "the disk of the spool is full") from error
            raise

    @contextmanager
    def whole(self, ledger: Digests) -> Iterator[BinaryIO]:
        """The file with all its digests checked, for one caller at a time; the upload is gone after it.

        Raises: TransientError "no-upload", "chunks-missing", "still-checking"; PermanentError("digest-mismatch").
        """
        with self._open("chunks") as lock:
            _lock(lock, fcntl.LOCK_EX)
            if missing := self.missing():
                raise TransientError("chunks-missing", f"{sum(end - begin for begin, end in missing)} chunks")
            try:
                self._check(ledger)
                with self._open("data") as data:
                    yield data
            except PermanentError:
                self.remove()  # it will never be an instance
                raise
            self.remove()

    def _check(self, ledger: Digests) -> None:
        refused: PermanentError
        try:
            if (found := digests(self.path / "data")) == ledger:
                return
            refused = PermanentError("digest-mismatch", differing(found, ledger))
        except PermanentError as error:
            refused = error
        if damaged := self._forget_damaged():
            raise TransientError("chunks-missing", f"{damaged} chunks were damaged on the disk")
        raise refused

    def _forget_damaged(self) -> int:
        """After a power cut the disk may hold less than it told: chunks that are not what they were come again."""
        damaged = 0
        with self._open("data") as data, self._open("chunks") as chunks:
            for index in range(self.count):
                raw = os.pread(data.fileno(), self.length(index), index * self.chunk)
                if hashlib.sha256(raw).digest() != os.pread(chunks.fileno(), _DIGEST, index * _DIGEST):
                    os.pwrite(chunks.fileno(), _NONE, index * _DIGEST)
                    damaged += 1
        return damaged

    def remove(self) -> None:
        """Let go of it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _open(self, name: str) -> BinaryIO:
        try:
            return (self.path / name).open("r+b")
        except FileNotFoundError as error:
            raise TransientError("no-upload", "begin it again") from error


def _lock(file: BinaryIO, how: int) -> None:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise TransientError("still-checking", "it is being taken in, or a chunk of it is") from error


def _write(descriptor: int, raw: bytes, position: int) -> None:
    view = memoryview(raw)
    while view:
        count = os.pwrite(descriptor, view, position)
        view, position = view[count:], position + count


def differing(found: Digests, ledger: Digests) -> str:
    """Which digests are not those that were promised."""
    names = ("dataset", "pixels", "frames")
    return f"of {', '.join(name for name in names if getattr(found, name) != getattr(ledger, name))}"


def clean(hours: float) -> int:
    """Remove uploads to which nothing came for so long; how many."""
    limit, removed = time.time() - hours * 3600, 0
    if not folder().is_dir():
        return 0
    for path in folder().iterdir():
        try:
            idle_since = max(file.stat().st_mtime for file in (path, path / "chunks") if file.exists())
        except (FileNotFoundError, ValueError):
            continue  # taken in meanwhile
        if idle_since < limit:
            shutil.rmtree(path, ignore_errors=True)
            log.info("upload-forgotten", upload=path.name)
            removed += 1
    return removed

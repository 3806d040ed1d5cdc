"""An instance on its way in: hashed as it comes, written past the page cache, without a name until it is whole.

A file that nobody will read for minutes need not push out what somebody reads now, and pages that are written once are
dear. So whole blocks go to the disk by direct I/O, where the filesystem can do that.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import mmap
import os
import threading
import uuid
from pathlib import Path
from typing import Final, Self

from standards.digests import Bytes
from standards.errors import PermanentError, TransientError
from standards.part10 import DIGEST_TO_COME

_BUFFER: Final = 1 << 20
_HEAD: Final = 1 << 18
"""What stays in memory of a longer file, for reading its header."""
_HASHED_AT_ONCE: Final = 1 << 18
_BLOCK: Final = 4096
_IDLE_BUFFERS: Final = 8
_NOT_HERE: Final = {errno.EOPNOTSUPP, errno.EINVAL, errno.EISDIR, errno.ENOENT}
"""What filesystems answer that know no nameless files or no direct I/O."""

_idle: list[mmap.mmap] = []
_idle_lock = threading.Lock()


def _buffer() -> mmap.mmap:
    """Memory on a page boundary, as direct I/O needs it; used again, because touching new pages costs more."""
    with _idle_lock:
        return _idle.pop() if _idle else mmap.mmap(-1, _BUFFER)


def _give_back(buffer: mmap.mmap) -> None:
    with _idle_lock:
        if len(_idle) < _IDLE_BUFFERS:
            _idle.append(buffer)


class Incoming:
    """A Part 10 file being received: :meth:`begin` with its meta group, then the data set, piece by piece.

    Either :meth:`write` pieces, or receive them into :meth:`room` and say with :meth:`filled` how much came. Use it as
    a context manager: what was not linked to a name is gone at its end, whatever happened.

    Raises: TransientError("storage-full") from any call that writes.
    """

    def __init__(self, folder: Path) -> None:
        self._buffer = _buffer()
        self._view = memoryview(self._buffer)
        self._name: Path | None = None
        self._direct = True
        self._descriptor = self._open(folder)
        self._hash = hashlib.sha256()
        self._start = 0  # where in the file the buffer begins
        self._fill = self._hashed = 0  # of the buffer
        self._head = b""
        self._digest_at = -1
        self._complete = False
        self.transfer_syntax = ""
        """Of the data set, where the meta group is our own and need not be read again."""

    def begin(self, meta: bytes) -> Self:
        """Preamble and file meta group; the digest of what follows is put where ``meta`` has a place for it.

        Raises: PermanentError("length-out-of-bounds").
        """
        if len(meta) > _HEAD:
            raise PermanentError("length-out-of-bounds", f"a file meta group of {len(meta)} bytes")
        self._view[: len(meta)] = meta
        self._fill = self._hashed = self.dataset_offset = len(meta)
        self._digest_at = meta.find(DIGEST_TO_COME)
        return self

    def _open(self, folder: Path) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC
        for nameless, direct in ((os.O_TMPFILE, os.O_DIRECT), (os.O_TMPFILE, 0), (0, os.O_DIRECT), (0, 0)):
            self._direct = bool(direct)
            path = folder if nameless else folder / f"{os.getpid()}-{uuid.uuid4().hex}.dcm"
            create = nameless or os.O_CREAT | os.O_EXCL
            try:
                descriptor = os.open(path, flags | create | direct, 0o644)
            except OSError as error:
                if error.errno in _NOT_HERE and (nameless or direct):
                    continue
                raise _translated(error) from error
            self._name = None if nameless else path
            return descriptor
        raise AssertionError("the last of the four ways either opened or raised")

    # Receiving

    @property
    def size(self) -> int:
        """Bytes of the file so far."""
        return self._start + self._fill

    def room(self) -> memoryview:
        """Memory to receive the next piece of the data set into; never empty."""
        if self._fill == _BUFFER:
            self._hash_up()
            if not self._start:
                self._head = bytes(self._view[:_HEAD])
            # The first block goes last, when the digest that belongs into it is known.
            skipped = 0 if self._start else _BLOCK
            self._write(self._start + skipped, self._view[skipped:])
            self._start += _BUFFER
            self._fill = self._hashed = 0
        return self._view[self._fill :]

    def filled(self, count: int) -> None:
        """Take over the first ``count`` bytes of :meth:`room`."""
        self._fill += count
        if self._fill - self._hashed >= _HASHED_AT_ONCE:
            self._hash_up()

    def write(self, data: Bytes) -> int:
        """Take over a piece of the data set."""
        left = memoryview(data)
        while left:
            room = self.room()
            piece = left[: len(room)]
            room[: len(piece)] = piece
            self.filled(len(piece))
            left = left[len(piece) :]
        return len(data)

    def _hash_up(self) -> None:
        self._hash.update(self._view[self._hashed : self._fill])
        self._hashed = self._fill

    def _write(self, position: int, data: memoryview) -> None:
        while data:
            try:
                count = os.pwrite(self._descriptor, data, position)
            except OSError as error:
                raise _translated(error) from error
            position += count
            data = data[count:]

    def write_out(self) -> None:
        """The rest to the disk, with the digest in its place. What is left for durability is :meth:`sync`."""
        if self._complete:
            return
        digest = self.dataset_sha256().encode()
        first = self._view if not self._start else memoryview(bytearray(self._head[:_BLOCK]))
        if self._digest_at >= 0:
            first[self._digest_at : self._digest_at + len(digest)] = digest
        whole = 0
        if self._direct:  # whole blocks only; to cut a longer file costs more than the cache does
            whole = self._fill - self._fill % _BLOCK
            self._write(self._start, self._view[:whole])
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, 0)
        self._write(self._start + whole, self._view[whole : self._fill])
        if self._start:
            self._write(0, first)
        self._complete = True

    def sync(self) -> None:
        """Flush the file: from here on its bytes, and a name it may have, survive a power cut."""
        self.write_out()
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise _translated(error) from error

    # Using

    def dataset_sha256(self) -> str:
        """The digest of the data set so far (``standards.digests``)."""
        self._hash_up()
        return self._hash.hexdigest()

    @property
    def path(self) -> Path:
        """The whole file as a path, for whoever must open it by one; it holds until :meth:`close`."""
        return self._name or Path(f"/proc/self/fd/{self._descriptor}")

    def reader(self) -> io.BufferedIOBase:
        """The whole file to read; small ones and the beginning of large ones come from memory."""
        return _Reader(self)

    def link(self, target: Path | str) -> None:
        """Give the whole file a name. Raises: FileExistsError, FileNotFoundError (no such folder), OSError."""
        source = self._name or f"/proc/self/fd/{self._descriptor}"
        # With a folder's descriptor Python calls linkat, the only call that can name a nameless file.
        os.link(source, target, src_dir_fd=None if self._name else self._descriptor, follow_symlinks=True)

    def close(self) -> None:
        """Let go of the file and of its memory."""
        if self._descriptor < 0:
            return
        os.close(self._descriptor)
        self._descriptor = -1
        self._view.release()
        _give_back(self._buffer)
        if self._name is not None:
            with contextlib.suppress(FileNotFoundError):
                self._name.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _in_memory(self, position: int) -> memoryview:
        """What memory holds from ``position`` on, maybe nothing."""
        if position >= self._start:
            return self._view[position - self._start : self._fill]
        return memoryview(self._head)[position:]


class _Reader(io.BufferedIOBase):
    """Reads a whole Incoming from memory where it is there, else from the disk."""

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming
        self._position = 0
        self._descriptor = -1

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = (0, self._position, self._incoming.size)[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._incoming.size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        parts = []
        while wanted:
            held = self._incoming._in_memory(self._position)[:wanted]
            data = bytes(held) if held else self._from_disk(wanted)
            parts.append(data)
            self._position += len(data)
            wanted -= len(data)
        return b"".join(parts)

    def _from_disk(self, wanted: int) -> bytes:
        if self._descriptor < 0:
            self._descriptor = os.open(self._incoming.path, os.O_RDONLY | os.O_CLOEXEC)
        data = os.pread(self._descriptor, wanted, self._position)
        if not data:
            raise OSError(errno.EIO, "the file being received is shorter than what was written")
        return data

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        super().close()


def _translated(error: OSError) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TransientError("storage-full", "the disk of the storage is full")
    return error

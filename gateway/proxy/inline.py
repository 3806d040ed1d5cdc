"""What rules do to an image before the old PACS has it: drop it, route it elsewhere, change it, or let it pass."""

import io
import mmap
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Final, Literal, cast

import structlog

from gateway.proxy import rewriting
from gateway.proxy.conditions import Sender
from gateway.proxy.journal import Journal
from gateway.proxy.messages import Command
from gateway.proxy.rules import Rules
from gateway.proxy.sending import Outgoing, with_fallbacks
from gateway.proxy.tap import was_taken
from standards import part10
from standards.dataset_editing import Data, let_go
from standards.errors import RegisError

log = structlog.get_logger(__name__)

_IN_MEMORY_BYTES: Final = 4 << 20
_LET_GO_READS: Final = 256


@dataclass(frozen=True, slots=True)
class Instance:
    """An image that passes, as its command tells of it."""

    command: Command
    sender: Sender
    sop_class: str
    sop_instance: str
    transfer_syntax: str
    message_id: int


class Holding:
    """Bytes that are held: in memory, from 4 MiB on in a file without a name, which ends with this process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self._size = 0

    def add(self, data: memoryview) -> None:
        """Raises: OSError when the disk takes no more; what was added before is still here."""
        if self._file is None and self._size + len(data) > _IN_MEMORY_BYTES:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115  closed with this
            try:
                _write(file, memoryview(self._memory))
            except BaseException:
                file.close()
                raise
            self._file, self._memory = file, bytearray()
        if self._file is None:
            self._memory += data
        else:
            self._file.seek(self._size)
            _write(self._file, data)
        self._size += len(data)

    def view(self) -> memoryview:
        """All of it, in one piece."""
        if self._file is None:
            return memoryview(bytes(self._memory))
        return memoryview(mmap.mmap(self._file.fileno(), self._size, access=mmap.ACCESS_READ))

    def clear(self) -> None:
        """Forget it."""
        self._memory = bytearray()
        self._size = 0
        if self._file is not None:
            self._file.close()
            self._file = None


def _write(file: IO[bytes], data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of an image. ``status``: the answer where it does not pass; ``pieces``: its new data set."""

    action: Literal["pass", "answer", "rewrite"]
    status: int = 0
    pieces: tuple[Data, ...] = ()


PASS: Final = Decision("pass")


@dataclass(frozen=True)
class Inline:
    """Decides on images that were held."""

    journal: Journal
    secret: bytes
    folder: Path
    calling_timeout: float

    def decide(self, rules: Rules, instance: Instance, data: memoryview) -> Decision:
        """What to do. Raises: RegisError, OSError; then the image is to pass as it is."""
        stream = readable(data)
        header = part10.read_header(stream, instance.transfer_syntax, required=())
        verdict = rules.verdict(instance.sender, instance.sop_class, header.dataset)
        if verdict.drop is not None:
            self.journal.count("dropped")
            return Decision("answer", verdict.drop)
        pieces: tuple[Data, ...] = (data,)
        if verdict.changes:
            new = rewriting.rewritten(data, instance.transfer_syntax, verdict.changes, self.secret)
            if new.differences:
                pieces = new.pieces
                self.journal.count("rewritten")
        if verdict.route:
            return self._route(rules, verdict.route, instance, pieces)
        return PASS if pieces == (data,) else Decision("rewrite", pieces=pieces)

    def _route(self, rules: Rules, name: str, instance: Instance, pieces: tuple[Data, ...]) -> Decision:
        peer = rules.destinations[name]
        with Outgoing(
            peer,
            instance.sender.calling_ae,
            with_fallbacks([(instance.sop_class, instance.transfer_syntax)]),
            self.calling_timeout,
        ) as outgoing:
            status, done = outgoing.deliver(
                instance.sop_class, instance.sop_instance, instance.transfer_syntax, pieces, self.folder
            )
        if done:
            self.journal.count("transcoded")
            log.info("route-transcoded", destination=name, conversion=done, sop_instance_uid=instance.sop_instance)
        if was_taken(status):
            self.journal.count("routed")
        return Decision("answer", status)


class _Readable(io.RawIOBase):
    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0
        self._reads = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._data)}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        end = len(self._data) if size is None or size < 0 else self._position + size
        found = bytes(self._data[self._position : end])
        self._position += len(found)
        self._reads += 1
        if self._reads % _LET_GO_READS == 0:
            let_go(self._data)
        return found


def readable(data: memoryview) -> BinaryIO:
    """A memoryview as a file that is read and not copied."""
    return cast(BinaryIO, _Readable(data))


def failure(error: Exception) -> str:
    """How a failure is named in the journal, without what the data set says."""
    if isinstance(error, RegisError):
        return str(error)
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return f"{type(error).__name__} in the proxy"

"""Copies of what passes. A disk slower than the network may hold up the relay a little, by its `Patience` and no
longer: what does not fit then is named, not waited for.

Two threads: one writes what comes, so that memory is free again; one makes what the old PACS took durable, asks the
rules and hands it to its destinations.
"""

import contextlib
import os
import queue
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import structlog

from gateway.proxy.conditions import Sender
from gateway.proxy.copying import Copying
from gateway.proxy.journal import Journal
from gateway.proxy.spool import Spool, head_of, sync_folder
from standards import part10
from standards.errors import RegisError
from standards.part10 import Provenance, write_file_meta

log = structlog.get_logger(__name__)

_AGAIN_SECONDS: Final = 10.0
_ACCEPTED: Final = 0x0000
_LOOKED_AT: Final = 1 << 14
_STUDY: Final = re.compile(rb"\x20\x00\x0d\x00(?:UI..|..\x00\x00)([0-9.]{1,64})", re.DOTALL)
"""Study Instance UID in explicit or implicit little endian."""
_WARNINGS: Final = range(0xB000, 0xC000)
_OTHER_WARNINGS: Final = frozenset({0x0001, 0x0107, 0x0116})


def study_in(head: bytes) -> str:
    """The Study Instance UID in the first bytes of a data set, "" where it is not among them."""
    match = _STUDY.search(head)
    return match[1].decode() if match else ""


def was_taken(status: int) -> bool:
    """Whether a C-STORE-RSP says that the instance is stored."""
    return status == _ACCEPTED or status in _WARNINGS or status in _OTHER_WARNINGS


@dataclass(eq=False)
class Tapped:
    """An instance that is being copied. ``trouble``: why it is not, once it failed."""

    sender: Sender
    sop_class: str
    sop_instance: str
    transfer_syntax: str
    trouble: str = ""
    path: Path | None = None
    file: BinaryIO | None = None
    size: int = 0
    study_instance_uid: str = ""
    """As its first bytes say, so that what is missed can be fetched."""
    is_begun: bool = False


class Patience:
    """How long passing may still be held up: a burst of ``_MOST_SECONDS``, and ``_SHARE`` of the time in the long run.

    So a disk that hangs costs one pause, not one for each image, and a device never waits as long as its time-outs.
    """

    _MOST_SECONDS: Final = 5.0
    _SHARE: Final = 0.2

    def __init__(self) -> None:
        self._left = self._MOST_SECONDS
        self._at = time.monotonic()

    def left(self) -> float:
        """Seconds."""
        now = time.monotonic()
        self._left = min(self._left + (now - self._at) * self._SHARE, self._MOST_SECONDS)
        self._at = now
        return self._left

    def spend(self, seconds: float) -> None:
        """They were waited."""
        self._left = max(self.left() - seconds * (1 + self._SHARE), 0.0)


class Tap:
    """The bounded way from the relay to the spool. ``begin``, ``piece``, ``end`` never raise, and only ``piece`` waits,
    for room in the queue and as long as there is `Patience`."""

    def __init__(
        self, spool: Spool, journal: Journal, copying: Copying, *, most_queued_bytes: int, least_free_bytes: int
    ) -> None:
        self._spool = spool
        self._journal = journal
        self._copying = copying
        self._most = most_queued_bytes
        self._least_free = least_free_bytes
        self._queued = 0
        self._room = threading.Condition()
        self._patience = Patience()
        self._steps: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._answered: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._write_all, name="tap-writing", daemon=True),
            threading.Thread(target=self._finish_all, name="tap-finishing", daemon=True),
        ]

    def start(self) -> None:
        """Take up what a process before this one left, then what comes."""
        for thread in self._threads:
            thread.start()
        self._steps.put(self._recover)

    def stop(self, seconds: float) -> None:
        """Finish what is queued, for so long."""
        self._steps.put(None)
        self._threads[0].join(seconds)
        self._answered.put(None)
        self._threads[1].join(seconds)

    # Called by the relay

    def begin(self, sender: Sender, sop_class: str, sop_instance: str, transfer_syntax: str) -> Tapped:
        """An instance begins."""
        tapped = Tapped(sender, sop_class, sop_instance, transfer_syntax)
        self._steps.put(lambda: self._open(tapped))
        return tapped

    def piece(self, tapped: Tapped, data: memoryview) -> None:
        """Bytes of its data set, which must not change any more."""
        if not tapped.is_begun:
            tapped.is_begun = True
            tapped.study_instance_uid = study_in(bytes(data[:_LOOKED_AT]))
        if tapped.trouble:
            return
        if self._has_room(len(data)):
            self._steps.put(lambda: self._append(tapped, data))
        else:
            tapped.trouble = "too-slow: the disk did not keep up with what passed"

    def _has_room(self, size: int) -> bool:
        """Take so many bytes of the queue, once they are free and while there is patience."""
        with self._room:
            most = self._most - size
            if most >= 0 and self._queued > most:
                began = time.monotonic()
                self._room.wait_for(lambda: self._queued <= most, self._patience.left())
                self._patience.spend(time.monotonic() - began)
            fits = self._queued <= most
            self._queued += size if fits else 0
            return fits

    def end(self, tapped: Tapped, status: int | None) -> None:
        """The answer to it; None: there was none, the device will send it again."""
        self._steps.put(lambda: self._close(tapped, status))

    def take(self, path: Path, size: int) -> None:
        """A file of the spool that is whole and was answered without the old PACS. Raises: OSError."""
        self._answered.put(self._spool.answer(path, size))

    # Writing

    def _write_all(self) -> None:
        while (step := self._steps.get()) is not None:
            try:
                step()
            except Exception:  # the boundary of the thread: a fault of ours ends this step, never the tap
                log.exception("tap-step-failed")
                self._journal.count("failure:tap-step-failed")

    def _open(self, tapped: Tapped) -> None:
        try:
            if self._spool.free_bytes() < self._least_free:
                raise OSError(0, "disk-nearly-full: too little free space is left")
            provenance = Provenance(tapped.sender.calling_ae, tapped.sender.called_ae)
            meta = write_file_meta(tapped.sop_class, tapped.sop_instance, tapped.transfer_syntax, provenance)
            tapped.path = self._spool.new(tapped.sender.address)
            tapped.file = tapped.path.open("xb", buffering=0)
            self._put(tapped, memoryview(meta))
        except (OSError, RegisError) as error:
            self._fail(tapped, error)

    def _append(self, tapped: Tapped, data: memoryview) -> None:
        try:
            if not tapped.trouble:
                self._put(tapped, data)
        except OSError as error:
            self._fail(tapped, error)
        finally:
            with self._room:
                self._queued -= len(data)
                self._room.notify_all()

    @staticmethod
    def _put(tapped: Tapped, data: memoryview) -> None:
        assert tapped.file is not None
        tapped.size += len(data)
        while data:
            data = data[tapped.file.write(data) :]

    def _fail(self, tapped: Tapped, error: OSError | RegisError) -> None:
        tapped.trouble = tapped.trouble or (error.strerror if isinstance(error, OSError) else str(error)) or str(error)
        self._discard(tapped)

    @staticmethod
    def _discard(tapped: Tapped) -> None:
        if tapped.file is not None:
            tapped.file.close()
            tapped.file = None
        if tapped.path is not None:
            with contextlib.suppress(OSError):
                tapped.path.unlink(missing_ok=True)

    def _close(self, tapped: Tapped, status: int | None) -> None:
        if status is None or not was_taken(status):
            self._discard(tapped)
            return
        if not tapped.trouble and tapped.file is not None and tapped.path is not None:
            tapped.file.close()
            try:
                self._answered.put(self._spool.answer(tapped.path, tapped.size))
            except OSError as error:
                self._fail(tapped, error)
            else:
                return
        self._discard(tapped)
        self._journal.missing(
            tapped.trouble,
            sop_instance_uid=tapped.sop_instance,
            sop_class_uid=tapped.sop_class,
            study_instance_uid=tapped.study_instance_uid,
            calling_ae_title=tapped.sender.calling_ae,
        )

    # Finishing

    def _finish_all(self) -> None:
        waiting: dict[Path, float] = {}
        """What the disk did not take, and when it is tried again."""
        while True:
            with contextlib.suppress(queue.Empty):
                if (path := self._answered.get(timeout=_AGAIN_SECONDS if waiting else None)) is None:
                    return
                self._try_to_finish(path, waiting)
            for late in [one for one, at in waiting.items() if at <= time.monotonic()]:
                self._try_to_finish(late, waiting)

    def _try_to_finish(self, path: Path, waiting: dict[Path, float]) -> None:
        """A file that cannot be finished stays in ``answered/``: until the disk can, or the next start."""
        before = waiting.pop(path, None)
        try:
            self._finish(path)
        except FileNotFoundError:  # somebody deleted the spool
            log.exception("tap-not-finished")
            self._journal.count("failure:tap-not-finished")
        except OSError as error:
            waiting[path] = time.monotonic() + _AGAIN_SECONDS
            if before is None:
                self._journal.event("tap-not-finished", error=error.strerror or str(error))
        except Exception:  # the boundary of the thread
            log.exception("tap-not-finished")
            self._journal.count("failure:tap-not-finished")

    def _finish(self, path: Path) -> None:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sync_folder(path.parent)
        self._copying.distribute(path)
        path.unlink()

    def _recover(self) -> None:
        """What a kill left: whole files go on, others are named, as the old PACS may have them."""
        for path, whole in self._spool.whole():
            if whole:
                self._answered.put(path)
            else:
                self._give_up(path, "broken-off: this process, or the machine, ended while it was written")
        for path in sorted(self._spool.passing.iterdir()):
            if path.suffix == ".changed":
                path.unlink()  # it is made again
            else:
                self._give_up(path, "ended-while-passing: it is not known whether the old PACS has it")

    def _give_up(self, path: Path, reason: str) -> None:
        sop_instance, sender = "", ""
        try:
            sop_instance, sender = identified(path)
        except RegisError:
            reason = f"{reason}; its UID was not written yet"
        self._journal.missing(
            reason,
            sop_instance_uid=sop_instance,
            study_instance_uid=study_in(head_of(path)),
            calling_ae_title=sender,
        )
        path.unlink()


def identified(path: Path) -> tuple[str, str]:
    """SOP Instance UID and sending AE of a tapped file. Raises: PermanentError "truncated", "not-dicom"."""
    meta = part10.read_meta(head_of(path))
    return part10.text(meta, "MediaStorageSOPInstanceUID"), part10.text(meta, "SendingApplicationEntityTitle")

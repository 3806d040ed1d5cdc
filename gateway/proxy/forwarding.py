"""Sends what waits in the spool for other application entities, again and again until they have it or refuse it."""

import mmap
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Final

import structlog

from gateway.proxy.inline import failure
from gateway.proxy.journal import Journal
from gateway.proxy.rules import NODE, OLD_PACS, Peer, Rules
from gateway.proxy.sending import Outgoing, with_fallbacks
from gateway.proxy.spool import Spool, head_of
from gateway.proxy.tap import was_taken
from standards import part10
from standards.errors import PermanentError, RegisError, TransientError

log = structlog.get_logger(__name__)

_AT_ONCE: Final = 40
"""Each may need three presentation contexts, of which an association has 128 at most."""
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
_LOOK_SECONDS: Final = 0.5
_TRANSIENT_STATUSES: Final = range(0xA700, 0xA800)


class Forwarder(threading.Thread):
    """One association at a time for each destination, so that the proxy's sending takes little from what passes."""

    def __init__(
        self,
        spool: Spool,
        journal: Journal,
        rules: Callable[[], Rules],
        old_pacs: tuple[str, int],
        ae_title: str,
        timeout: float,
        stopping: threading.Event,
    ) -> None:
        super().__init__(name="proxy-forwarding", daemon=True)
        self._spool = spool
        self._journal = journal
        self._rules = rules
        self._old_pacs = old_pacs
        self._ae_title = ae_title
        self._timeout = timeout
        self._stopping = stopping
        self._pauses: dict[str, tuple[float, float]] = {}
        """Destination → until when it is left alone, and for how long then."""
        self._running: dict[str, threading.Thread] = {}
        self._lock = threading.Lock()

    def run(self) -> None:
        """Forward until told to stop."""
        while not self._stopping.wait(_LOOK_SECONDS):
            try:
                self.step()
            except Exception:  # the boundary of the thread: logged, and tried again
                log.exception("forwarding-failed")
                self._journal.count("failure:forwarding-failed")

    def step(self) -> None:
        """Begin with a batch for each destination for which something waits and which is not left alone."""
        for name in self._spool.destinations():
            until, _ = self._pauses.get(name, (0.0, _FIRST_PAUSE))
            running = self._running.get(name)
            if name == NODE or until > time.monotonic() or (running is not None and running.is_alive()):
                continue
            self._running[name] = threading.Thread(
                target=self._attempt, args=(name,), name=f"proxy-to-{name}", daemon=True
            )
            self._running[name].start()

    def _attempt(self, name: str) -> None:
        """In a thread of its own, so that a destination that hangs keeps nobody else waiting."""
        try:
            self._send(name, list(islice(self._spool.waiting(name), _AT_ONCE)))
        except (RegisError, OSError) as error:
            _, pause = self._pauses.get(name, (0.0, _FIRST_PAUSE))
            self._pauses[name] = (time.monotonic() + pause, min(pause * 2, _LONGEST_PAUSE))
            self._tell(name, failure(error))
            if pause == _FIRST_PAUSE:
                log.warning("destination-away", destination=name, error=failure(error))
        except Exception:  # the boundary of the thread: logged, and tried again
            log.exception("forwarding-failed")
            self._journal.count("failure:forwarding-failed")
            self._pauses[name] = (time.monotonic() + _LONGEST_PAUSE, _LONGEST_PAUSE)
        else:
            self._pauses.pop(name, None)
            self._tell(name, "")

    def _tell(self, name: str, reason: str) -> None:
        """Why copies for a destination wait; "" where they do not."""
        with self._lock:
            others = {known: why for known, why in self._journal.facts.get("destinations", {}).items() if known != name}
            self._journal.facts["destinations"] = {**others, **({name: reason} if reason else {})}

    def _send(self, name: str, paths: list[Path]) -> None:
        """Raises: TransientError when the destination is away, PermanentError when it refuses to talk, OSError."""
        paths = [path for path in paths if self._is_readable(name, path)]
        while paths and not self._stopping.is_set():
            peer, calling = self._peer(name, paths[0])
            if peer is None:
                raise TransientError("no-destination", f"no rule file names {name} any more")
            batch = [path for path in paths if self._peer(name, path) == (peer, calling)]
            paths = [path for path in paths if path not in batch]
            metas = {path: part10.read_meta(head_of(path)) for path in batch}
            wanted = [
                (part10.text(meta, "MediaStorageSOPClassUID"), part10.text(meta, "TransferSyntaxUID"))
                for meta in metas.values()
            ]
            with Outgoing(peer, calling, with_fallbacks(wanted), self._timeout) as outgoing:
                for path in batch:
                    self._send_one(outgoing, name, path)

    def _is_readable(self, name: str, path: Path) -> bool:
        try:
            part10.read_meta(head_of(path))
        except PermanentError as error:  # a disk that lies; one such file must not hold up the others
            self._refused(name, path, "", error)
            return False
        return True

    def _peer(self, name: str, path: Path) -> tuple[Peer | None, str]:
        """Who it goes to, and under whose name: what the old PACS missed goes there as from its device."""
        if name != OLD_PACS:
            return self._rules().destinations.get(name), self._ae_title
        meta = part10.read_meta(head_of(path))
        called = part10.text(meta, "ReceivingApplicationEntityTitle")
        return Peer(called, *self._old_pacs), part10.text(meta, "SendingApplicationEntityTitle")

    def _send_one(self, outgoing: Outgoing, name: str, path: Path) -> None:
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        head = bytes(data[:8192])
        meta = part10.read_meta(head)
        sop_instance = part10.text(meta, "MediaStorageSOPInstanceUID")
        try:
            status, done = outgoing.deliver(
                part10.text(meta, "MediaStorageSOPClassUID"),
                sop_instance,
                part10.text(meta, "TransferSyntaxUID"),
                (data[part10.dataset_offset(head) :],),
                self._spool.passing,
            )
            if status in _TRANSIENT_STATUSES:
                raise TransientError("out-of-resources", f"{name} answers {status:04X}")
            if not was_taken(status):
                raise PermanentError("refused", f"{name} answers {status:04X}")
        except PermanentError as error:
            self._refused(name, path, sop_instance, error)
            return
        path.unlink()
        self._journal.count(f"forwarded:{name}")
        if done:
            self._journal.count("transcoded")
            log.info("copy-transcoded", destination=name, conversion=done, sop_instance_uid=sop_instance)

    def _refused(self, name: str, path: Path, sop_instance: str, error: RegisError) -> None:
        self._spool.give_up(path, name)
        self._journal.event("copy-refused", destination=name, error=str(error), sop_instance_uid=sop_instance)

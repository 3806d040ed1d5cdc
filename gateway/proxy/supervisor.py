"""The process that holds the ports: it starts the smart part and, while that is dead or hangs, passes bytes itself.

It knows nothing of DICOM but where an A-ASSOCIATE-RQ names whom it calls.
"""

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Final

import structlog

from gateway.proxy import blind, rules
from gateway.proxy.journal import SUPERVISOR_FIGURES, Journal, read_state
from gateway.proxy.settings import ProxySettings
from standards.errors import PermanentError

log = structlog.get_logger(__name__)

_BACKLOG: Final = 128
_POLL_SECONDS: Final = 0.1
_HANGS_SECONDS: Final = 10.0
_PATIENCE_SECONDS: Final = 3.0
_STARTING_SECONDS: Final = 30.0
_LONGEST_PAUSE: Final = 30.0
_STEADY_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 20.0
_TITLE_SECONDS: Final = 30.0
_PORT_SECONDS: Final = 5.0


class Supervisor:
    """``command`` starts the worker; the numbers of file descriptors are added to it."""

    def __init__(self, settings: ProxySettings, command: Sequence[str]) -> None:
        self._settings = settings
        self._command = list(command)
        self._stopping = threading.Event()
        self._journal = Journal(settings.folder, SUPERVISOR_FIGURES)
        self._running = settings.folder / "running"
        self._worker: subprocess.Popen[bytes] | None = None
        self._heart = -1
        self._started_at = 0.0
        self._beat_at = 0.0
        self._down_since = 0.0
        self._deaths = 0
        self._start_after = 0.0

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises: OSError when a port is in use."""
        front = _listen(self._settings.host, self._settings.port)
        back = _listen(self._settings.host, self._settings.back_port) if self._settings.back_port else None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._journal.restore()
        self._note_unclean_end()
        log.info("proxy-ready", port=self._settings.port, back_port=self._settings.back_port)
        self._down_since = time.monotonic()
        try:
            while not self._stopping.is_set():
                self._look_after_worker(front, back)
                self._serve(front, back)
        finally:
            front.close()
            if back is not None:
                back.close()
            self._stop_worker()
        self._running.unlink(missing_ok=True)
        log.info("proxy-stopped")

    def _note_unclean_end(self) -> None:
        """A power cut takes with it what had passed and was not written yet."""
        try:
            if self._running.exists():
                at = read_state(self._settings.folder).get("at", "")
                self._journal.missing(
                    "ended-unexpectedly: images that passed in its last moments may lack", **({"at": at} if at else {})
                )
            self._running.parent.mkdir(parents=True, exist_ok=True)
            self._running.touch()
        except OSError as error:
            log.error("figures-not-written", error=error.strerror or str(error))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        threading.Thread(target=self._stopping.set).start()

    # The worker

    def _look_after_worker(self, front: socket.socket, back: socket.socket | None) -> None:
        now = time.monotonic()
        if self._worker is None:
            if now >= self._start_after:
                self._start(front, back)
            return
        # Its heart before its pulse: one that dies soon after it began has served all the same.
        with contextlib.suppress(BlockingIOError):
            if os.read(self._heart, 4096):
                if self._down_since:
                    log.info("proxy-worker-serves", pid=self._worker.pid)
                self._beat_at, self._down_since = now, 0.0
        if self._worker.poll() is not None:
            self._mourn(f"it ended with {self._worker.returncode}")
            return
        silent = now - max(self._beat_at, self._started_at)
        if silent > (_HANGS_SECONDS if self._beat_at else _STARTING_SECONDS):
            self._worker.kill()
            self._worker.wait()
            self._mourn("it did not answer and was killed")

    def _start(self, front: socket.socket, back: socket.socket | None) -> None:
        self._started_at, self._beat_at = time.monotonic(), 0.0
        self._heart, theirs = os.pipe()
        os.set_blocking(self._heart, False)
        inherited = [front.fileno(), back.fileno() if back is not None else -1, theirs]
        try:
            self._worker = subprocess.Popen(  # noqa: S603  our own command
                [*self._command, *map(str, inherited)],
                pass_fds=[number for number in inherited if number >= 0],
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
            assert self._worker.stdin is not None
            with contextlib.suppress(BrokenPipeError), self._worker.stdin as told:
                told.write(self._settings.to_json().encode())
        except OSError as error:
            os.close(self._heart)
            self._died(f"it cannot be started: {error.strerror}")
        finally:
            os.close(theirs)

    def _mourn(self, reason: str) -> None:
        os.close(self._heart)
        self._worker = None
        self._died(reason)

    def _died(self, reason: str) -> None:
        now = time.monotonic()
        steady = self._beat_at and now - self._started_at > _STEADY_SECONDS
        self._deaths = 1 if steady else self._deaths + 1
        self._down_since = self._down_since or now
        self._start_after = now + min(0.2 * 2 ** (self._deaths - 1), _LONGEST_PAUSE)
        self._journal.event("worker-died", reason=reason, deaths=self._deaths)
        if self._beat_at:
            self._journal.missing("worker-died: images that passed in its last moments may lack")
        self._journal.save()

    def _stop_worker(self) -> None:
        if self._worker is None:
            return
        self._worker.terminate()
        try:
            self._worker.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._worker.kill()
            self._worker.wait()

    # Passing bytes while there is no worker

    def _serve(self, front: socket.socket, back: socket.socket | None) -> None:
        listeners = [one for one in (front, back) if one is not None]
        patience = _PATIENCE_SECONDS if self._deaths < 3 else 0.0
        if not self._down_since or time.monotonic() - self._down_since < patience:
            # A worker that comes back at once finds waiting connections where they are; none is refused.
            self._stopping.wait(_POLL_SECONDS)
            return
        for listener in select.select(listeners, [], [], _POLL_SECONDS)[0]:
            try:
                peer, address = listener.accept()
            except OSError:
                continue
            self._journal.missing("passed-blindly: the worker was down", address=str(address[0]))
            self._journal.count("passed-blindly")
            self._journal.save()
            threading.Thread(target=self._pass, args=(peer, listener is front), daemon=True).start()

    def _pass(self, peer: socket.socket, is_device: bool) -> None:
        head = b""
        try:
            blind.tune(peer)
            where = (self._settings.pacs_host, self._settings.pacs_port)
            if not is_device:
                head = blind.read_at_least(peer, 26, _TITLE_SECONDS)
                where = self._devices()[blind.called_title(head)]
            other = blind.dial(*where, self._settings.connect_seconds)
        except (OSError, KeyError) as error:
            log.warning("not-passed", error=f"{type(error).__name__}: {error}")
            with contextlib.suppress(OSError):
                peer.sendall(bytes([3, 0, 0, 0, 0, 4, 0, 2, 3, 1]))  # A-ASSOCIATE-RJ: transient, congestion
            peer.close()
            return
        there, back = blind.relay(peer, other, head)
        self._journal.count("bytes:old_pacs", there if is_device else back)
        self._journal.count("bytes:device", back if is_device else there)
        self._journal.save()

    def _devices(self) -> dict[str, tuple[str, int]]:
        for path in (self._settings.rules, self._settings.last_good_rules):
            try:
                if path is not None:
                    return dict(rules.load(path).devices)
            except (PermanentError, OSError) as error:
                log.warning("rules-broken", path=str(path), error=str(error))
        return {}


def _listen(host: str, port: int) -> socket.socket:
    """The port, for which it waits: the worker of a first process that was killed has it until it notices."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    deadline = time.monotonic() + _PORT_SECONDS
    while True:
        try:
            listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            listener.setblocking(False)
            return listener

"""The smart part of the proxy in a process of its own: it may die, and the supervisor passes bytes on without it."""

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Final

import structlog

from gateway.proxy import blind
from gateway.proxy.conditions import Sender
from gateway.proxy.copying import Copying
from gateway.proxy.forwarding import Forwarder
from gateway.proxy.holding import HoldingRelay
from gateway.proxy.inline import Inline
from gateway.proxy.journal import Journal, now
from gateway.proxy.keeping import Keeping
from gateway.proxy.relay import Relay, Services
from gateway.proxy.rules_file import RulesFile
from gateway.proxy.settings import ProxySettings
from gateway.proxy.spool import Spool
from gateway.proxy.tap import Tap
from standards import association, upper_layer

log = structlog.get_logger(__name__)

HEARTBEAT_SECONDS: Final = 0.5
_FIRST_BYTES_SECONDS: Final = 30.0
_SAVE_SECONDS: Final = 1.0
_STOP_SECONDS: Final = 15.0
_LONGEST_REQUEST: Final = 1 << 20


class Worker:
    """Serves the listening sockets that the supervisor opened; a beat on ``heart`` says that it does."""

    def __init__(self, settings: ProxySettings, front: socket.socket, back: socket.socket | None, heart: int) -> None:
        self._settings = settings
        self._front, self._back = front, back
        self._heart = heart
        self._parent = os.getppid()
        self._stopping = threading.Event()
        self._open: dict[socket.socket, dict[str, str]] = {}
        """Who is connected, and since when."""
        self._lock = threading.Lock()
        self.journal = Journal(settings.folder)
        self.journal.restore()
        self.rules = RulesFile(settings.rules, settings.last_good_rules, self.journal)
        spool = Spool(settings.spool)
        secret = settings.secret.encode()
        tap = Tap(
            spool,
            self.journal,
            Copying(spool, self.journal, self.rules.now, secret),
            most_queued_bytes=settings.queue_bytes,
            least_free_bytes=settings.least_free_bytes,
        )
        inline = Inline(self.journal, secret, settings.spool, settings.connect_seconds)
        self._tap = tap
        self._services = Services(self.rules.now, tap, self.journal, inline)
        self._keeping = Keeping(spool, tap, self.journal, secret, settings.least_free_bytes)
        self._forwarder = Forwarder(
            spool,
            self.journal,
            self.rules.now,
            (settings.pacs_host, settings.pacs_port),
            settings.ae_title,
            settings.connect_seconds,
            self._stopping,
        )

    def run(self) -> None:
        """Serve until SIGTERM, or until the supervisor is gone."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._tap.start()
        self._forwarder.start()
        threading.Thread(target=self._housekeeping, name="proxy-figures", daemon=True).start()
        listeners = [one for one in (self._front, self._back) if one is not None]
        for listener in listeners:
            listener.setblocking(False)
        log.info("proxy-worker-ready", pid=os.getpid())
        while not self._stopping.is_set() and os.getppid() == self._parent:
            with contextlib.suppress(OSError):  # a supervisor that has gone is noticed by the line above
                os.write(self._heart, b".")
            for listener in select.select(listeners, [], [], HEARTBEAT_SECONDS)[0]:
                self._accept(listener)
        for listener in listeners:
            listener.close()
        self._finish()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        threading.Thread(target=self._stopping.set).start()

    def _finish(self) -> None:
        deadline = time.monotonic() + _STOP_SECONDS
        while self._open and time.monotonic() < deadline:
            time.sleep(0.05)
        self._tap.stop(max(1.0, deadline - time.monotonic()))
        self._stopping.set()
        self.journal.save()
        log.info("proxy-worker-stopped", broken_off=len(self._open))

    def _housekeeping(self) -> None:
        while not self._stopping.wait(_SAVE_SECONDS):
            try:
                self.rules.look()
                with self._lock:
                    self.journal.facts["open"] = list(self._open.values())
                self.journal.save()
            except Exception:  # the boundary of the thread: figures must not end with one failure
                log.exception("housekeeping-failed")

    def _accept(self, listener: socket.socket) -> None:
        try:
            peer, address = listener.accept()
        except OSError:
            return  # the supervisor, or nobody, has it
        serve = self._serve_device if listener is self._front else self._serve_pacs
        threading.Thread(target=self._serve, args=(serve, peer, str(address[0])), daemon=True).start()

    def _serve(self, serve: Callable[[socket.socket, str], None], peer: socket.socket, address: str) -> None:
        with self._lock:
            self._open[peer] = {"address": address, "since": now()}
        try:
            blind.tune(peer)
            serve(peer, address)
        except Exception as error:  # the boundary of the connection
            log.warning("connection-failed", address=address, error=f"{type(error).__name__}: {error}")
        finally:
            with contextlib.suppress(OSError):
                peer.close()
            with self._lock:
                del self._open[peer]

    def _serve_device(self, device: socket.socket, address: str) -> None:
        first = blind.read_at_least(device, upper_layer.PDU_HEADER_BYTES, _FIRST_BYTES_SECONDS)
        if not first:
            return
        length = int.from_bytes(first[2:6], "big")
        is_request = len(first) == 6 and first[0] == upper_layer.ASSOCIATE_RQ and 68 <= length <= _LONGEST_REQUEST
        request = first + blind.read_at_least(device, length, _FIRST_BYTES_SECONDS) if is_request else first
        called, calling = association.titles(request) if is_request else ("", "")
        sender = Sender(calling, called, address)
        self._names(device, calling, called)
        try:
            pacs = blind.dial(self._settings.pacs_host, self._settings.pacs_port, self._settings.connect_seconds)
        except OSError as error:
            self._old_pacs_is_down(device, request, sender, error)
            return
        if not is_request or len(request) < 6 + length:
            # TLS, or nothing that we know: the old PACS may know it.
            self.journal.event("not-followed", address=address, error="it does not begin with an association request")
            self._passed(*blind.relay(device, pacs, request))
            self.journal.count("associations:not-followed")
            return
        kind = HoldingRelay if self.rules.now().inline(sender) else Relay
        kind(device, pacs, request, sender, self._services).run()

    def _names(self, peer: socket.socket, calling: str, called: str) -> None:
        with self._lock:
            self._open[peer] = {**self._open[peer], "calling_ae_title": calling, "called_ae_title": called}

    def _old_pacs_is_down(self, device: socket.socket, request: bytes, sender: Sender, error: OSError) -> None:
        self.journal.event(
            "old-pacs-away", error=error.strerror or type(error).__name__, calling_ae_title=sender.calling_ae
        )
        rules = self.rules.now()
        if rules.store_and_forward and sender.called_ae and self._keeping.serve(device, request, sender, rules):
            self.journal.count("associations:kept")
            return
        self.journal.count("associations:old-pacs-away")
        refuse(device, association.TRANSIENT, association.PRESENTATION, association.TEMPORARY_CONGESTION)

    def _serve_pacs(self, pacs: socket.socket, address: str) -> None:
        """The old PACS calls a device."""
        head = blind.read_at_least(pacs, 26, _FIRST_BYTES_SECONDS)
        if not head:
            return
        called = blind.called_title(head)
        self._names(pacs, "", called)
        where = self.rules.now().devices.get(called)
        if where is None:
            self.journal.event("unknown-device", called_ae_title=called, address=address)
            self.journal.count("associations-back:unknown-device")
            refuse(pacs, association.PERMANENT, association.USER, association.CALLED_AE_NOT_RECOGNIZED)
            return
        try:
            device = blind.dial(*where, self._settings.connect_seconds)
        except OSError as error:
            self.journal.event("device-away", called_ae_title=called, error=error.strerror or type(error).__name__)
            self.journal.count("associations-back:device-away")
            refuse(pacs, association.TRANSIENT, association.PRESENTATION, association.TEMPORARY_CONGESTION)
            return
        to_device, to_pacs = blind.relay(pacs, device, head)
        self._passed(to_pacs, to_device)
        self.journal.count("associations-back:passed")

    def _passed(self, to_pacs: int, to_device: int) -> None:
        self.journal.count("bytes:old_pacs", to_pacs)
        self.journal.count("bytes:device", to_device)


def refuse(peer: socket.socket, result: int, source: int, reason: int) -> None:
    """Reject an association, and let the peer read that before the connection ends."""
    with contextlib.suppress(OSError):
        peer.sendall(association.rejection(result, source, reason))
        peer.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + 1.0
        while (left := deadline - time.monotonic()) > 0:
            peer.settimeout(left)
            if not peer.recv(1 << 16):
                return


def main(arguments: list[str]) -> None:
    """``FRONT BACK HEART``: the numbers of inherited file descriptors (BACK -1: none); settings come by standard input,
    where nobody else can read the secret in them."""
    settings = ProxySettings.from_json(sys.stdin.read())
    front, back, heart = (int(number) for number in arguments[:3])
    Worker(settings, socket.socket(fileno=front), socket.socket(fileno=back) if back >= 0 else None, heart).run()

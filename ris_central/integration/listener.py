"""The MLLP port of the centre: one thread a connection, messages of a connection in order."""

import signal
import socket
import socketserver
import threading
from types import FrameType

import structlog
from django.db import close_old_connections

from ris_central.config import config
from ris_central.integration.actions import receive
from ris_central.integration.sender import run_sender
from standards.errors import PermanentError
from standards.hl7v2 import ack
from standards.mllp import MllpReader, frame

log = structlog.get_logger(__name__)

IDLE_SECONDS = 300
CUT_OFF_SECONDS = 60
"""A message that has begun must end within this time, so that a stalled peer does not hold a thread."""


class Connection(socketserver.BaseRequestHandler):
    """A peer that sends messages and reads answers."""

    request: socket.socket

    def handle(self) -> None:
        address = str(self.client_address[0])
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = MllpReader()
        try:
            while True:
                self.request.settimeout(CUT_OFF_SECONDS if reader.is_inside else IDLE_SECONDS)
                data = self.request.recv(1 << 16)
                if not data:
                    break
                for raw in reader.feed(data):
                    self.request.sendall(frame(self._answer(raw, address)))
        except PermanentError as error:
            log.warning("mllp-refused", code=error.code, address=address)
            self.request.sendall(frame(ack(None, "AR", error.detail, error.code)))
        except TimeoutError:
            log.info("mllp-idle", address=address, inside_message=reader.is_inside)
        except OSError as error:
            log.info("mllp-lost", address=address, error=str(error))
        if reader.dropped:
            log.warning("mllp-garbage", address=address, bytes=reader.dropped)

    def _answer(self, raw: bytes, address: str) -> bytes:
        close_old_connections()
        try:
            return receive(raw, address)
        except Exception:  # a fault of ours in one message must not end the others: it is logged and answered
            log.exception("hl7-failed", address=address)
            return ack(None, "AE", "The centre failed on this message; its log says why.", "internal-error")
        finally:
            close_old_connections()


class Listener(socketserver.ThreadingTCPServer):
    """The listening socket."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


def serve() -> None:
    """Listen, and send what lies on the outbox, until SIGTERM or SIGINT."""
    settings = config()
    stop = threading.Event()
    sender = threading.Thread(target=run_sender, args=(stop,), name="hl7-sender")

    with Listener((settings.hl7_host, settings.hl7_port), Connection) as listener:

        def end(_number: int, _frame: FrameType | None) -> None:
            stop.set()
            threading.Thread(target=listener.shutdown).start()

        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, end)
        sender.start()
        log.info("hl7-listening", host=settings.hl7_host, port=settings.hl7_port)
        listener.serve_forever(poll_interval=0.2)
    sender.join(timeout=15)

"""Somebody on the way to the archive who does, by a seeded die, what bad networks and bad luck do, to any request.

Answers are lost after the archive did its part, requests arrive twice or late or damaged or not at all, and old answers
come back in place of new ones.
"""

import http.client
import random
import ssl
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from deploy.certificates import ensure_certificate

_HOP: Final = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"}
LATEST: Final = 1.5
"""Seconds by which what is held back comes late: others overtake it."""


@dataclass(frozen=True)
class Answer:
    """What the archive said: status, body and its type."""

    status: int
    body: bytes
    content_type: str


@dataclass
class Meddler:
    """Listens in place of the archive and forwards to ``upstream`` (a port of 127.0.0.1) what it does not spoil.

    ``odds`` maps what may be done to its share of all requests; what is left is carried as it is. ``done`` counts.
    """

    folder: Path
    upstream: int
    seed: int
    odds: dict[str, float] = field(
        default_factory=lambda: {
            "answer lost": 0.04,
            "request lost": 0.02,
            "doubled": 0.04,
            "late": 0.05,
            "damaged": 0.02,
            "old answer": 0.02,
        }
    )
    done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._dice, self._lock = random.Random(self.seed), threading.Lock()
        self._old: list[Answer] = []
        self._trust = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        certificate, key = ensure_certificate(self.folder, "meddler")
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()

    def rest(self) -> None:
        """Carry everything as it is from now on."""
        self.odds = {}

    def carry(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer | None:
        """One request; None means hanging up without a word."""
        deed = self._choose()
        if deed == "request lost":
            return None
        if deed == "late":
            time.sleep(self._dice.uniform(0.2, LATEST))
        if deed == "damaged" and body:
            at = self._dice.randrange(len(body))
            body = body[:at] + bytes([body[at] ^ 1 << self._dice.randrange(8)]) + body[at + 1 :]
        answer = self._forward(method, path, headers, body)
        if deed == "doubled":
            answer = self._forward(method, path, headers, body)
        if deed == "answer lost" or answer is None:
            return None
        with self._lock:
            if answer.status == 200 and method != "GET":
                self._old = [*self._old[-50:], answer]
            if deed == "old answer" and self._old:
                return self._dice.choice(self._old)
        return answer

    def _choose(self) -> str:
        with self._lock:
            at = self._dice.random()
            for deed, share in self.odds.items():
                if (at := at - share) < 0:
                    self.done[deed] += 1
                    return deed
            self.done["carried"] += 1
        return ""

    def _forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer | None:
        connection = http.client.HTTPSConnection("127.0.0.1", self.upstream, timeout=60, context=self._trust)
        try:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            return Answer(response.status, response.read(), response.headers.get("Content-Type", ""))
        except (OSError, http.client.HTTPException):
            return None  # the archive is away: so is this place
        finally:
            connection.close()


def _handler_of(meddler: Meddler) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
            answer = meddler.carry(self.command, self.path, headers, body)
            if answer is None:
                self.close_connection = True
                return
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = do_HEAD = _any

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:  # the line was cut in the middle of it
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """What was done is counted, not logged."""

    return Handler

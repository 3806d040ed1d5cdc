"""A machine in the middle of a delivery: it has a certificate of the region's authority and does what a test wants."""

import http.client
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from deploy.certificates import ensure_certificate


@dataclass(frozen=True)
class Answer:
    """Status and body; a status of 0 means hanging up without a word."""

    status: int
    body: bytes = b""


HANG_UP = Answer(0)


@dataclass
class Passage:
    """One PUT on its way: ``forward`` carries it (with another body, if given) to the archive."""

    uid: str
    body: bytes
    attempt: int
    """How often this instance, or this chunk of it, passed before, counted from 1."""
    forward: Callable[..., Answer] = field(repr=False)
    what: str = "instances"
    """``instances``: a whole one, or the end of an upload; ``uploads``: its beginning, or with ``index`` a chunk."""
    index: int | None = None


Behaviour = Callable[[Passage], Answer]


def honest(passage: Passage) -> Answer:
    """Carry it as it is."""
    return passage.forward()


class MachineInTheMiddle:
    """Listens in place of the archive. ``behaviour`` may be changed at any time."""

    def __init__(self, folder: Path) -> None:
        certificate, key = ensure_certificate(folder, "middle")
        self.behaviour: Behaviour = honest
        self.upstream = ""
        self.is_old = False
        """Whether it passes for a node that takes whole files only."""
        self.passages: list[Passage] = []
        self._lock = threading.Lock()
        self._trust = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        middle = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self._answer(middle._pass(self.path, body, dict(self.headers)))

            def do_GET(self) -> None:
                is_unknown = middle.is_old and self.path.startswith("/gateway/v1/wire")
                said = dict(self.headers)
                self._answer(Answer(404) if is_unknown else middle._forward("GET", self.path, None, said))

            def _answer(self, answer: Answer) -> None:
                if answer.status == 0:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, format: str, *args: object) -> None:
                """The tests look at what passed, not at a log."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _pass(self, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        parts = path.partition("?")[0].split("/")
        uid, index = parts[4], int(parts[5]) if len(parts) > 5 else None

        def forward(other: bytes | None = None) -> Answer:
            return self._forward("PUT", path, body if other is None else other, headers)

        with self._lock:
            same = [passage for passage in self.passages if (passage.uid, passage.index) == (uid, index)]
            passage = Passage(uid, body, len(same) + 1, forward, parts[3], index)
            self.passages.append(passage)
        return self.behaviour(passage)

    def _forward(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        carried = {name: value for name, value in headers.items() if name.lower() not in ("host", "connection")}
        request = urllib.request.Request(self.upstream + path, data=body, headers=carried, method=method)
        try:
            with urllib.request.urlopen(request, context=self._trust, timeout=240) as response:
                return Answer(response.status, response.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read())
        except (OSError, http.client.HTTPException):
            return HANG_UP

    def stop(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()

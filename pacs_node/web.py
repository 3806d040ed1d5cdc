"""The HTTP side of a node: one WSGI application on a plain and, with a certificate, a TLS port.

Bodies that are pieces of files go from the page cache to the socket by the kernel. A frame that is
asked for with a token that may read its study is answered without Django (``pacs_node.dicomweb.hot``).
"""

import select
import socket
import ssl
import threading
from typing import Any, Final
from wsgiref.util import FileWrapper

import structlog
from cheroot.server import HTTPConnection
from cheroot.ssl.builtin import BuiltinSSLAdapter
from cheroot.wsgi import Gateway_10, Server

from pacs_node.config import NodeConfig
from pacs_node.dicomweb.hot import hot_answer
from pacs_node.dicomweb.segments import Segments, send_segments

log = structlog.get_logger(__name__)

THREADS = 16
THREADS_FOR_PEERS = 48
"""Behind TLS: a clinic on a slow line holds a thread for each instance that it has in flight."""
_MOST_HEADER: Final = 8192
_NEXT_SOON_MS: Final = 5


def _wrapped(body: Any, block_size: int) -> "_SegmentsBody | FileWrapper":
    """What PEP 3333 calls ``wsgi.file_wrapper``: Django gives it the files of the viewer too."""
    return _SegmentsBody(body) if isinstance(body, Segments) else FileWrapper(body, block_size)


class _SegmentsBody:
    """A body of file pieces on its way through WSGI."""

    def __init__(self, segments: Segments) -> None:
        self.segments = segments
        self.close = getattr(segments, "close", lambda: None)

    def __iter__(self) -> Any:
        return iter(self.segments)


class _Gateway(Gateway_10):
    """Sends bodies of file pieces by themselves on plain connections."""

    def get_environ(self) -> dict[str, Any]:  # type: ignore[override]  # its stubs say that it gives nothing
        """The WSGI environment, with the file wrapper."""
        environment: dict[str, Any] = super().get_environ()  # type: ignore[no-untyped-call]
        environment["wsgi.file_wrapper"] = _wrapped
        return environment

    def respond(self) -> None:
        """Answer the request of this gateway."""
        response = self.req.server.wsgi_app(self.env, self.start_response)
        connection = self.req.conn
        try:
            if self.req.method == b"HEAD":  # the headers say it all, and a body would be taken for the next answer
                return
            if isinstance(response, _SegmentsBody) and not isinstance(connection.socket, ssl.SSLSocket):
                self.req.ensure_headers_sent()
                send_segments(connection.socket, response.segments.parts)
                return
            for chunk in filter(None, response):
                self.write(chunk)
        except OSError:
            self.req.close_connection = True  # the body is not whole, so the next answer must not follow it
            raise
        finally:
            self.req.ensure_headers_sent()
            if hasattr(response, "close"):
                response.close()


class _DirectWriter:
    """Writes to the socket as it is told; cheroot's own copies what is left after each piece that the kernel took."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def write(self, data: bytes) -> int:
        self._socket.sendall(data)
        return len(data)


class _Connection(HTTPConnection):
    """A connection that looks at what is asked before a request is made of it."""

    def __init__(self, server: Server, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(server, sock, *arguments, **options)
        self._is_plain = not isinstance(sock, ssl.SSLSocket)
        if self._is_plain:
            self.wfile = _DirectWriter(sock)

    def communicate(self) -> bool:
        """Answer a request, and those that follow at once; whether to keep the connection."""
        try:
            while self._is_plain and not self.rfile.has_data():
                head = self.socket.recv(_MOST_HEADER, socket.MSG_PEEK)
                answer = hot_answer(head, self.remote_addr or "")
                if answer is None:
                    break
                self.socket.recv(len(head))
                try:
                    send_segments(self.socket, answer.parts)
                finally:
                    answer.close()
                if self.server.requests.qsize or not self._asks_again():
                    return True
        except OSError:  # timed out between requests, or the client has gone
            return False
        return bool(super().communicate())  # type: ignore[no-untyped-call]

    def _asks_again(self) -> bool:
        """Whether the next request comes so soon that another thread need not be found for it."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(_NEXT_SOON_MS))


class _LoggedServer(Server):
    """Cheroot whose complaints go to the log, not to standard error."""

    ConnectionClass = _Connection

    def error_log(self, msg: str = "", level: int = 20, traceback: bool = False) -> None:
        """One message of the server."""
        log.warning("http", message=msg.strip())


class WebServers:
    """The listeners of this node, from ``start`` to ``stop``."""

    def __init__(self, settings: NodeConfig, application: Any) -> None:
        self._servers: list[Server] = []
        if settings.http_port:
            self._servers.append(_server(settings.http_host, settings.http_port, application, settings))
        if settings.https_port and settings.tls_certificate and settings.tls_key:
            server = _server(settings.http_host, settings.https_port, application, settings, THREADS_FOR_PEERS)
            server.ssl_adapter = BuiltinSSLAdapter(str(settings.tls_certificate), str(settings.tls_key))
            self._servers.append(server)

    def start(self) -> None:
        """Listen on every port, then serve. Raises OSError when a port is in use."""
        for server in self._servers:
            server.prepare()
        for server in self._servers:
            threading.Thread(target=server.serve, name=f"http-{server.bind_addr[1]}", daemon=True).start()

    def stop(self) -> None:
        """Finish requests in progress and close."""
        for server in self._servers:
            server.stop()


def _server(host: str, port: int, application: Any, settings: NodeConfig, threads: int = THREADS) -> Server:
    server = _LoggedServer(
        (host, port),
        application,
        numthreads=threads,
        server_name="regis",
        timeout=settings.network_timeout_seconds,  # type: ignore[arg-type]  # its stubs say int; sockets take float
        shutdown_timeout=5,
        request_queue_size=128,
    )
    server.gateway = _Gateway
    return server

"""The HTTP side of a node: one WSGI application on a plain and, with a certificate, a TLS port."""

import threading
from typing import Any

import structlog
from cheroot.ssl.builtin import BuiltinSSLAdapter
from cheroot.wsgi import Server

from pacs_node.config import NodeConfig

log = structlog.get_logger(__name__)

THREADS = 16


class _LoggedServer(Server):
    """Cheroot whose complaints go to the log, not to standard error."""

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
            server = _server(settings.http_host, settings.https_port, application, settings)
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


def _server(host: str, port: int, application: Any, settings: NodeConfig) -> Server:
    return _LoggedServer(
        (host, port),
        application,
        numthreads=THREADS,
        server_name="regis",
        timeout=settings.network_timeout_seconds,  # type: ignore[arg-type]  # its stubs say int; sockets take float
        shutdown_timeout=5,
        request_queue_size=128,
    )

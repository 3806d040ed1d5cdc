"""HTTPS to the centre and to other nodes: trusted, signed, and every failure named once."""

import hashlib
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from functools import cache

import httpx
import structlog

from gateway import clock, registry
from gateway.keys import node_key
from gateway.models import JoinState
from standards import http_signatures
from standards.errors import PermanentError, RegisError, TransientError

log = structlog.get_logger(__name__)

_CONNECTIONS = 64
_LATER = {401, 403, 404, 408, 425, 429}
"""Refusals that mend themselves as the region's directory spreads or a server comes up, besides all of 5xx."""
_LATER_CODES = {"body-damaged", "not-restored", "chunks-missing"}
"""The same by code: what was damaged on the wire may come through the next time."""


def connect(base_url: str, timeout: float = 30.0) -> httpx.Client:
    """A client for one peer that verifies its certificate against the system's authorities and the node's own.

    Raises: PermanentError("tls-authority-unreadable").
    """
    facts = registry.node()
    context = ssl.create_default_context()
    if facts.tls_ca is not None:
        try:
            context.load_verify_locations(facts.tls_ca)
        except (OSError, ssl.SSLError) as error:
            raise PermanentError("tls-authority-unreadable", f"{facts.tls_ca}: {error}") from error
    transport = httpx.HTTPTransport(
        verify=context,
        proxy=facts.proxy_url or None,
        trust_env=False,
        limits=httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS, keepalive_expiry=30),
        socket_options=_socket_options(),
    )
    return httpx.Client(
        base_url=base_url, transport=transport, timeout=httpx.Timeout(timeout, connect=10.0), trust_env=False
    )


@cache
def _socket_options() -> list[tuple[int, int, int] | tuple[int, int, bytes]]:
    """No waiting for full segments; and BBR where the kernel lets us, which does not take lost packets for a full line.

    Source: tcp(7), TCP_CONGESTION
    """
    options: list[tuple[int, int, int] | tuple[int, int, bytes]] = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    if not hasattr(socket, "TCP_CONGESTION"):
        return options
    wanted = (socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.setsockopt(*wanted)
        except OSError as error:
            log.info("no-bbr-here", error=str(error))
            return options
    return [*options, wanted]


def ask(
    peer: httpx.Client,
    state: JoinState,
    method: str,
    path: str,
    body: str | bytes = b"",
    *,
    timeout: float | None = None,
) -> bytes:
    """One signed request with a JSON body; the body of the answer.

    Raises: TransientError when the peer is away or asks to come later, PermanentError when it refuses for good; the
        codes are the peer's, or "unreachable", "bad-certificate".
    """
    content = body.encode() if isinstance(body, str) else body
    return send(
        peer, state, method, path, content, hashlib.sha256(content).digest(), len(content), "application/json", timeout
    )


def send(
    peer: httpx.Client,
    state: JoinState,
    method: str,
    path: str,
    content: bytes | Iterable[bytes],
    sha256: bytes,
    length: int,
    content_type: str,
    timeout: float | None = None,
) -> bytes:
    """One signed request whose body of ``length`` bytes and digest ``sha256`` may be streamed; the answer's body.

    Raises: as ``ask``.
    """
    key = node_key(registry.node().data_dir)
    headers = http_signatures.sign(method, path, sha256, key, state.name, int(clock.seconds(state)))
    headers |= {"Content-Type": content_type, "Content-Length": str(length)}
    begun = time.monotonic()

    def hear(answer: httpx.Response) -> None:
        clock.learn(state, answer, time.monotonic() - begun)

    return exchange(peer, method, path, content, headers, timeout, heard=hear)


def exchange(
    peer: httpx.Client,
    method: str,
    path: str,
    content: bytes | Iterable[bytes],
    headers: dict[str, str],
    timeout: float | None = None,
    heard: Callable[[httpx.Response], None] | None = None,
) -> bytes:
    """One request; the answer's body. ``heard`` is given every answer first. Raises: as ``ask``."""
    try:
        response = peer.request(
            method,
            path,
            content=content,
            headers=headers,
            timeout=httpx.USE_CLIENT_DEFAULT if timeout is None else timeout,
        )
    except httpx.TransportError as error:
        raise _unreachable(peer, error) from error
    if heard is not None:
        heard(response)
    if response.is_success:
        return response.content
    raise refusal(response)


def _unreachable(peer: httpx.Client, error: httpx.TransportError) -> RegisError:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return TransientError("bad-certificate", f"{peer.base_url}: {error}")
    return TransientError("unreachable", f"{peer.base_url}: {str(error) or type(error).__name__}")


def refusal(response: httpx.Response) -> RegisError:
    """The error that an answer stands for, with the peer's code when it names one."""
    code, title = f"http-{response.status_code}", response.reason_phrase
    try:
        document = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        document = None
    if isinstance(document, dict):
        code = str(document.get("code", code))[:64]
        title = str(document.get("title", title))[:200]
    later = response.status_code >= 500 or response.status_code in _LATER or code in _LATER_CODES
    return TransientError(code, title) if later else PermanentError(code, title)

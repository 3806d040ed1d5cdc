"""Passing bytes between two sockets without looking at them: what is left when all that is clever is broken.

Nothing of the rest of Regis is used here, so nothing of it can break this.
"""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

CHUNK_BYTES: Final = 256 << 10
_LINGER_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 5.0
_DEAD_PEER_MILLISECONDS: Final = 120_000


def tune(peer: socket.socket) -> None:
    """Small messages go at once; a peer whose machine is gone is noticed."""
    peer.settimeout(None)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_PEER_MILLISECONDS)


def dial(host: str, port: int, timeout: float) -> socket.socket:
    """A tuned connection. Raises: OSError."""
    peer = socket.create_connection((host, port), timeout)
    tune(peer)
    return peer


class Ends:
    """Two connected sockets, and when the first of them said that it sends no more."""

    def __init__(self, one: socket.socket, other: socket.socket) -> None:
        self.sockets = (one, other)
        self._closed_at = 0.0

    def receive(self, source: socket.socket) -> bytes:
        """What comes next, b"" at the end. Raises: OSError."""
        while not select.select([source], [], [], _POLL_SECONDS)[0]:
            if self._closed_at and time.monotonic() - self._closed_at > _LINGER_SECONDS:
                return b""  # the other end has gone, and this one does not take notice
        return source.recv(CHUNK_BYTES)

    def finish(self, target: socket.socket) -> None:
        """Pass on that one end sends no more."""
        self._closed_at = self._closed_at or time.monotonic()
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def break_off(self) -> None:
        """Wake both directions: one is broken."""
        for peer in self.sockets:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close both."""
        for peer in self.sockets:
            with contextlib.suppress(OSError):
                peer.close()


def both_ways(ends: Ends, there: Callable[[], None], back: Callable[[], None]) -> None:
    """Run one direction in a thread of its own and one here; both sockets are closed afterwards."""
    returning = threading.Thread(target=back, name="proxy-back", daemon=True)
    returning.start()
    try:
        there()
    finally:
        returning.join()
        ends.close()


def relay(one: socket.socket, other: socket.socket, first: bytes = b"") -> tuple[int, int]:
    """Pass everything both ways until both ends are done; ``first`` was already read from ``one``. Never raises.

    How many bytes passed from ``one``, and to it.
    """
    ends = Ends(one, other)
    passed = {one: 0, other: 0}

    def pump(source: socket.socket, target: socket.socket, waiting: bytes) -> None:
        try:
            if waiting:
                target.sendall(waiting)
                passed[source] += len(waiting)
            while chunk := ends.receive(source):
                target.sendall(chunk)
                passed[source] += len(chunk)
        except (OSError, ValueError):
            ends.break_off()
        else:
            ends.finish(target)

    both_ways(ends, lambda: pump(one, other, first), lambda: pump(other, one, b""))
    return passed[one], passed[other]


def called_title(head: bytes) -> str:
    """The called AE title in the first 26 bytes of an A-ASSOCIATE-RQ; "" when it is none."""
    if len(head) < 26 or head[0] != 1:
        return ""
    return head[10:26].decode("ascii", "replace").strip(" \0")


def read_at_least(peer: socket.socket, count: int, timeout: float) -> bytes:
    """Read until ``count`` bytes are there, or the peer closed or took too long. Raises: OSError."""
    deadline = time.monotonic() + timeout
    found = b""
    while len(found) < count and (left := deadline - time.monotonic()) > 0:
        if not select.select([peer], [], [], left)[0]:
            break
        piece = peer.recv(count - len(found))
        if not piece:
            break
        found += piece
    return found

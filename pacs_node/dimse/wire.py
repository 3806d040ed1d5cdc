"""The bytes of a peer, read ahead: one system call brings the rest of a fragment and the headers behind it."""

import socket
import struct
import time
from ssl import SSLSocket
from typing import Final

from standards.errors import TransientError

_AHEAD: Final = 1 << 14


class Wire:
    """Reads a blocking socket; what is asked for must come within ``timeout`` seconds of :meth:`begin`.

    Raises: TransientError "timed-out", "connection-lost" from whatever reads; OSError.
    """

    def __init__(self, peer: socket.socket, timeout: float) -> None:
        self._socket = peer
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._ahead = memoryview(bytearray(_AHEAD))
        self._start = self._stop = 0
        if not isinstance(peer, SSLSocket):
            # The kernel keeps the time: Python would ask before each call whether there is something to read.
            seconds, fraction = divmod(timeout, 1)
            limit = struct.pack("ll", int(seconds), int(fraction * 1_000_000))
            peer.settimeout(None)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        else:
            peer.settimeout(timeout)

    @property
    def has_begun(self) -> bool:
        """Whether something was read that nobody asked for yet."""
        return self._start < self._stop

    def begin(self) -> None:
        """From now on counts the time that the next PDU may take."""
        self._deadline = time.monotonic() + self._timeout

    def exactly(self, count: int) -> memoryview:
        """The next ``count`` bytes, at most a few; they hold until the next call."""
        while self._stop - self._start < count:
            if self._start + count > _AHEAD:
                rest = bytes(self._ahead[self._start : self._stop])
                self._ahead[: len(rest)] = rest
                self._start, self._stop = 0, len(rest)
            self._stop += self._receive([self._ahead[self._stop :]])
        piece = self._ahead[self._start : self._start + count]
        self._start += count
        return piece

    def fill(self, view: memoryview) -> None:
        """Fill ``view`` with what comes next, past the memory that is read ahead."""
        held = min(self._stop - self._start, len(view))
        view[:held] = self._ahead[self._start : self._start + held]
        self._start += held
        rest = view[held:]
        while rest:
            count = self._receive([rest, self._ahead])
            self._start, self._stop = 0, max(0, count - len(rest))
            rest = rest[count:]

    def send(self, data: bytes) -> None:
        """Send all of ``data``."""
        try:
            self._socket.sendall(data)
        except (BlockingIOError, TimeoutError):
            raise TransientError("timed-out", "the peer takes nothing in") from None

    def await_close(self, seconds: float) -> None:
        """Give the peer the time to close first, as it should after a release."""
        self._socket.settimeout(seconds)
        self._socket.recv(1)

    def _receive(self, views: list[memoryview]) -> int:
        if time.monotonic() > self._deadline:
            raise TransientError("timed-out", "the peer is too slow")
        try:
            if isinstance(self._socket, SSLSocket):
                count = self._socket.recv_into(views[0])
            else:
                count = self._socket.recvmsg_into(views)[0]
        except (BlockingIOError, TimeoutError):
            raise TransientError("timed-out", "the peer is silent") from None
        if not count:
            raise TransientError("connection-lost", "the peer closed the connection")
        return count

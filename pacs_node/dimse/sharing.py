"""Associations that come at once are shared between processes: the interpreter's lock lets one thread run at a time.

The process with the port accepts every connection and hands those that find it busy to another, as descriptors over a
pair of sockets. The others are forked before there is a thread or a database connection, so an idle one costs little.
"""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import structlog

log = structlog.get_logger(__name__)

_LONGEST_LETTER: Final = 256
_ENDED: Final = b"e"


class Helper:
    """The process that takes the connections which are handed over, as the process with the port sees it."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self.associations = 0
        """How many it was given that have not ended."""

    def listen(self) -> None:
        """Begin to hear what it says."""
        threading.Thread(target=self._listen, name="dicom-helper", daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while said := self._channel.recv(_LONGEST_LETTER):
                with self._lock:
                    self.associations -= said.count(_ENDED)
        with self._lock:
            self.associations = 0

    def take(self, connection: socket.socket, address: Any, *, tls: bool) -> bool:
        """Hand a connection over; whether that worked: then the caller lets go of its own descriptor."""
        letter = json.dumps([list(address), tls]).encode()
        with self._lock:
            self.associations += 1
        try:
            socket.send_fds(self._channel, [letter], [connection.fileno()])
        except OSError as error:
            with self._lock:
                self.associations = 0
            log.error("dicom-helper-gone", error=str(error))
            return False
        return True

    def close(self) -> None:
        """Let it end."""
        self._channel.close()


class Duty:
    """The side of the helper: it takes connections until the process with the port is gone."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def connections(self) -> Iterator[tuple[socket.socket, Any, bool]]:
        """Each ``(connection, address, tls)`` as it is handed over."""
        while True:
            letter, descriptors, _, _ = socket.recv_fds(self._channel, _LONGEST_LETTER, 1)
            if not letter:
                return
            address, tls = json.loads(letter)
            yield socket.socket(fileno=descriptors[0]), tuple(address), tls

    def ended(self) -> None:
        """Say that one of them is over."""
        with contextlib.suppress(OSError):  # who would listen is gone, and so will this process be
            self._channel.send(_ENDED)

    def stop(self) -> None:
        """End :meth:`connections`."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)


def fork_helper(serve: Callable[[Duty], None]) -> Helper:
    """Fork a process that runs ``serve`` and ends; call it before there are threads or connections."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        theirs.close()
        return Helper(ours)
    ours.close()
    status = 1
    try:
        serve(Duty(theirs))
        status = 0
    except BaseException:
        log.exception("dicom-helper-failed")
    finally:
        os._exit(status)  # what the parent is in the middle of is none of this process' business

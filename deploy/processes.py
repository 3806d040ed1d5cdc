"""Child processes that never outlive their parent."""

import contextlib
import ctypes
import errno
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_PORTS = range(10_000, 32_000)
"""Below those that systems give to outgoing connections."""
_given: set[int] = set()


def die_with_parent(stop_signal: int = signal.SIGTERM) -> None:
    """Ask the kernel to send `stop_signal` to this process when its parent ends, however it ends.

    Linux forgets the request when a process changes its uid, so call it after dropping privileges.
    Elsewhere this does nothing: the supervisor's own clean-up is all there is.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, stop_signal, 0, 0, 0)


def as_child(parent: int) -> Callable[[], None]:
    """What a child of process `parent` runs between fork and exec: tie its life to the parent's."""

    def prepare() -> None:
        die_with_parent()
        if os.getppid() != parent:  # the parent ended before the request was made
            os._exit(1)

    return prepare


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody has now and that this process was not given before.

    Raises: OSError when all that were tried are taken.
    """
    for _ in range(100):
        port = secrets.choice(_PORTS)  # not by ``random``, whose sequence tests may fix
        if port in _given:  # whoever was given it may not listen yet
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port
    raise OSError(errno.EADDRINUSE, f"no free port was found between {_PORTS.start} and {_PORTS.stop}")


def take_ports_from(share: int, shares: int) -> None:
    """Give this process ports of its own share of them: what others are given and do not listen on yet is not seen."""
    global _PORTS
    size = len(_PORTS) // shares
    _PORTS = _PORTS[share * size : (share + 1) * size]


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this TCP port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def wait_until(ready: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until `ready()` is true.

    Raises:
        TimeoutError: `what` was not so within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not so after {seconds:.0f} s")
        time.sleep(0.02)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)

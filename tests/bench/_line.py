"""A bad line between two hosts, without tc: two network namespaces, a tun device in each, one process between them.

The process takes IP packets from either side and gives them to the other as a real line would: at a rate, with a
bounded queue that drops what does not fit, after a delay, and less those that a seeded die loses. So the real TCP of
the kernel does the retransmitting. The line can be cut and mended, and counts what was put on it each way. Linux and
root only.
"""

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from deploy.processes import as_child

ROOT: Final = Path(__file__).parents[2]
HOME: Final = "10.77.0.1"
"""This process and what it starts."""
FAR: Final = "10.77.0.2"
"""What is started by :meth:`Line.at_far_end`."""
NETWORK: Final = "10.77.0.0/30"
MTU: Final = 1500
CONGESTION: Final = Path("/proc/sys/net/ipv4/tcp_congestion_control")
"""Of the network namespace of whoever looks."""
_DEVICE: Final = "line0"
_NEW_NETWORK: Final = 0x40000000
_SET_INTERFACE, _TUN, _NO_PACKET_INFORMATION = 0x400454CA, 0x0001, 0x1000
_OWN_NAMESPACE: Final = "/proc/thread-self/ns/net"
_AT_ONCE: Final = 64
_PACE_SECONDS: Final = 0.001
"""The carrier looks no oftener than this, or looking would cost more than carrying."""


@dataclass(frozen=True)
class Shape:
    """What a line does to packets, in each direction by itself.

    Attributes:
        bits_per_second: how fast it carries.
        delay_seconds: one way; a round trip takes twice that.
        loss: the share of packets that never arrive, each independent of the others.
        queue_bytes: what waits to be carried; more is dropped.
        seed: of the die.
    """

    bits_per_second: float = 100e6
    delay_seconds: float = 0.04
    loss: float = 0.01
    queue_bytes: int = 1_000_000
    seed: int = 1

    def __str__(self) -> str:
        return (
            f"{self.bits_per_second / 1e6:g} Mbit/s, {self.loss:.1%} loss each way, "
            f"{self.delay_seconds * 2000:g} ms round trip, queue of {self.queue_bytes / 1e6:g} MB"
        )


class Channel:
    """One direction of a line: which packets come out of it, and when. Times are seconds of any steady clock."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self._shape = shape
        self._dice = random.Random(seed)
        self._carried_until = 0.0
        self._under_way: deque[tuple[float, bytes]] = deque()
        self.packets = self.bytes = self.lost = self.overflowed = 0

    def put(self, packet: bytes, now: float) -> None:
        """A sender puts a packet on the line. It is counted whatever becomes of it."""
        shape = self._shape
        self.packets += 1
        self.bytes += len(packet)
        begins = max(now, self._carried_until)
        if round((begins - now) * shape.bits_per_second / 8) + len(packet) > shape.queue_bytes:
            self.overflowed += 1
            return
        # A lost packet takes its time on the line as any other.
        self._carried_until = begins + len(packet) * 8 / shape.bits_per_second
        if self._dice.random() < shape.loss:
            self.lost += 1
            return
        self._under_way.append((self._carried_until + shape.delay_seconds, packet))

    def arrived(self, now: float) -> list[bytes]:
        """Packets that are through by now, in order; each is given once."""
        out = []
        while self._under_way and self._under_way[0][0] <= now:
            out.append(self._under_way.popleft()[1])
        return out

    def next_arrival(self) -> float | None:
        """When the next packet comes out; None when nothing is under way."""
        return self._under_way[0][0] if self._under_way else None

    def cut(self) -> None:
        """Lose all that is under way, as a cut cable does."""
        self.lost += len(self._under_way)
        self._under_way.clear()
        self._carried_until = 0.0


@dataclass(frozen=True)
class Counts:
    """What was put on the line in each direction so far, IP headers and retransmissions included."""

    home_bytes: int
    home_packets: int
    far_bytes: int
    far_packets: int
    lost: int
    overflowed: int

    @property
    def bytes(self) -> int:
        """Both ways."""
        return self.home_bytes + self.far_bytes

    def since(self, earlier: "Counts") -> "Counts":
        """The difference."""
        before = asdict(earlier)
        return Counts(**{name: value - before[name] for name, value in asdict(self).items()})


class Line:
    """A running line; see :func:`line`."""

    def __init__(self, carrier: "subprocess.Popen[str]", far: int) -> None:
        self._carrier = carrier
        self._far = far
        self.pid = carrier.pid

    def at_far_end(self, *command: str) -> list[str]:
        """The command that runs ``command`` at the far end of the line."""
        return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self._far}", *command]

    @contextlib.contextmanager
    def far_end(self) -> Iterator[None]:
        """Sockets that this thread opens in the block are those of the far end."""
        with _entered(self._far):
            yield

    def cut(self) -> None:
        """Let nothing through until :meth:`mend`."""
        self._tell("cut")

    def mend(self) -> None:
        """Let packets through again."""
        self._tell("mend")

    def counts(self) -> Counts:
        """What was put on the line since it was made."""
        return Counts(**json.loads(self._tell("counts")))

    def _tell(self, word: str) -> str:
        if self._carrier.stdin is None or self._carrier.stdout is None:
            raise ValueError("the line's process has no pipes")
        self._carrier.stdin.write(word + "\n")
        self._carrier.stdin.flush()
        return self._carrier.stdout.readline()


def why_not() -> str:
    """Why no line can be made here, "" if one can."""
    if sys.platform != "linux":
        return "the bad line needs Linux"
    if os.geteuid() != 0:
        return "the bad line needs root: it makes network namespaces"
    if not Path("/dev/net/tun").exists():
        return "the bad line needs /dev/net/tun"
    try:
        for words in (["ip", "-V"], ["nsenter", "-V"]):
            subprocess.run(words, check=True, capture_output=True)
    except OSError as error:
        return f"the bad line needs {error.filename} (Debian: iproute2, util-linux)"
    inside = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False)
    return f"no network namespace can be made: {inside.stderr.strip()[-200:]}" if inside.returncode else ""


_PROBE = "import ctypes, os, sys; sys.exit(ctypes.CDLL(None, use_errno=True).unshare(0x40000000) and os.strerror(ctypes.get_errno()))"  # noqa: E501


@contextlib.contextmanager
def line(shape: Shape, congestion: str = "") -> Iterator[Line]:
    """A line from this process, and all it starts from now on, to a far end with nothing on it.

    Call it in the main thread before there are others: a thread stays where it was made. Both ends see nothing but
    their own 127.0.0.1 and each other; they are gone with this process. ``congestion`` names the TCP congestion control
    of programs that do not choose one themselves ("" is the machine's; kernels allow some others only in the first
    namespace).

    Raises:
        OSError: no namespace or device can be made; :func:`why_not` says so beforehand.
    """
    before = os.open(_OWN_NAMESPACE, os.O_RDONLY)
    far, far_device = _new_host(FAR, congestion)
    try:
        _, home_device = _new_host(HOME, congestion)
        command = [sys.executable, "-m", "tests.bench._line", str(home_device), str(far_device)]
        command += [json.dumps(asdict(shape))]
        carrier = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=(home_device, far_device),
            start_new_session=True,
            preexec_fn=as_child(os.getpid()),
        )
        os.close(home_device)
        try:
            yield Line(carrier, far)
        finally:
            carrier.terminate()
            carrier.wait()
    finally:
        os.close(far_device)
        _setns(before)
        os.close(before)
        os.close(far)


def _new_host(address: str, congestion: str) -> tuple[int, int]:
    """Move this thread to a new namespace with a loopback and one end of the line: namespace, device."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NETWORK) != 0:
        raise OSError(ctypes.get_errno(), "no network namespace can be made")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    request = struct.pack("16sH14x", _DEVICE.encode(), _TUN | _NO_PACKET_INFORMATION)
    fcntl.ioctl(device, _SET_INTERFACE, request)
    for words in (
        ["ip", "link", "set", "lo", "up"],
        ["ip", "link", "set", _DEVICE, "mtu", str(MTU), "txqueuelen", "5000", "up"],
        ["ip", "address", "add", f"{address}/32", "dev", _DEVICE],
        ["ip", "route", "add", NETWORK, "dev", _DEVICE],
    ):
        subprocess.run(words, check=True)
    if congestion:
        CONGESTION.write_text(congestion)
    return os.open(_OWN_NAMESPACE, os.O_RDONLY), device


def _setns(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _NEW_NETWORK) != 0:
        raise OSError(ctypes.get_errno(), "the network namespace cannot be entered")


@contextlib.contextmanager
def _entered(namespace: int) -> Iterator[None]:
    before = os.open(_OWN_NAMESPACE, os.O_RDONLY)
    try:
        _setns(namespace)
        yield
    finally:
        _setns(before)
        os.close(before)


def _carry(home: int, far: int, shape: Shape) -> None:
    """Carry packets both ways until the pipe of commands is closed."""
    ways = {home: (Channel(shape, shape.seed), far), far: (Channel(shape, shape.seed + 1), home)}
    commands, is_up = sys.stdin.fileno(), True
    while True:
        arrivals = [when for channel, _ in ways.values() if (when := channel.next_arrival()) is not None]
        rest = max(0.0, min(arrivals) - _PACE_SECONDS - time.monotonic()) if arrivals else None
        readable, _, _ = select.select([home, far, commands], [], [], rest)
        for source in readable:
            if source == commands:
                word = os.read(commands, 64).decode().strip()
                if not word:
                    return
                is_up = {"cut": False, "mend": True}.get(word, is_up)
                _answer(ways[home][0], ways[far][0])
            else:
                _take(source, ways[source][0])
        now = time.monotonic()
        for channel, target in ways.values():
            if not is_up:
                channel.cut()
            for packet in channel.arrived(now + _PACE_SECONDS):  # it was taken as much too late
                with contextlib.suppress(BlockingIOError):  # a full receive queue drops, as a full card does
                    os.write(target, packet)
        time.sleep(_PACE_SECONDS)


def _take(device: int, channel: Channel) -> None:
    """Put what a sender wrote on the line, a handful at a time so that the other direction gets its turn."""
    for _ in range(_AT_ONCE):
        try:
            packet = os.read(device, MTU)
        except BlockingIOError:
            return
        channel.put(packet, time.monotonic())


def _answer(home: Channel, far: Channel) -> None:
    counts = Counts(
        home.bytes, home.packets, far.bytes, far.packets, home.lost + far.lost, home.overflowed + far.overflowed
    )
    print(json.dumps(asdict(counts)), flush=True)


def main() -> None:
    """The process between the two devices: ``HOME_FD FAR_FD SHAPE``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=int)
    parser.add_argument("far", type=int)
    parser.add_argument("shape", type=json.loads)
    chosen = parser.parse_args()
    with contextlib.suppress(PermissionError):  # a line is never late because a server is busy
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    _carry(chosen.home, chosen.far, Shape(**chosen.shape))


if __name__ == "__main__":
    main()

"""Retrieval over DICOMweb: frames, whole series, metadata and searches, a Regis node and Orthanc side by side.

Each server holds the same CT series. Each connection is a process that keeps it and asks as fast as it is answered,
while the kernel drops the bodies uncopied, so that the client is not what is measured; what is asked is spread over all
instances of the series. Peak memory is the server's own, read from the kernel after its last run.
"""

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from deploy.health import listens
from deploy.processes import free_port
from standards.multipart import OutgoingPart, encode_related, new_boundary
from standards.tokens import generate_key, issue_image_token, public_key_to_text
from tests.bench._peers import program, running
from tests.factories.dicom import ct_series, part10

ROOT = Path(__file__).parents[2]
AS_STORED: Final = "transfer-syntax=*"
PLUGIN: Final = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
_STORE_BATCH: Final = 20
_BUFFER: Final = 1 << 20
_FORK: Final = get_context("fork")


@dataclass(frozen=True)
class Case:
    """Something to ask for: an address for each instance, or one for the series, and the goal against Orthanc."""

    name: str
    unit: str
    goal: float
    accept: str
    path: str
    per_instance: bool = False


CASES: Final = (
    Case("frame", "/s", 3, f"multipart/related; type=application/octet-stream; {AS_STORED}", "/frames/1", True),
    Case("series", "MB/s", 2, f'multipart/related; type="application/dicom"; {AS_STORED}', ""),
    Case("series metadata", "/s", 5, "application/dicom+json", "/metadata"),
    Case("instances QIDO", "/s", 10, "application/dicom+json", "/instances?includefield=00280010&limit=200"),
)


@dataclass(frozen=True)
class Server:
    """A running server: its DICOMweb root, what a client must send, and its process."""

    root: str
    headers: dict[str, str]
    pid: int

    def peak_mb(self) -> float:
        """The most memory it has had resident since its start."""
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        return int(found[1]) / 1000 if found else 0.0


_JOIN = """
import django; django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from gateway.models import JoinState
JoinState.objects.create(name="bench", centre_url="https://centre.example", epoch="e1", directory={{
    "peers": [], "mirror_to": [], "token_keys": {{"k1": "{key}"}}}})
"""


@contextmanager
def regis(folder: Path) -> Iterator[Server]:
    """A node on SQLite, as shipped; every request carries an image token and is checked and audited."""
    web, key = free_port(), generate_key()
    environment = {
        "PYTHONPATH": str(ROOT),
        "DJANGO_SETTINGS_MODULE": "pacs_node.settings",
        "REGIS_NODE_DATA_DIR": str(folder),
        "REGIS_NODE_DICOM_PORT": str(free_port()),
        "REGIS_NODE_HTTP_PORT": str(web),
    }
    join = _JOIN.format(key=public_key_to_text(key.public_key()))
    subprocess.run([sys.executable, "-c", join], env={**os.environ, **environment}, cwd=ROOT, check=True)
    token, _ = issue_image_token(
        key, "k1", subject="bench", audience="bench", studies=["*"], operations=["read", "store"], ttl=7200
    )
    command = [sys.executable, "-m", "django", "run", "pacs"]
    with running(command, folder / "log", environment, listens(web)) as pid:
        yield Server(f"http://127.0.0.1:{web}/dicom-web", {"Authorization": f"Bearer {token}"}, pid)


@contextmanager
def orthanc(folder: Path) -> Iterator[Server]:
    """Debian's Orthanc with its DICOMweb plugin, both with their defaults, nobody asked for a password."""
    web = free_port()
    configuration = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "Plugins": [str(PLUGIN)],
        "DicomPort": free_port(),
        "HttpPort": web,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "TcpNoDelay": True,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    command = [program("Orthanc"), str(folder / "orthanc.json")]
    with running(command, folder / "log", {}, listens(web)) as pid:
        yield Server(f"http://127.0.0.1:{web}/dicom-web", {}, pid)


def store(server: Server, instances: list[bytes]) -> None:
    """Give the server the series by STOW-RS."""
    for start in range(0, len(instances), _STORE_BATCH):
        boundary = new_boundary()
        parts = [
            OutgoingPart({"Content-Type": "application/dicom"}, raw) for raw in instances[start : start + _STORE_BATCH]
        ]
        request = urllib.request.Request(
            f"{server.root}/studies",
            b"".join(encode_related(parts, boundary)),
            {
                **server.headers,
                "Accept": "application/dicom+json",
                "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            },
        )
        with urllib.request.urlopen(request) as answer:
            answer.read()


def check(server: Server, case: Case, path: str, instances: list[bytes]) -> int:
    """Ask once, whether the answer is whole, the series to its last byte; its length."""
    count = len(instances)
    request = urllib.request.Request(server.root + path, headers={**server.headers, "Accept": case.accept})
    with urllib.request.urlopen(request) as answer:
        body, kind = answer.read(), str(answer.headers["Content-Type"])
    if case.name == "series":
        boundary = kind.partition("boundary=")[2].partition(";")[0].strip('"').encode("ascii")
        parts = [part.partition(b"\r\n\r\n")[2] for part in body.split(b"--" + boundary)[1:-1]]
        if sorted(part.removesuffix(b"\r\n") for part in parts) != sorted(instances):
            raise RuntimeError(f"{server.root}: not the series that was stored")
    elif case.accept.startswith("application/dicom+json"):
        found = len(json.loads(body))
        if found != count:
            raise RuntimeError(f"{case.name}: {found} of {count} instances")
    elif len(body) < 500_000:
        raise RuntimeError(f"{case.name}: only {len(body)} bytes")
    return len(body)


def ask(address: tuple[str, int], requests: list[bytes], seconds: float, results: "Queue[tuple[int, int]]") -> None:
    """Ask over one kept connection until the time is up; puts (answers, bytes of their bodies).

    Bodies of known length and those that end with the connection are counted and dropped by the kernel, uncopied.
    """
    buffer = bytearray(_BUFFER)
    answers = octets = at = 0
    connection: socket.socket | None = None
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        connection = connection or socket.create_connection(address)
        connection.sendall(requests[at % len(requests)])
        at += 1
        head = b""
        while b"\r\n\r\n" not in head:
            piece = connection.recv(4096)
            if not piece:
                raise RuntimeError("the server hung up")
            head += piece
        head, _, body = head.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.decode("latin-1"))
        fields = head.lower()
        known = re.search(rb"\r\ncontent-length: *(\d+)", fields)
        octets += _rest(connection, body, int(known[1]) if known else None, b"chunked" in fields, buffer)
        answers += 1
        if b"connection: close" in fields:
            connection.close()
            connection = None
    results.put((answers, octets))


def _rest(connection: socket.socket, body: bytes, length: int | None, chunked: bool, buffer: bytearray) -> int:
    if chunked:
        tail, total = body[-7:], len(body)
        while not tail.endswith(b"\r\n0\r\n\r\n"):
            count = connection.recv_into(buffer)
            tail, total = (tail + bytes(buffer[max(0, count - 7) : count]))[-7:], total + count
        return total
    total = len(body)
    while length is None or total < length:
        wanted = _BUFFER if length is None else min(_BUFFER, length - total)
        count = connection.recv_into(buffer, wanted, socket.MSG_TRUNC)
        if not count:
            break
        total += count
    if length is not None and total != length:
        raise RuntimeError(f"{total} of {length} bytes")
    return total


def measure(
    server: Server, case: Case, paths: list[str], seconds: float, connections: int, length: int | None = None
) -> float:
    """Answers, or megabytes, a second. Raises: RuntimeError when an answer was not whole or no 200.

    ``length`` is that of each answer where megabytes are counted: some servers do not say it themselves.
    """
    parts = urlsplit(server.root)
    address = (parts.hostname or "", parts.port or 0)
    headers = {"Host": parts.netloc, "Accept": case.accept, **server.headers}
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    requests = [f"GET {parts.path}{path} HTTP/1.1\r\n{fields}\r\n".encode() for path in paths]
    results: Queue[tuple[int, int]] = _FORK.Queue()
    shares = [requests[start::connections] or requests for start in range(connections)]
    begun = time.monotonic()
    clients = [_FORK.Process(target=ask, args=(address, share, seconds, results)) for share in shares]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    took = time.monotonic() - begun
    if any(client.exitcode for client in clients):
        raise RuntimeError(f"{case.name}: a client failed")
    found = [results.get() for _ in clients]
    if case.unit == "MB/s" and length and any(octets != answers * length for answers, octets in found):
        raise RuntimeError(f"{case.name}: answers of other lengths than {length} bytes")
    return sum(octets for _, octets in found) / took / 1e6 if case.unit == "MB/s" else sum(n for n, _ in found) / took


def run(count: int, runs: int, seconds: int, connections: int, only: str, scratch: Path) -> None:
    """Measure and print."""
    series = ct_series(count, size=512)
    base = f"/studies/{series[0].StudyInstanceUID}/series/{series[0].SeriesInstanceUID}"
    uids = [dataset.SOPInstanceUID for dataset in series]
    instances = [part10(dataset) for dataset in series]
    del series
    cases = [case for case in CASES if only in case.name]
    print(
        f"A series of {count} instances of {len(instances[0]) / 1e6:.2f} MB, {connections} connections, "
        f"{runs} runs of {seconds} s each, interleaved, median\n",
        flush=True,
    )
    rates: dict[tuple[str, str], list[float]] = {}
    lengths: dict[tuple[str, str], int] = {}
    peaks: dict[str, float] = {}
    with regis(_folder(scratch, "regis")) as ours, orthanc(_folder(scratch, "orthanc")) as theirs:
        servers = {"Regis node": ours, "Orthanc": theirs}
        for server in servers.values():
            store(server, instances)
        before = {name: server.peak_mb() for name, server in servers.items()}
        for number in range(runs):
            for case in cases:
                paths = [f"{base}{case.path}"]
                if case.per_instance:
                    paths = [f"{base}/instances/{uid}{case.path}" for uid in uids]
                for name, server in servers.items():
                    if number == 0:
                        lengths[case.name, name] = check(server, case, paths[0], instances)
                    rate = measure(server, case, paths, seconds, connections, lengths[case.name, name])
                    rates.setdefault((case.name, name), []).append(rate)
                    print(f"  run {number + 1}: {case.name}: {name} {rate:.0f} {case.unit}", flush=True)
        peaks = {name: server.peak_mb() for name, server in servers.items()}
    print(f"\n{'':<18}{'Regis node':>16}{'Orthanc':>16}{'times':>10}{'goal':>8}")
    for case in cases:
        mine, other = (statistics.median(rates[case.name, name]) for name in servers)
        cells = [f"{rate:.0f} {case.unit}" for rate in (mine, other)]
        print(f"{case.name:<18}{cells[0]:>16}{cells[1]:>16}{mine / other:>9.1f}x{case.goal:>7.0f}x")
    memory = [f"{before[name]:.0f} → {peaks[name]:.0f} MB" for name in servers]
    print(f"{'peak memory':<18}{memory[0]:>16}{memory[1]:>16}   (after storing → after all runs)")


def _folder(scratch: Path, name: str) -> Path:
    folder = scratch / name
    folder.mkdir()
    return folder


def main() -> None:
    """Parse, measure, clean up."""
    parser = argparse.ArgumentParser(prog="regis bench wado", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="instances of the series")
    parser.add_argument("--runs", type=int, default=5, help="runs of each")
    parser.add_argument("--seconds", type=int, default=3, help="length of a run")
    parser.add_argument("--connections", type=int, default=4, help="kept-alive connections of the client")
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--dir", type=Path, default=ROOT / "var" / "bench", help="a folder on the disk to measure")
    chosen = parser.parse_args()
    if not program("Orthanc") or not PLUGIN.exists():
        sys.exit("regis bench wado needs Orthanc and its DICOMweb plugin (Debian: orthanc, orthanc-dicomweb).")
    chosen.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wado-", dir=chosen.dir) as folder:
        run(chosen.count, chosen.runs, chosen.seconds, chosen.connections, chosen.only, Path(folder))


if __name__ == "__main__":
    main()

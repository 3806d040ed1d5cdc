"""C-MOVE out of a Regis node beside Orthanc: megabytes a second, and the ratio to Orthanc.

600 CT images of 512x512x16 bit (0.5 MB) are stored in both; `movescu` then has each send the study to one and the same
`storescp`, which takes everything in and keeps nothing. TCP_NODELAY on both ends; runs of the two are interleaved, and
each figure is the median of its runs. The final response must be Success: every sub-operation has completed.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from pydicom import dcmread

from deploy.processes import free_port
from deploy.supervisor import base_environment
from tests.bench import _peers as peers
from tests.bench._peers import NODELAY, ROOT, SENDER, Server, process, program
from tests.bench.store import make_images, send

RECEIVER = "RECEIVER"


@asynccontextmanager
async def regis(folder: Path, receiver_port: int) -> AsyncIterator[Server]:
    """A node on SQLite, as shipped, that knows the receiver."""
    async with peers.regis(folder) as server:
        words = ["admit", RECEIVER, "--host", "127.0.0.1", "--port", str(receiver_port)]
        subprocess.run(
            [sys.executable, "-P", "-m", "deploy", "node", *words],
            env={**base_environment(ROOT), "REGIS_NODE_DATA_DIR": str(folder)},
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        yield server


@asynccontextmanager
async def orthanc(folder: Path, receiver_port: int) -> AsyncIterator[Server]:
    """Debian's Orthanc with its defaults, that knows the receiver."""
    known = {"receiver": [RECEIVER, "127.0.0.1", receiver_port], "bench": [SENDER, "127.0.0.1", receiver_port]}
    async with peers.orthanc(folder, DicomModalities=known, DicomAssociationCloseDelay=0) as server:
        yield server


@asynccontextmanager
async def receiver(folder: Path, port: int, max_pdu: int) -> AsyncIterator[None]:
    """DCMTK's storescp, a process an association, that keeps nothing."""
    command = [program("storescp"), "--fork", "--ignore", "--accept-all", "-aet", RECEIVER]
    async with process([*command, "--max-pdu", str(max_pdu), str(port)], folder, port):
        yield


def move(server: Server, study: str) -> float:
    """Have ``server`` send the study to the receiver; the seconds it took.

    Raises:
        RuntimeError: not every instance went over.
    """
    begun = time.perf_counter()
    done = subprocess.run(
        [
            *[program("movescu"), "-v", "-S", "-aet", SENDER, "-aec", server.title, "-aem", RECEIVER],
            *["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}", "127.0.0.1", str(server.port)],
        ],
        env=NODELAY,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - begun
    said = done.stdout + done.stderr
    if done.returncode or "(Success)" not in said:
        raise RuntimeError(f"{server.title} did not move all: {said[-1500:]}")
    return seconds


async def run(count: int, runs: int, max_pdu: int, scratch: Path) -> None:
    """Measure and print."""
    images = scratch / "images"
    images.mkdir()
    make_images(images, count)
    first = next(images.iterdir())
    size, study = first.stat().st_size, str(dcmread(first, stop_before_pixels=True).StudyInstanceUID)
    targets = {"Regis node": regis, "Orthanc": orthanc}
    if not program("Orthanc"):
        print("Orthanc is not installed and is left out.")
        del targets["Orthanc"]
    print(f"{count} instances of {size / 1e6:.2f} MB, {runs} runs each, interleaved, median; MB a second\n", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in targets}
    async with AsyncExitStack() as stack:
        port = free_port()
        await stack.enter_async_context(receiver(Path(tempfile.mkdtemp(dir=scratch)), port, max_pdu))
        servers = {}
        for name, make in targets.items():
            servers[name] = await stack.enter_async_context(make(Path(tempfile.mkdtemp(dir=scratch)), port))
            await send("storescu", servers[name], images, 1)
        for number in range(runs):
            for name, server in servers.items():
                took = await asyncio.to_thread(move, server, study)
                seconds[name].append(took)
                print(f"  run {number + 1}: {name}: {count * size / took / 1e6:.0f} MB/s", flush=True)
    rates = {name: count * size / statistics.median(took) / 1e6 for name, took in seconds.items()}
    print()
    for name, rate in rates.items():
        yardstick = rates.get("Orthanc")
        print(f"{name:<14}{rate:>8.0f} MB/s" + (f"  x{rate / yardstick:.2f}" if yardstick else ""))
    print("\nx: times the rate of Orthanc.")


def main() -> None:
    """Parse, measure, clean up."""
    parser = argparse.ArgumentParser(prog="regis bench move", description=__doc__)
    parser.add_argument("--count", type=int, default=600, help="instances of the study")
    parser.add_argument("--runs", type=int, default=5, help="runs of each")
    parser.add_argument("--max-pdu", type=int, default=131072, help="the longest PDU that the receiver takes, in bytes")
    parser.add_argument("--dir", type=Path, default=ROOT / "var" / "bench", help="a folder on the disk to measure")
    chosen = parser.parse_args()
    if not (program("movescu") and program("storescp") and program("storescu")):
        sys.exit("regis bench move: movescu, storescp and storescu are needed (Debian: dcmtk).")
    chosen.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="move-", dir=chosen.dir) as folder:
        asyncio.run(run(chosen.count, chosen.runs, chosen.max_pdu, Path(folder)))


if __name__ == "__main__":
    main()

"""C-STORE into a Regis node beside Orthanc and DCMTK's storescp: instances a second, and ratios to Orthanc.

600 CT images of 512x512x16 bit (0.5 MB) by `storescu`, over 1 and over 4 associations, TCP_NODELAY on both ends. Regis
and Orthanc answer after fsync; storescp never syncs and shows what the wire allows. Every run starts an empty server;
runs of the three are interleaved, and each figure is the median of its runs.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from deploy.health import listens
from deploy.processes import as_child, free_port, wait_until
from deploy.procfile import read
from deploy.supervisor import Part, Supervisor, base_environment
from standards.uids import new_uid

ROOT = Path(__file__).parents[2]
SENDER = "BENCH"
NODELAY = {**os.environ, "TCP_NODELAY": "1"}


def make_images(folder: Path, count: int) -> None:
    """CT-like images of one patient in series of 100, 0.5 MB each: a body in air, with the noise of a detector."""
    generator = np.random.default_rng(1)
    rows, columns = np.mgrid[-1:1:512j, -1:1:512j]
    body = np.where(rows**2 + (columns * 0.7) ** 2 < 0.5, 1064, 24)
    study, series = new_uid(), ""
    for number in range(count):
        if number % 100 == 0:
            series = new_uid()
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage
        image = Dataset()
        image.file_meta = meta
        image.SOPClassUID = CTImageStorage
        image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = UID(new_uid())
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series
        image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex = (
            "Bench^Mark",
            "BENCH",
            "19700101",
            "O",
        )
        image.StudyDate, image.StudyTime, image.AccessionNumber = "20260101", "120000", "BENCH"
        image.Modality, image.StudyID, image.SeriesNumber, image.InstanceNumber = "CT", "1", number // 100, number % 100
        image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, number], [1, 0, 0, 0, 1, 0]
        image.PixelSpacing, image.SliceThickness = [0.7, 0.7], 1
        image.Rows = image.Columns = 512
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.RescaleIntercept, image.RescaleSlope = -1024, 1
        noise = generator.integers(0, 40, (512, 512))
        image.PixelData = (body + noise).astype("<u2").tobytes()
        image.save_as(folder / f"{number:06d}.dcm", enforce_file_format=True)


@dataclass(frozen=True)
class Server:
    """A running receiver: where it listens, and how many instances it holds."""

    port: int
    title: str
    count: Callable[[], int]


def _files(folder: Path) -> int:
    """How many whole images lie below the folder."""
    found = 0
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 500_000:
            with path.open("rb") as file:
                found += file.read(132).endswith(b"DICM")
    return found


@asynccontextmanager
async def _program(command: list[str], folder: Path, port: int) -> AsyncIterator[None]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env=NODELAY, stdout=log, stderr=log, start_new_session=True, preexec_fn=as_child(os.getpid())
        )
    try:
        await asyncio.to_thread(wait_until, listens(port), 30, f"{command[0]} listens")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@asynccontextmanager
async def regis(folder: Path) -> AsyncIterator[Server]:
    """A node on SQLite, as shipped."""
    port, web = free_port(), free_port()
    environment = {
        "REGIS_NODE_DATA_DIR": str(folder),
        "REGIS_NODE_AE_TITLE": "REGIS",
        "REGIS_NODE_DICOM_PORT": str(port),
        "REGIS_NODE_HTTP_PORT": str(web),
        "REGIS_NODE_VENDOR_DIR": str(ROOT / "var" / "vendor"),
    }
    for words in (["migrate"], ["admit", SENDER]):
        command = [sys.executable, "-P", "-m", "deploy", "node", *words]
        subprocess.run(
            command, env={**base_environment(ROOT), **environment}, cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )
    supervisor = Supervisor(ROOT, folder / "log", lambda text: print(text, file=sys.stderr))
    part = Part("node-pacs", read()["node-pacs"], environment, listens(port))
    await supervisor.start(part)
    try:
        await supervisor.wait_healthy([part], 60)
        yield Server(port, "REGIS", lambda: _files(folder))
    finally:
        await supervisor.stop()


@asynccontextmanager
async def orthanc(folder: Path) -> AsyncIterator[Server]:
    """Debian's Orthanc with its defaults, every store synced to disk."""
    port, web = free_port(), free_port()
    configuration = {
        "Name": "Bench",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "Plugins": [],
        "DicomAet": "ORTHANC",
        "DicomPort": port,
        "DicomAlwaysAllowStore": True,
        "HttpPort": web,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "SyncStorageArea": True,
        "TcpNoDelay": True,
        "StorageAccessOnFind": "Always",
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))

    def count() -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{web}/statistics") as answer:
            return int(json.load(answer)["CountInstances"])

    async with _program([_path("Orthanc"), str(folder / "orthanc.json")], folder, port):
        yield Server(port, "ORTHANC", count)


@asynccontextmanager
async def storescp(folder: Path) -> AsyncIterator[Server]:
    """DCMTK's receiver, which writes files and never syncs."""
    port = free_port()
    (folder / "files").mkdir()
    command = [_path("storescp"), "--fork", "--output-directory", str(folder / "files"), str(port)]
    async with _program(command, folder, port):
        yield Server(port, "STORESCP", lambda: _files(folder / "files"))


TARGETS = {"Regis node": regis, "Orthanc": orthanc, "storescp (no fsync)": storescp}
PROGRAMS = {"Orthanc": "Orthanc", "storescp (no fsync)": "storescp"}


def _path(program: str) -> str:
    found = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    return found or ""


async def send(server: Server, images: Path, associations: int) -> float:
    """Send every image, spread over the associations; the seconds it took.

    Raises:
        RuntimeError: a sender failed, or the server does not hold every image afterwards.
    """
    files = sorted(str(path) for path in images.iterdir())
    shares = [files[start::associations] for start in range(associations)]
    begun = time.perf_counter()
    senders = [
        await asyncio.create_subprocess_exec(
            _path("storescu"),
            *["-aet", SENDER, "-aec", server.title, "127.0.0.1", str(server.port), *share],
            env=NODELAY,
            stdout=subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        for share in shares
    ]
    outcomes = await asyncio.gather(*(sender.communicate() for sender in senders))
    seconds = time.perf_counter() - begun
    for sender, (_, complaint) in zip(senders, outcomes, strict=True):
        if sender.returncode:
            raise RuntimeError(f"storescu to {server.title} failed: {complaint.decode(errors='replace')[-500:]}")
    held = await asyncio.to_thread(server.count)
    if held != len(files):
        raise RuntimeError(f"{server.title} holds {held} of {len(files)} instances")
    return seconds


async def run(count: int, runs: int, scratch: Path) -> None:
    """Measure and print."""
    targets = {name: make for name, make in TARGETS.items() if name not in PROGRAMS or _path(PROGRAMS[name])}
    for name in TARGETS.keys() - targets.keys():
        print(f"{name} is not installed and is left out.")
    images = scratch / "images"
    images.mkdir()
    make_images(images, count)
    size = next(images.iterdir()).stat().st_size
    print(
        f"{count} instances of {size / 1e6:.2f} MB, {runs} runs each, interleaved, median; instances a second\n",
        flush=True,
    )
    seconds: dict[tuple[str, int], list[float]] = {}
    for number in range(runs):
        for associations in (1, 4):
            for name, make in targets.items():
                folder = Path(tempfile.mkdtemp(dir=scratch))
                async with make(folder) as server:
                    took = await send(server, images, associations)
                seconds.setdefault((name, associations), []).append(took)
                print(f"  run {number + 1}: {name}, {associations} association(s): {count / took:.0f}/s", flush=True)
                shutil.rmtree(folder)
    rates = {key: count / statistics.median(took) for key, took in seconds.items()}
    print(f"\n{'':<22}{'1 association':>22}{'4 associations':>22}")
    for name in targets:
        cells = []
        for associations in (1, 4):
            rate, yardstick = rates[name, associations], rates.get(("Orthanc", associations))
            cells.append(f"{rate:.0f}/s" + (f"  x{rate / yardstick:.2f}" if yardstick else ""))
        print(f"{name:<22}{cells[0]:>22}{cells[1]:>22}")
    print("\nx: times the rate of Orthanc. storescp does not sync; Regis and Orthanc do.")


def main() -> None:
    """Parse, measure, clean up."""
    parser = argparse.ArgumentParser(prog="regis bench store", description=__doc__)
    parser.add_argument("--count", type=int, default=600, help="instances a run")
    parser.add_argument("--runs", type=int, default=3, help="runs of each")
    parser.add_argument("--dir", type=Path, default=ROOT / "var" / "bench", help="a folder on the disk to measure")
    chosen = parser.parse_args()
    if not _path("storescu"):
        sys.exit("regis bench store: storescu is not installed (Debian: dcmtk).")
    chosen.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="store-", dir=chosen.dir) as folder:
        asyncio.run(run(chosen.count, chosen.runs, Path(folder)))


if __name__ == "__main__":
    main()

"""C-STORE into a Regis node beside Orthanc and DCMTK's storescp: instances a second, and ratios to Orthanc.

600 CT images of 512x512x16 bit (0.5 MB) by `storescu`, over 1 and over 4 associations, TCP_NODELAY on both ends; with
`--small` 5,000 images of 0.1 MB. storescu takes a good part of two cores for itself; `--sender ready` sends what it
has encoded beforehand, so that the receivers are what differs. Regis and Orthanc answer after fsync; storescp never
syncs and shows what the wire allows. Every run starts an empty server; runs of all are interleaved, and each figure is
the median of its runs.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from standards.uids import new_uid
from tests.bench._peers import (
    NODELAY,
    POSTGRESQL_PLUGIN,
    ROOT,
    SENDER,
    Server,
    orthanc,
    orthanc_on_postgresql,
    peak_memory_mb,
    program,
    regis,
    regis_on_postgresql,
    storescp,
    tuned_orthanc,
)

TARGETS: Final = {
    "Regis": regis,
    "Orthanc": orthanc,
    "Orthanc tuned": tuned_orthanc,
    "storescp, no fsync": storescp,
    "Regis, PostgreSQL": regis_on_postgresql,
    "Orthanc, PostgreSQL": orthanc_on_postgresql,
}
SENDERS: Final[dict[str, Callable[[Server], list[str]]]] = {
    "storescu": lambda to: [program("storescu"), "-aet", SENDER, "-aec", to.title, "127.0.0.1", str(to.port)],
    "ready": lambda to: [sys.executable, "-m", "tests.bench._ready_sender", str(to.port), to.title],
}
YARDSTICK: Final = {name: "Orthanc, PostgreSQL" if "PostgreSQL" in name else "Orthanc" for name in TARGETS}


def make_images(folder: Path, count: int, size: int = 512) -> None:
    """CT-like images of one patient in series of 100 (0.5 MB at 512): a body in air, with the noise of a detector."""
    generator = np.random.default_rng(1)
    rows, columns = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
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
        image.Rows = image.Columns = size
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.RescaleIntercept, image.RescaleSlope = -1024, 1
        noise = generator.integers(0, 40, (size, size))
        image.PixelData = (body + noise).astype("<u2").tobytes()
        image.save_as(folder / f"{number:06d}.dcm", enforce_file_format=True)


async def send(sender: str, server: Server, images: Path, associations: int) -> float:
    """Send every image, spread over the associations; the seconds it took, without those that a sender gets ready in.

    Raises:
        RuntimeError: a sender failed, or the server does not hold every image afterwards.
    """
    files = sorted(str(path) for path in images.iterdir())
    shares = [files[start::associations] for start in range(associations)]
    begun = time.perf_counter()
    senders = [
        await asyncio.create_subprocess_exec(
            *SENDERS[sender](server),
            *share,
            env=NODELAY,
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        for share in shares
    ]
    if sender == "ready":
        await asyncio.gather(*(one.stdout.readline() for one in senders if one.stdout))
        begun = time.perf_counter()
    outcomes = await asyncio.gather(*(one.communicate(b"\n") for one in senders))
    seconds = time.perf_counter() - begun
    for one, (_, complaint) in zip(senders, outcomes, strict=True):
        if one.returncode:
            raise RuntimeError(f"{sender} to {server.title} failed: {complaint.decode(errors='replace')[-500:]}")
    held = await asyncio.to_thread(server.count)
    if held != len(files):
        raise RuntimeError(f"{server.title} holds {held} of {len(files)} instances")
    return seconds


def _available() -> dict[str, str]:
    """Target → why it is left out, "" if it is not."""
    missing = dict.fromkeys(TARGETS, "")
    for name in missing:
        if "Orthanc" in name and not program("Orthanc"):
            missing[name] = "Orthanc is not installed"
        elif name.startswith("storescp") and not program("storescp"):
            missing[name] = "storescp is not installed"
    if not POSTGRESQL_PLUGIN.exists():
        missing["Orthanc, PostgreSQL"] = "its plugin is not installed (Debian: orthanc-postgresql)"
    return missing


async def run(count: int, size: int, runs: int, names: list[str], sender: str, scratch: Path) -> None:
    """Measure and print. Folders of finished runs stay until the end: deleting would slow down who comes next."""
    images = scratch / "images"
    images.mkdir()
    make_images(images, count, size)
    megabytes = next(images.iterdir()).stat().st_size / 1e6
    print(
        f"{count} instances of {megabytes:.2f} MB by {sender}; medians of {runs} interleaved runs, instances a second\n"
    )
    seconds: dict[tuple[str, int], list[float]] = {}
    memory: dict[str, float] = {}
    for number in range(runs):
        for associations in (1, 4):
            for name in names:
                folder = Path(tempfile.mkdtemp(dir=scratch))
                async with TARGETS[name](folder) as server:
                    took = await send(sender, server, images, associations)
                    memory[name] = max(memory.get(name, 0), peak_memory_mb(server.pid))
                seconds.setdefault((name, associations), []).append(took)
                print(f"  run {number + 1}: {name}, {associations} association(s): {count / took:.0f}/s", flush=True)
    rates = {key: count / statistics.median(took) for key, took in seconds.items()}
    print(f"\n{'':<22}{'1 association':>20}{'4 associations':>20}{'peak memory':>14}")
    for name in names:
        cells = []
        for associations in (1, 4):
            rate, yardstick = rates[name, associations], rates.get((YARDSTICK[name], associations))
            cells.append(f"{rate:.0f}/s" + (f"  x{rate / yardstick:.2f}" if yardstick else ""))
        print(f"{name:<22}{cells[0]:>20}{cells[1]:>20}{memory[name]:>11.0f} MB")
    print("\nx: times the rate of Orthanc on the same kind of database. storescp does not sync; the others do.")


def main() -> None:
    """Parse, measure, clean up."""
    parser = argparse.ArgumentParser(prog="regis bench store", description=__doc__)
    parser.add_argument("--count", type=int, default=0, help="instances a run (600, or 5,000 small ones)")
    parser.add_argument("--small", action="store_true", help="images of 0.1 MB")
    parser.add_argument("--runs", type=int, default=5, help="runs of each")
    parser.add_argument("--sender", choices=SENDERS, default="storescu", help="what sends")
    parser.add_argument("--only", default="", help="names of the table, parted by semicolons")
    parser.add_argument("--dir", type=Path, default=ROOT / "var" / "bench", help="a folder on the disk to measure")
    chosen = parser.parse_args()
    if not program("storescu"):
        sys.exit("regis bench store: storescu is not installed (Debian: dcmtk).")
    wanted = [name.strip() for name in chosen.only.split(";")] if chosen.only else list(TARGETS)
    if unknown := set(wanted) - set(TARGETS):
        sys.exit(f"regis bench store: there is no {', '.join(sorted(unknown))}; there are {'; '.join(TARGETS)}.")
    names = []
    for name in wanted:
        if why := _available()[name]:
            print(f"{name} is left out: {why}.")
        else:
            names.append(name)
    chosen.dir.mkdir(parents=True, exist_ok=True)
    count = chosen.count or (5_000 if chosen.small else 600)
    with tempfile.TemporaryDirectory(prefix="store-", dir=chosen.dir) as folder:
        asyncio.run(run(count, 224 if chosen.small else 512, chosen.runs, names, chosen.sender, Path(folder)))


if __name__ == "__main__":
    main()

"""Mirroring a gigabyte of CT from a clinic to the archive over a bad line, beside Orthanc peers and DCMTK.

A clinic stands at one end of a line of 100 Mbit/s, 80 ms and 1 % loss, the archive (and for Regis the centre) at the
other. Measured are the time from the start of the sender to the last instance that is proved (Regis: receipted) or
counted (the peers) at the archive, and every byte put on the line both ways, headers and retransmissions included.
What takes longer than `--limit` is stopped there and its rate is taken from what had arrived; the table says so.
All run one after the other, in `--runs` rounds; each figure is the median of its rounds. Needs Linux and root.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from deploy.health import listens
from deploy.processes import as_child, free_port
from deploy.simulator.phantoms import head_ct
from standards.uids import new_uid
from tests.bench._line import CONGESTION, HOME, Counts, Line, Shape, line, why_not
from tests.bench._peers import NODELAY, ROOT, program, running
from tests.bench._servers import reachable_region, servers
from tests.bench._usage import cpu_seconds, load, memory_mb

SERIES: Final = 100
LOOK_SECONDS: Final = 0.1
REGIS_LIMIT_SECONDS: Final = 900.0
AS_MUCH_FASTER: Final = 2.0
AS_FEW_BYTES: Final = 0.45


@dataclass
class Outcome:
    """One run of one target.

    ``seconds`` and ``wire`` are of ``arrived`` of ``count`` instances; ``cost`` is processor seconds by process.
    """

    seconds: float
    arrived: int
    count: int
    wire: Counts
    cost: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)

    @property
    def whole_seconds(self) -> float:
        """For all of them, at the rate that was seen."""
        return self.seconds * self.count / self.arrived if self.arrived else float("inf")

    @property
    def whole_bytes(self) -> float:
        """For all of them, at the cost that was seen."""
        return self.wire.bytes * self.count / self.arrived if self.arrived else float("inf")


@dataclass
class Track:
    """What every target runs on."""

    line: Line
    images: Path
    count: int
    folder: Path
    limit: float


def make_slices(folder: Path, count: int) -> None:
    """``count`` axial slices of head phantoms with a scanner's noise, 512x512, 12 of 16 bits (0.53 MB), in studies of
    five series of 100. Without loss they shrink as much as clinical CT does (JPEG-LS: to 0.36)."""
    noise = np.random.default_rng(7)
    phantoms = [slice_.astype(np.float32) for slice_ in head_ct(25)]
    study = series = ""
    for number in range(count):
        if number % (5 * SERIES) == 0:
            study = new_uid()
        if number % SERIES == 0:
            series = new_uid()
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        image = Dataset()
        image.file_meta = meta
        image.SOPClassUID = CTImageStorage
        image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = UID(new_uid())
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series
        image.PatientName, image.PatientID, image.PatientBirthDate = "Mirror^Bench", "MIRROR", "19700101"
        image.PatientSex, image.StudyDate, image.StudyTime = "O", "20260101", "120000"
        image.AccessionNumber, image.Modality, image.StudyID = "MIRROR", "CT", "1"
        image.SeriesNumber, image.InstanceNumber = number // SERIES % 5 + 1, number % SERIES + 1
        image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, number % SERIES], [1, 0, 0, 0, 1, 0]
        image.PixelSpacing, image.SliceThickness = [0.5, 0.5], 1
        image.Rows = image.Columns = 512
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.RescaleIntercept, image.RescaleSlope = -1024, 1
        # The phantom has noise of 9 HU; as much again in quadrature makes every slice another one.
        pixels = phantoms[number % len(phantoms)] + noise.normal(1024, 3, (512, 512)).astype(np.float32)
        image.PixelData = pixels.clip(0, 4095).astype("<u2").tobytes()
        image.save_as(folder / f"{number:06d}.dcm", enforce_file_format=True)


def watch(track: Track, arrived: Callable[[], int], limit: float, pids: dict[str, int]) -> Outcome:
    """Follow a run that has just been started until all have arrived or its time is over."""
    before, begun = track.line.counts(), time.perf_counter()
    cost_before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    memory = dict.fromkeys(pids, 0.0)
    looked = 0.0
    while True:
        there, seconds = arrived(), time.perf_counter() - begun
        if there >= track.count or seconds > limit:
            break
        if seconds - looked > 2:
            looked = seconds
            memory = {name: max(most, memory_mb(pids[name])) for name, most in memory.items()}
        time.sleep(LOOK_SECONDS)
    cost = {name: cpu_seconds(pid) - cost_before[name] for name, pid in pids.items()}
    return Outcome(seconds, there, track.count, track.line.counts().since(before), cost, memory)


def regis(track: Track) -> Outcome:
    """A clinic's node, the archive's node and the centre, as shipped; what counts is the clinic's ledger."""
    with servers(track.folder), reachable_region(track.folder / "region", HOME) as region:
        archive = region.add_node("archive", "archive", http_host="0.0.0.0")
        archive.environment["REGIS_NODE_FEDERATION_URL"] = f"https://{HOME}:{archive.https_port}"
        clinic = region.add_node("clinic", "clinic")
        clinic.gateway.before = track.line.at_far_end()
        codes = region.prepare(("centre", "archive", "archive"), ("a", "clinic", "clinic"))
        region.start_centre()
        region.join(archive, codes["archive"])
        joined = clinic.manage("join", f"https://{HOME}:{region.centre_port}", codes["clinic"])
        if joined.returncode:
            raise RuntimeError(joined.stderr)
        region.start_pacs(archive)
        archive.gateway.start()
        region.take_in(clinic, track.images)
        parts = {"sender": clinic.gateway, "receiver": archive.pacs, "its gateway": archive.gateway}
        parts["centre"] = region.centre
        clinic.gateway.start()
        pids = {name: part.process.pid for name, part in parts.items() if part.process is not None}
        outcome = watch(track, clinic.receipted, REGIS_LIMIT_SECONDS, {**pids, "line": track.line.pid})
        if outcome.arrived == track.count and archive.held() != clinic.held():
            raise RuntimeError("the archive does not hold what the clinic's ledger says")
        if outcome.arrived < track.count:
            print(region.last_words(), file=sys.stderr)
    return outcome


@contextlib.contextmanager
def _orthanc(track: Track, name: str, port: int, at_far_end: bool, **settings: Any) -> Iterator[int]:
    folder = track.folder / name
    folder.mkdir()
    configuration = {
        "Name": name,
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "Plugins": [],
        "DicomServerEnabled": False,
        "HttpPort": port,
        "RemoteAccessAllowed": True,
        "AuthenticationEnabled": False,
        "SyncStorageArea": True,
        "StoreMD5ForAttachments": False,
        "ConcurrentJobs": 4,
        "TcpNoDelay": True,
        **settings,
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    command = [program("Orthanc"), str(folder / "orthanc.json")]

    def is_ready() -> bool:
        with track.line.far_end() if at_far_end else contextlib.nullcontext():
            return listens(port)()

    whole = track.line.at_far_end(*command) if at_far_end else command
    with running(whole, folder / "log", {}, is_ready) as pid:
        yield pid


def _ask(port: int, path: str, body: bytes | None = None) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data=body) as answer:
        return json.load(answer)


def orthanc(track: Track, jobs: int = 1) -> Outcome:
    """Orthanc to Orthanc by ``/peers/archive/store`` over HTTP, in so many jobs at once."""
    at_archive, at_clinic = free_port(), free_port()
    peers = {"archive": {"Url": f"http://{HOME}:{at_archive}/"}}
    with (
        _orthanc(track, "archive", at_archive, False) as receiver,
        _orthanc(track, "clinic", at_clinic, True, OrthancPeers=peers, SyncStorageArea=False) as sender,
    ):
        with track.line.far_end():
            held = [_ask(at_clinic, "/instances", file.read_bytes())["ID"] for file in sorted(track.images.iterdir())]
            for first in range(jobs):
                order = {"Resources": held[first::jobs], "Synchronous": False}
                _ask(at_clinic, "/peers/archive/store", json.dumps(order).encode())
        pids = {"sender": sender, "receiver": receiver, "line": track.line.pid}
        return watch(track, lambda: int(_ask(at_archive, "/statistics")["CountInstances"]), track.limit, pids)


def dcmtk(track: Track, associations: int = 1) -> Outcome:
    """storescu to storescp, which writes files and never syncs."""
    port, files = free_port(), track.folder / "files"
    files.mkdir()
    serve = [program("storescp"), "--fork", "--output-directory", str(files), str(port)]
    images = sorted(str(path) for path in track.images.iterdir())
    least = Path(images[0]).stat().st_size - 1000

    def arrived() -> int:
        return sum(path.stat().st_size > least for path in files.iterdir())

    with running(serve, track.folder / "log", NODELAY, listens(port)) as receiver:
        senders = [
            subprocess.Popen(
                track.line.at_far_end(program("storescu"), HOME, str(port), *images[first::associations]),
                env=NODELAY,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                preexec_fn=as_child(os.getpid()),
            )
            for first in range(associations)
        ]
        try:
            pids = {f"sender {number}": one.pid for number, one in enumerate(senders, 1)}
            return watch(track, arrived, track.limit, {**pids, "receiver": receiver, "line": track.line.pid})
        finally:
            for sender in senders:
                sender.kill()
                sender.wait()


TARGETS: Final[dict[str, Callable[[Track], Outcome]]] = {
    "Regis": regis,
    "Orthanc peers": orthanc,
    "Orthanc peers, 4 jobs": lambda track: orthanc(track, 4),
    "storescu": dcmtk,
    "storescu, 4 associations": lambda track: dcmtk(track, 4),
}
NEEDED: Final = {"Orthanc": "Orthanc", "storescu": "storescp"}


def run(names: list[str], count: int, runs: int, limit: float, shape: Shape, congestion: str, scratch: Path) -> None:
    """Measure and print."""
    images = scratch / "images"
    images.mkdir()
    make_slices(images, count)
    total = sum(path.stat().st_size for path in images.iterdir())
    found: dict[str, list[Outcome]] = {}
    with line(shape, congestion) as made:
        print(f"{count} CT instances, {total / 1e9:.2f} GB, over {shape}; TCP {CONGESTION.read_text().strip()}")
        print(f"{load()}\n", flush=True)
        for number in range(runs):
            for name in names:
                folder = Path(tempfile.mkdtemp(dir=scratch))
                folder.chmod(0o755)
                outcome = TARGETS[name](Track(made, images, count, folder, limit))
                found.setdefault(name, []).append(outcome)
                print(f"  run {number + 1}: {name}: {describe(outcome, total)}", flush=True)
    show(found, total)


def describe(outcome: Outcome, total: int) -> str:
    """One run in a line."""
    stopped = "" if outcome.arrived == outcome.count else f" (stopped: {outcome.arrived} of {outcome.count})"
    wire = outcome.wire
    cost = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in outcome.cost.items())
    memory = ", ".join(f"{name} {megabytes:.0f} MB" for name, megabytes in outcome.memory.items() if megabytes)
    return (
        f"{outcome.seconds:.1f} s{stopped}, {wire.bytes / 1e6:.0f} MB on the line of which back "
        f"{wire.home_bytes / 1e6:.0f}, {wire.lost} packets lost and {wire.overflowed} overflowed;\n"
        f"      processor: {cost};\n      memory: {memory or 'not taken'}"
    )


def show(found: dict[str, list[Outcome]], total: int) -> None:
    """The table, and whether the goals are met."""
    seconds = {name: statistics.median(one.whole_seconds for one in runs) for name, runs in found.items()}
    octets = {name: statistics.median(one.whole_bytes for one in runs) for name, runs in found.items()}
    peers = [name for name in found if name != "Regis"]
    print(f"\n{'':<28}{'time':>12}{'images':>14}{'on the line':>16}{'of the images':>16}")
    for name, runs in found.items():
        guess = "" if all(one.arrived == one.count for one in runs) else "*"
        print(
            f"{name:<28}{seconds[name]:>10.0f} s{total / seconds[name] / 1e6:>9.2f} MB/s"
            f"{octets[name] / 1e6:>13.0f} MB{octets[name] / total:>15.2f}x{guess}"
        )
    if any(one.arrived < one.count for runs in found.values() for one in runs):
        print("* stopped before the end; time and bytes of the whole are reckoned from what had arrived.")
    if "Regis" in found and peers:
        quickest, fewest = min(peers, key=lambda name: seconds[name]), min(peers, key=lambda name: octets[name])
        faster, share = seconds[quickest] / seconds["Regis"], octets["Regis"] / octets[fewest]
        print(f"\nRegis is {faster:.2f} times as fast as {quickest} (goal: {AS_MUCH_FASTER:g})", end=", ")
        print(f"and puts {share:.2f} of the bytes of {fewest} on the line (goal: at most {AS_FEW_BYTES:g}).")


def main() -> None:
    """Parse, measure, clean up."""
    parser = argparse.ArgumentParser(prog="regis bench mirror", description=__doc__)
    parser.add_argument("--count", type=int, default=1900, help="instances of 0.53 MB; 1,900 are a gigabyte")
    parser.add_argument("--runs", type=int, default=1, help="rounds")
    parser.add_argument("--limit", type=float, default=60, help="seconds after which a peer is stopped")
    parser.add_argument("--only", default="", help="names of the table, parted by semicolons")
    parser.add_argument("--mbit", type=float, default=100, help="rate of the line")
    parser.add_argument("--rtt", type=float, default=80, help="its round trip in milliseconds")
    parser.add_argument("--loss", type=float, default=1, help="packets lost each way, in percent")
    parser.add_argument("--congestion", default="", help="TCP congestion control of both ends (the machine's)")
    parser.add_argument("--dir", type=Path, default=ROOT / "var" / "bench", help="a folder on the disk to measure")
    chosen = parser.parse_args()
    if why := why_not():
        sys.exit(f"regis bench mirror: {why}.")
    wanted = [name.strip() for name in chosen.only.split(";")] if chosen.only else list(TARGETS)
    if unknown := set(wanted) - set(TARGETS):
        sys.exit(f"regis bench mirror: there is no {', '.join(sorted(unknown))}; there are {'; '.join(TARGETS)}.")
    for peer, needed in NEEDED.items():
        if not program(needed) and any(name.startswith(peer) for name in wanted):
            print(f"{peer} is left out: {needed} is not installed.")
            wanted = [name for name in wanted if not name.startswith(peer)]
    chosen.dir.mkdir(parents=True, exist_ok=True)
    shape = Shape(chosen.mbit * 1e6, chosen.rtt / 2000, chosen.loss / 100)
    with tempfile.TemporaryDirectory(prefix="mirror-", dir=chosen.dir) as folder:
        run(wanted, chosen.count, chosen.runs, chosen.limit, shape, chosen.congestion, Path(folder))


if __name__ == "__main__":
    main()

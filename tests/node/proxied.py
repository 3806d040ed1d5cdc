"""A proxy between real devices and a real old PACS, without a node around it: its two processes and their files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.dataset import FileDataset
from pydicom.filereader import dcmread

from deploy.processes import as_child, free_port, port_is_free, wait_until
from gateway.proxy import journal
from gateway.proxy.settings import ProxySettings
from tests.node.conftest import ROOT, need

START = """
import json, sys
from pathlib import Path
from gateway.proxy.settings import ProxySettings
from gateway.proxy.supervisor import Supervisor
from pacs_node.logs import configure_logs
configure_logs()
Supervisor(ProxySettings.from_json(sys.argv[1]), json.loads(sys.argv[2])).run()
"""
WORKER = [sys.executable, "-P", "-m", "pacs_node.proxy_worker"]
COPY_ALL = '[[rule]]\nname = "All to the node"\ncopy = "node"\n'


@dataclass
class Proxy:
    """A proxy in front of ``pacs_port``."""

    folder: Path
    pacs_port: int
    rules: str = COPY_ALL
    port: int = field(default_factory=free_port)
    back_port: int = field(default_factory=free_port)
    worker: list[str] = field(default_factory=lambda: list(WORKER))
    settings: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def state_folder(self) -> Path:
        return self.folder / "proxy"

    @property
    def rules_path(self) -> Path:
        return self.folder / "rules.toml"

    @property
    def log(self) -> Path:
        return self.folder / "proxy.log"

    def start(self) -> None:
        """Start both processes and wait until the worker serves."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.rules_path.exists():
            self.rules_path.write_text(self.rules, encoding="utf-8")
        told = ProxySettings(
            folder=self.state_folder,
            host="127.0.0.1",
            port=self.port,
            back_port=self.back_port,
            pacs_host="127.0.0.1",
            pacs_port=self.pacs_port,
            rules=self.rules_path,
            ae_title="REGIS",
            secret="a secret of the tests",
            **{"least_free_bytes": 0, **self.settings},
        )
        before = self.log.read_bytes().count(b"proxy-ready") if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, told.to_json(), json.dumps(self.worker)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=as_child(os.getpid()),
            )
        wait_until(lambda: self.log.read_bytes().count(b"proxy-ready") > before, 60, "the proxy listens")
        if self.worker == WORKER:
            self.wait_for_worker()

    def wait_for_worker(self, times: int = 1) -> None:
        """Wait until so many workers were heard of, one after the other: only then nothing passes without them."""
        wait_until(lambda: self.log.read_bytes().count(b"proxy-worker-serves") >= times, 120, "the worker serves")

    def worker_pids(self) -> list[int]:
        """Of all workers there ever were."""
        lines = [line for line in self.log.read_text().splitlines() if "proxy-worker-ready" in line]
        return [int(json.loads(line)["pid"]) for line in lines]

    def kill_worker(self) -> None:
        """SIGKILL, as the kernel would when memory is short."""
        os.kill(self.worker_pids()[-1], signal.SIGKILL)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(40)
            self.process.kill()

    def events(self, kind: str = "events") -> list[dict[str, Any]]:
        """The lines of a journal."""
        return list(journal.lines(self.state_folder, kind))

    def missing(self) -> set[str]:
        """The UIDs that passed and were not tapped."""
        return {line["sop_instance_uid"] for line in self.events("missing") if line.get("sop_instance_uid")}

    def counts(self) -> dict[str, int]:
        found: dict[str, int] = journal.read_state(self.state_folder).get("counts", {})
        return found

    def charsets(self) -> list[dict[str, Any]]:
        """Which sources were found to declare what they do not write."""
        found: list[dict[str, Any]] = journal.read_state(self.state_folder).get("charsets", [])
        return found

    def waiting(self, destination: str = "node") -> list[Path]:
        """What waits for a destination."""
        return sorted((self.state_folder / "spool" / "to" / destination).glob("*.dcm"))


@dataclass
class Orthanc:
    """Debian's Orthanc as the old PACS. ``modalities``: title → where the device listens, where Orthanc calls it."""

    folder: Path
    modalities: dict[str, tuple[int, int]] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    web: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
        program = shutil.which("Orthanc", path=path) or need("Orthanc")
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = {
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "Plugins": [],
            "DicomAet": "OLDPACS",
            "DicomPort": self.port,
            "DicomModalities": {
                title: {"AET": title, "Host": "127.0.0.1", "Port": port, "AllowStorageCommitment": True}
                for title, (_, port) in self.modalities.items()
            },
            "DicomAlwaysAllowFind": True,
            "DicomAlwaysAllowGet": True,
            "DicomAlwaysAllowMove": True,
            "HttpPort": self.web,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "OverwriteInstances": True,
        }
        (self.folder / "orthanc.json").write_text(json.dumps(configuration))
        with (self.folder / "orthanc.log").open("ab") as log:
            self.process = subprocess.Popen(
                [program, str(self.folder / "orthanc.json")],
                stdout=log,
                stderr=log,
                env={**os.environ, "TCP_NODELAY": "1"},
                preexec_fn=as_child(os.getpid()),
            )
        wait_until(lambda: not port_is_free(self.port) and not port_is_free(self.web), 90, "Orthanc listens")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)
            self.process = None

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.web}{path}") as answer:
            return json.load(answer)

    def files(self) -> dict[str, bytes]:
        """SOP Instance UID → the stored file."""
        found = {}
        for key in self.get("/instances"):
            uid = self.get(f"/instances/{key}")["MainDicomTags"]["SOPInstanceUID"]
            with urllib.request.urlopen(f"http://127.0.0.1:{self.web}/instances/{key}/file") as answer:
                found[uid] = answer.read()
        return found

    def delete_all(self) -> None:
        for key in self.get("/instances"):
            request = urllib.request.Request(f"http://127.0.0.1:{self.web}/instances/{key}", method="DELETE")
            urllib.request.urlopen(request).close()


@dataclass
class Store:
    """DCMTK's storescp, which takes nothing compressed unless it is told to."""

    folder: Path
    options: tuple[str, ...] = ()

    def start(self) -> None:
        self.port = free_port()
        self.folder.mkdir()
        program = shutil.which("storescp") or need("storescp")
        self.process = subprocess.Popen(
            [program, "-od", str(self.folder), "-aet", "STORE", *self.options, str(self.port)],
            env={**os.environ, "TCP_NODELAY": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=as_child(os.getpid()),
        )
        wait_until(lambda: not port_is_free(self.port), 60, "storescp listens")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)

    def named(self, name: str) -> str:
        """It as a destination of the rules."""
        return f'[destinations.{name}]\nae_title = "STORE"\nhost = "127.0.0.1"\nport = {self.port}\n'

    def received(self) -> list[FileDataset]:
        return [dcmread(path) for path in sorted(self.folder.iterdir())]


def dcmtk(
    tool: str, port: int, *arguments: object, calling: str = "CT1", called: str = "OLDPACS"
) -> subprocess.CompletedProcess[str]:
    """Run a DCMTK client against a port."""
    program = shutil.which(tool) or need(tool)
    return subprocess.run(
        [program, "-aet", calling, "-aec", called, "127.0.0.1", str(port), *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        errors="backslashreplace",
        timeout=180,
        env={**os.environ, "TCP_NODELAY": "1"},
    )


def background(work: Iterable[Any]) -> threading.Thread:
    """Exhaust an iterable in a thread."""
    thread = threading.Thread(target=lambda: list(work), daemon=True)
    thread.start()
    return thread

"""Starting what the store and move benchmarks compare: Regis, Orthanc, DCMTK's storescp; on SQLite or PostgreSQL."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from deploy.health import listens
from deploy.postgres import SUPERUSER, answers, initialise, superuser_url
from deploy.processes import as_child, free_port, wait_until
from deploy.procfile import read
from deploy.supervisor import Part, Supervisor, base_environment

ROOT: Final = Path(__file__).parents[2]
SENDER: Final = "BENCH"
NODELAY: Final = {**os.environ, "TCP_NODELAY": "1"}
POSTGRESQL_PLUGIN: Final = Path("/usr/share/orthanc/plugins/libOrthancPostgreSQLIndex.so")
TUNED: Final = {
    "StoreMD5ForAttachments": False,
    "MaximumPduLength": 131_072,
    "ConcurrentJobs": 4,
    "DicomThreadsCount": 4,
}
"""What its manual and users suggest for bulk: no MD5, long PDUs, a thread an association."""


@dataclass(frozen=True)
class Server:
    """A running receiver: where it listens, how many instances it holds, and the process that does the work."""

    port: int
    title: str
    count: Callable[[], int]
    pid: int = 0


def program(name: str) -> str:
    """The path of an installed program, "" if it is not installed."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin") or ""


@contextmanager
def running(command: list[str], log: Path, environment: dict[str, str], ready: Callable[[], bool]) -> Iterator[int]:
    """A program until the block ends, its output in ``log``; gives its process id when it is ``ready``."""
    with log.open("wb") as output:
        started = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=as_child(os.getpid()),
        )
    try:
        wait_until(ready, 300, f"{command[0]} answers")
        yield started.pid
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait(60)
        with suppress(ProcessLookupError):  # what it forked, storescp for one
            os.killpg(started.pid, signal.SIGKILL)


@asynccontextmanager
async def process(command: list[str], folder: Path, port: int) -> AsyncIterator[int]:
    """A program that listens on ``port``, its output in ``folder``; gives its process id, ends it at the end."""
    with (folder / "log").open("wb") as log:
        started = subprocess.Popen(
            command, env=NODELAY, stdout=log, stderr=log, start_new_session=True, preexec_fn=as_child(os.getpid())
        )
    try:
        await asyncio.to_thread(wait_until, listens(port), 30, f"{command[0]} listens")
        yield started.pid
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait(30)


@asynccontextmanager
async def postgres(folder: Path) -> AsyncIterator[tuple[int, str, str]]:
    """A PostgreSQL of its own with its defaults, durable: port, password and the URL of an empty database."""
    port, directory = free_port(), folder / "postgres"
    directory.mkdir()
    initialise(directory)
    code = f"from pathlib import Path; from deploy.postgres import *; become_server(Path({str(directory)!r}), {port})"
    async with process([sys.executable, "-c", code], directory, port):
        await asyncio.to_thread(wait_until, lambda: answers(superuser_url(directory, port)), 30, "PostgreSQL answers")
        with psycopg.connect(superuser_url(directory, port), autocommit=True) as connection:
            connection.execute("CREATE DATABASE bench")
        yield port, (directory / "password").read_text(encoding="utf-8"), superuser_url(directory, port, "bench")


@asynccontextmanager
async def regis(folder: Path, database_url: str = "") -> AsyncIterator[Server]:
    """A node as shipped."""
    port, web = free_port(), free_port()
    environment = {
        "REGIS_NODE_DATA_DIR": str(folder),
        "REGIS_NODE_DATABASE_URL": database_url,
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
        yield Server(port, "REGIS", lambda: instance_files(folder), supervisor.pids["node-pacs"])
    finally:
        await supervisor.stop()


@asynccontextmanager
async def regis_on_postgresql(folder: Path) -> AsyncIterator[Server]:
    """A node whose index is PostgreSQL."""
    async with postgres(folder) as (_, _, url), regis(folder, url) as server:
        yield server


@asynccontextmanager
async def orthanc(folder: Path, **settings: Any) -> AsyncIterator[Server]:
    """Debian's Orthanc with its defaults but for ``settings``, every store synced to disk."""
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
        **settings,
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))

    def count() -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{web}/statistics") as answer:
            return int(json.load(answer)["CountInstances"])

    async with process([program("Orthanc"), str(folder / "orthanc.json")], folder, port) as pid:
        yield Server(port, "ORTHANC", count, pid)


@asynccontextmanager
async def tuned_orthanc(folder: Path) -> AsyncIterator[Server]:
    """Orthanc set up for bulk, still synced."""
    async with orthanc(folder, **TUNED) as server:
        yield server


@asynccontextmanager
async def orthanc_on_postgresql(folder: Path) -> AsyncIterator[Server]:
    """Orthanc whose index is PostgreSQL, by its plugin; files stay files."""
    async with postgres(folder) as (port, password, _):
        index = {
            "EnableIndex": True,
            "EnableStorage": False,
            "Host": "127.0.0.1",
            "Port": port,
            "Database": "bench",
            "Username": SUPERUSER,
            "Password": password,
        }
        async with orthanc(folder, Plugins=[str(POSTGRESQL_PLUGIN)], PostgreSQL=index) as server:
            yield server


@asynccontextmanager
async def storescp(folder: Path) -> AsyncIterator[Server]:
    """DCMTK's receiver, which writes files and never syncs."""
    port = free_port()
    (folder / "files").mkdir()
    command = [program("storescp"), "--fork", "--output-directory", str(folder / "files"), str(port)]
    async with process(command, folder, port) as pid:
        yield Server(port, "STORESCP", lambda: instance_files(folder / "files"), pid)


def instance_files(folder: Path) -> int:
    """How many Part 10 files lie below the folder."""
    found = 0
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 50_000:
            with path.open("rb") as file:
                found += file.read(132).endswith(b"DICM")
    return found


def peak_memory_mb(pid: int) -> float:
    """The most resident memory a process ever had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1000
    return 0.0

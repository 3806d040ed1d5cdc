"""The pytest plugin that gives a run its own PostgreSQL and Redis-compatible server, and its Django project.

`pytest tests/central` runs under ris_central.settings, `pytest tests/node` under pacs_node.settings, everything else
without Django; two Django projects cannot share one process. The servers start once a run, in the process that
starts the workers, on free ports of 127.0.0.1, and end with it however it ends.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from deploy import postgres, valkey
from deploy.processes import as_child, free_port, take_ports_from, wait_until

ROOT = Path(__file__).parent.parent
SETTINGS = {"central": "ris_central.settings", "node": "pacs_node.settings"}
WITH_SERVERS = {"central", "contract", "e2e"}


class Servers:
    """PostgreSQL and valkey of one test run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.postgres_port = free_port()
        self.valkey_port = free_port()
        self._processes: list[tuple[subprocess.Popen[bytes], int]] = []

    def start(self) -> None:
        """Start both and wait until they answer."""
        self.directory.chmod(0o755)
        self._spawn("postgres", self.postgres_port, signal.SIGINT)
        self._spawn("valkey", self.valkey_port, signal.SIGTERM)
        wait_until(lambda: self._answer(), 240, "the test servers answer")

    def _spawn(self, name: str, port: int, stop_signal: int) -> None:
        arguments = ["--directory", str(self.directory / name), "--port", str(port), "--no-fsync"]
        with (self.directory / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "deploy", "service", name, *arguments],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=as_child(os.getpid()),
            )
        self._processes.append((process, stop_signal))

    def _answer(self) -> bool:
        for process, _ in self._processes:
            if process.poll() is not None:
                logs = "\n".join(path.read_text(errors="replace") for path in self.directory.glob("*.log"))
                raise RuntimeError(f"a test server ended at once:\n{logs}")
        ready = all((self.directory / name / "password").exists() for name in ("postgres", "valkey"))
        return ready and postgres.answers(self.postgres_url) and valkey.answers(self.valkey_url)

    @property
    def postgres_url(self) -> str:
        """The superuser's URL of the database `postgres`."""
        return postgres.superuser_url(self.directory / "postgres", self.postgres_port)

    @property
    def valkey_url(self) -> str:
        """The URL of database 0."""
        return valkey.url(self.directory / "valkey", self.valkey_port)

    def stop(self) -> None:
        """Stop both and remove their data."""
        for process, stop_signal in self._processes:
            process.send_signal(stop_signal)
        for process, _ in self._processes:
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)  # what a killed one still writes fails no test


_servers: Servers | None = None
_scratch: Path | None = None


def groups_of(arguments: Sequence[str]) -> set[str]:
    """Which folders of tests/ the path arguments name."""
    found = set()
    for argument in arguments:
        path = Path(argument.split("::")[0])
        if argument.startswith("-") or not path.exists():
            continue
        try:
            parts = path.resolve().relative_to(ROOT / "tests").parts
        except ValueError:
            continue
        found.add(parts[0] if parts else "")
    return found


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config, parser: Any, args: list[str]) -> Iterator[None]:
    """Choose the Django project and start the servers, before pytest-django reads the settings."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None:
        _prepare_run(groups_of(args))
    _prepare_process(worker)
    return (yield)


def _prepare_run(groups: set[str]) -> None:
    global _servers, _scratch
    projects = {SETTINGS[group] for group in groups if group in SETTINGS}
    if len(projects) > 1:
        raise pytest.UsageError("tests/central and tests/node need a process each: use ./regis test, or name one.")
    if projects:
        os.environ["DJANGO_SETTINGS_MODULE"] = projects.pop()
    node_on_postgres = "node" in groups and os.environ.get("REGIS_TEST_NODE_DATABASE") == "postgresql"
    if groups & WITH_SERVERS or node_on_postgres:
        _servers = Servers(Path(tempfile.mkdtemp(prefix="regis-test-servers-")))
        _servers.start()
        os.environ["REGIS_TEST_POSTGRES_URL"] = _servers.postgres_url
        os.environ["REGIS_TEST_VALKEY_URL"] = _servers.valkey_url
        os.environ["REGIS_CENTRE_DATABASE_URL"] = _servers.postgres_url
        if node_on_postgres:
            os.environ["REGIS_NODE_DATABASE_URL"] = _servers.postgres_url
    _scratch = Path(tempfile.mkdtemp(prefix="regis-test-"))
    os.environ["REGIS_TEST_SCRATCH"] = str(_scratch)


def _prepare_process(worker: str | None) -> None:
    """Give each process of the run its own data folders, its own ports and its own valkey database."""
    scratch = Path(os.environ["REGIS_TEST_SCRATCH"], worker or "main")
    scratch.mkdir(exist_ok=True)
    os.environ["REGIS_CENTRE_DATA_DIR"] = str(scratch / "centre")
    os.environ["REGIS_NODE_DATA_DIR"] = str(scratch / "node")
    if worker:
        take_ports_from(int(worker.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    if url := os.environ.get("REGIS_TEST_VALKEY_URL"):
        number = int(worker.removeprefix("gw")) % 15 + 1 if worker else 0
        os.environ["REGIS_CENTRE_REDIS_URL"] = f"{url.rpartition('/')[0]}/{number}"


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop what this run started."""
    global _servers, _scratch
    if _servers is not None:
        _servers.stop()
        _servers = None
    if _scratch is not None:
        shutil.rmtree(_scratch, ignore_errors=True)
        _scratch = None

"""A node as its neighbours meet it: two processes' worth of real sockets, started and stopped by the test."""

import json
import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.utils import translation
from psycopg import sql

from deploy.processes import as_child, free_port, wait_until
from pacs_node.clinic.models import ApplicationEntity

ROOT = Path(__file__).parent.parent.parent
AE_TITLE = "TESTNODE"


@pytest.fixture(autouse=True)
def _language_of_nobody() -> None:
    """The language of the last request stays with its thread."""
    translation.deactivate()


@dataclass
class NodeProcess:
    """A node in its own process and data folder; database by the environment (SQLite unless told otherwise)."""

    data_dir: Path
    dicom_port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)
    settings: dict[str, str] = field(default_factory=dict)
    database_url: str = ""
    process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What the process is told."""
        plain = {name: value for name, value in os.environ.items() if not name.startswith("REGIS_")}
        return {
            **plain,
            "PYTHONPATH": str(ROOT),
            "DJANGO_SETTINGS_MODULE": "pacs_node.settings",
            "REGIS_NODE_DATA_DIR": str(self.data_dir),
            "REGIS_NODE_AE_TITLE": AE_TITLE,
            "REGIS_NODE_DICOM_PORT": str(self.dicom_port),
            "REGIS_NODE_HTTP_PORT": str(self.http_port),
            "REGIS_NODE_DATABASE_URL": self.database_url,
            "REGIS_NODE_REFUSE_BELOW": "1MB",
            **self.settings,
        }

    @property
    def log(self) -> Path:
        """What the process wrote."""
        return self.data_dir / "node.log"

    @property
    def storage(self) -> Path:
        """Where instances lie."""
        return self.data_dir / "storage"

    def command(
        self, *arguments: str, check: bool = True, prefix: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run a management command of this node, ``prefix`` before it."""
        return subprocess.run(
            [*prefix, sys.executable, "-m", "django", *arguments],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=check,
            timeout=240,
        )

    def python(self, code: str) -> str:
        """Run ``code`` inside Django of this node; what it prints."""
        done = subprocess.run(
            [sys.executable, "-c", f"import django; django.setup()\n{code}"],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def sql(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        """Rows of the node's database, read from outside; ``?`` marks values."""
        if self.database_url:
            with psycopg.connect(self.database_url) as postgres:
                return postgres.execute(query.replace("?", "%s"), values).fetchall()
        connection = sqlite3.connect(self.data_dir / "node.sqlite3", timeout=30)
        try:
            return connection.execute(query, values).fetchall()
        finally:
            connection.close()

    def held(self, study_instance_uid: str) -> list[tuple[str, str, bool]]:
        """(SOP Instance UID, path, is a variant) of what the index holds of a study."""
        rows = self.sql(
            "SELECT i.sop_instance_uid, i.path, i.is_variant FROM study_index_instance i"
            " JOIN study_index_series s ON s.id = i.series_id JOIN study_index_study t ON t.id = s.study_id"
            " WHERE t.study_instance_uid = ? ORDER BY i.id",
            study_instance_uid,
        )
        return [(uid, path, bool(variant)) for uid, path, variant in rows]

    def files(self, study_instance_uid: str) -> list[Path]:
        """The stored files of a study."""
        return sorted(self.storage.glob(f"studies/??/{study_instance_uid}/**/*.dcm"))

    def admit(self, ae_title: str, **columns: Any) -> None:
        """Put an application entity into the registry, straight into its table: a process for it takes seconds."""
        entity = ApplicationEntity(ae_title=ae_title, **columns)
        known = self.sql("SELECT id FROM clinic_applicationentity WHERE ae_title = ?", ae_title)
        fields = [one for one in ApplicationEntity._meta.concrete_fields if not one.primary_key]
        if known:
            fields = [one for one in fields if one.name in columns]
        values = [
            json.dumps(value) if isinstance(value := getattr(entity, one.name), list) else value for one in fields
        ]
        names = [str(one.column) for one in fields]
        if not known:
            marks = ", ".join("?" for _ in names)
            self._execute(f"INSERT INTO clinic_applicationentity ({', '.join(names)}) VALUES ({marks})", *values)
        elif names:
            changes = ", ".join(f"{name} = ?" for name in names)
            self._execute(f"UPDATE clinic_applicationentity SET {changes} WHERE ae_title = ?", *values, ae_title)

    def _execute(self, statement: str, *values: object) -> None:
        if self.database_url:
            with psycopg.connect(self.database_url) as postgres:
                postgres.execute(statement.replace("?", "%s"), values)
            return
        with closing(sqlite3.connect(self.data_dir / "node.sqlite3", timeout=30)) as connection, connection:
            connection.execute(statement, values)

    def start(self, *prefix: str) -> None:
        """Start it and wait until both ports answer."""
        started = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "django", "run", "pacs"],
                env=self.environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=as_child(os.getpid()),
            )
        wait_until(lambda: self._ready(started), 120, "the node serves")

    def _ready(self, since: int) -> bool:
        text = self.log.read_bytes()
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"the node ended at once:\n{text.decode(errors='replace')[-4000:]}")
        return b"pacs-ready" in text[since:]

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(60)

    def dcmtk(self, tool: str, *arguments: str, calling: str = "MODALITY") -> subprocess.CompletedProcess[bytes]:
        """Run a DCMTK client against this node."""
        return subprocess.run(
            [tool, "-aet", calling, "-aec", AE_TITLE, "127.0.0.1", str(self.dicom_port), *arguments],
            capture_output=True,
            timeout=120,
            env={**os.environ, "TCP_NODELAY": "1"},
        )


@dataclass(frozen=True)
class EmptyDatabase:
    """A migrated database that knows MODALITY, to be copied: a SQLite file, or the name of a PostgreSQL template."""

    path: Path | None = None
    name: str = ""

    def copy_to(self, node: NodeProcess) -> None:
        """Give ``node`` a copy of its own; a PostgreSQL one goes with the server at the end of the run."""
        if self.path is not None:
            shutil.copy(self.path, node.data_dir / "node.sqlite3")
        else:
            node.database_url = _new_postgres_database(self.name)


def _new_postgres_database(template: str = "template1") -> str:
    server, name = os.environ["REGIS_TEST_POSTGRES_URL"], f"regis_test_node_{secrets.token_hex(6)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        )
    return f"{server.rpartition('/')[0]}/{name}"


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> EmptyDatabase:
    """Made once; on PostgreSQL when the environment says that nodes run on it."""
    node = NodeProcess(tmp_path_factory.mktemp("template"))
    if os.environ.get("REGIS_TEST_NODE_DATABASE") == "postgresql":
        node.database_url = _new_postgres_database()
    node.python(PREPARE)
    if node.database_url:
        return EmptyDatabase(name=node.database_url.rpartition("/")[2])
    return EmptyDatabase(path=node.data_dir / "node.sqlite3")


PREPARE = """
from django.core.management import call_command
from pacs_node.clinic.actions import admit
call_command("migrate", verbosity=0)
admit("MODALITY", actor="tests")
from django.db import connection
if connection.vendor == "sqlite":
    connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
"""


@pytest.fixture
def make_node(tmp_path: Path, empty_database: EmptyDatabase) -> Iterator[Callable[..., NodeProcess]]:
    """Make nodes of the test's own that know MODALITY; started unless told otherwise."""
    nodes: list[NodeProcess] = []

    def make(*, start: bool = True, **settings: str) -> NodeProcess:
        data_dir = tmp_path / f"node{len(nodes)}"
        data_dir.mkdir()
        node = NodeProcess(data_dir, settings=settings)
        empty_database.copy_to(node)
        nodes.append(node)
        if start:
            node.start()
        return node

    yield make
    for node in nodes:
        if node.process is not None and node.process.poll() is None:
            node.kill()


@pytest.fixture(scope="session")
def node_process(tmp_path_factory: pytest.TempPathFactory, empty_database: EmptyDatabase) -> Iterator[NodeProcess]:
    """One running node that tests share: each looks only at studies, callers and items of its own."""
    node = NodeProcess(tmp_path_factory.mktemp("node"))
    empty_database.copy_to(node)
    node.start()
    yield node
    node.kill()


def need(tool: str) -> str:
    """Skip, by name, when the peer ``tool`` is not installed."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    return tool

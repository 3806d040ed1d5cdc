"""The supervisor starts, watches and stops real processes, and leaves none behind."""

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from deploy import supervisor as supervisor_module
from deploy.processes import wait_until
from deploy.procfile import Process
from deploy.supervisor import Part, PartError, Supervisor

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Script:
    """A process that runs a Python text instead of a line of the Procfile."""

    text: str
    command: tuple[str, ...] = ("regis", "test")
    stop_signal: signal.Signals = signal.SIGTERM

    @property
    def arguments(self) -> list[str]:
        return [sys.executable, "-c", textwrap.dedent(self.text)]


def part(name: str, text: str, healthy: Callable[[], bool] = lambda: True) -> Part:
    return Part(name, cast("Process", Script(text)), {"REGIS_PART": name}, healthy)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


async def until(ready: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_until, ready, 60, "it comes to pass")


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def supervisor(tmp_path: Path, told: list[str]) -> Supervisor:
    return Supervisor(ROOT, tmp_path / "log", told.append)


async def test_a_part_gets_its_own_settings_and_none_of_the_caller_s(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGIS_NODE_NAME", "the caller's")
    text = "import os, time; print(sorted(k for k in os.environ if k.startswith('REGIS_'))); time.sleep(60)"
    await supervisor.start(part("one", text))
    await until(lambda: lines(supervisor.log_of("one")) == ["['REGIS_PART']"])
    await supervisor.stop()


async def test_a_part_that_crashes_is_started_again_and_told_about(supervisor: Supervisor, told: list[str]) -> None:
    await supervisor.start(part("one", "import time; print('here'); time.sleep(60)"))
    await until(lambda: lines(supervisor.log_of("one")) == ["here"])
    first = supervisor.pids["one"]
    os.kill(first, signal.SIGKILL)
    await until(lambda: lines(supervisor.log_of("one")) == ["here", "here"])
    assert supervisor.pids["one"] != first
    assert told[0].startswith("one ended (code -9); starting it again")
    await supervisor.stop()


async def test_parts_stop_before_the_servers_they_use(supervisor: Supervisor, tmp_path: Path) -> None:
    ends = tmp_path / "ends"
    text = f"""
        import os, signal, sys, time
        def end(*_):
            if os.environ['REGIS_PART'] == 'user':
                time.sleep(0.3)
            with open({str(ends)!r}, 'a') as file:
                print(os.environ['REGIS_PART'], file=file)
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        print('ready')
        time.sleep(60)
    """
    await supervisor.start(part("server", text))
    await supervisor.start(part("user", text))
    await until(lambda: lines(supervisor.log_of("user")) == lines(supervisor.log_of("server")) == ["ready"])
    await supervisor.stop()
    assert lines(ends) == ["user", "server"]


async def test_a_part_that_will_not_stop_is_killed_with_its_children(
    supervisor: Supervisor, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "STOP_SECONDS", 0.3)
    text = """
        import signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid)
        time.sleep(60)
    """
    await supervisor.start(part("one", text))
    await until(lambda: len(lines(supervisor.log_of("one"))) == 1)
    grandchild = int(lines(supervisor.log_of("one"))[0])
    leader = supervisor.pids["one"]
    assert alive(grandchild)
    await supervisor.stop()
    await until(lambda: not alive(grandchild) and not alive(leader))
    assert told == ["one did not stop in 0 s and is killed"]


async def test_a_part_that_ends_before_it_is_healthy_is_named_with_its_last_words(supervisor: Supervisor) -> None:
    one = part("one", "import sys; print('no database'); sys.exit(3)", healthy=lambda: False)
    await supervisor.start(one)
    with pytest.raises(PartError, match=r"^one ended with code 3: no database \(all of it in .*one\.log\)$"):
        await supervisor.wait_healthy([one], 60)
    await supervisor.stop()


async def test_a_part_that_is_never_healthy_is_given_up_in_time(supervisor: Supervisor) -> None:
    one = part("one", "import time; time.sleep(60)", healthy=lambda: False)
    await supervisor.start(one)
    with pytest.raises(PartError, match="one is not healthy in time"):
        await supervisor.wait_healthy([one], 0.3)
    await supervisor.stop()
    assert supervisor.pids == {}

"""The one list of processes. The demo starts what it says; systemd units and compose repeat it and a test compares."""

import shlex
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

PROCFILE = Path(__file__).with_name("Procfile")
INFRASTRUCTURE = {"postgres", "valkey"}
"""What production brings itself: its own PostgreSQL and Redis, by URL."""


@dataclass(frozen=True)
class Process:
    """A line of the Procfile."""

    name: str
    command: tuple[str, ...]

    @property
    def arguments(self) -> list[str]:
        """The command to execute from this checkout, by this Python."""
        program, *rest = self.command
        if program != "regis":
            raise ValueError(f"{self.name}: the Procfile runs {program!r}, and only regis is known")
        return [sys.executable, "-P", "-m", "deploy", *rest]

    @property
    def stop_signal(self) -> signal.Signals:
        """What stops it cleanly: PostgreSQL waits for its clients on SIGTERM and does not on SIGINT."""
        return signal.SIGINT if self.name == "postgres" else signal.SIGTERM


def read(path: Path = PROCFILE) -> dict[str, Process]:
    """The processes by name, in order."""
    processes = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, command = line.partition(":")
        if command.strip():
            processes[name.strip()] = Process(name.strip(), tuple(shlex.split(command)))
    return processes

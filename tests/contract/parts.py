"""The processes of a region under test: started in the background, killed, ended; commands that run to their end."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from deploy.processes import as_child

CENTRE = ["-m", "deploy.parts", "centre"]
NODE = ["-m", "deploy.parts", "node"]
ROOT = Path(__file__).parent.parent.parent
_INHERITED = {"PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH"}


@dataclass
class Part:
    """A process of the region with its settings; it can be killed, ended and started again."""

    name: str
    arguments: list[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    before: list[str] = field(default_factory=list)
    """What the command is run by: `nsenter …` for another network."""

    def start(self) -> None:
        """Start it in the background."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.before, sys.executable, *self.arguments],
                cwd=ROOT,
                env=_environment(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=as_child(os.getpid()),
            )

    def kill(self) -> None:
        """End it as a power cut does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self, seconds: float = 180) -> int:
        """End it by SIGTERM; its exit code."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(seconds)
        self.process = None
        return code

    def last_words(self) -> str:
        """The end of its log, for a failure's message."""
        said = self.log.read_text(errors="replace") if self.log.exists() else "it never ran"
        return f"--- {self.name}\n" + "\n".join(said.splitlines()[-25:])


def _environment(own: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name in _INHERITED} | own


def run(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command of the region to its end."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=_environment(environment),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def succeed(arguments: list[str], environment: dict[str, str]) -> str:
    """Run a command that must succeed; what it printed."""
    result = run(arguments, environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout

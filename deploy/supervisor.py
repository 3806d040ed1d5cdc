"""Starts parts, keeps them running, and stops all of them whatever happens."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy.health import Check
from deploy.processes import as_child
from deploy.procfile import Process

STOP_SECONDS = 30.0
KEPT_LOG_BYTES = 20_000_000


class PartError(Exception):
    """A part did not start or did not become healthy; the message says which, why, and where its log is."""


@dataclass(frozen=True)
class Part:
    """One process of the region with its own environment.

    Attributes:
        name: unique in the region, names the log file.
        process: the line of the Procfile.
        environment: variables beside those that every part gets.
        healthy: whether it does its work now.
    """

    name: str
    process: Process
    environment: Mapping[str, str]
    healthy: Check = field(compare=False)


def base_environment(root: Path) -> dict[str, str]:
    """What every part inherits: the caller's environment without anything that configures Regis, and this checkout."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("REGIS_") and name not in _NOT_INHERITED
    }
    return {**kept, "PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1"}


_NOT_INHERITED = {"DJANGO_SETTINGS_MODULE", "PYTHONDONTWRITEBYTECODE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"}
_NOT_INHERITED |= {name.lower() for name in _NOT_INHERITED}


class Supervisor:
    """The parts of one region, as children of this process.

    Every child leads a process group of its own, gets SIGTERM when this process dies, and is killed with its whole
    group when it does not stop in time: nothing is left behind.
    """

    def __init__(self, root: Path, log_directory: Path, tell: Callable[[str], None]) -> None:
        self._root = root
        self._logs = log_directory
        self._tell = tell
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._parts: dict[str, Part] = {}
        self._stages: list[list[str]] = []
        self._stopping = False
        self.on_restart: Callable[[], None] = lambda: None
        log_directory.mkdir(parents=True, exist_ok=True)

    @property
    def pids(self) -> dict[str, int]:
        """Process id of every running part."""
        return {name: process.pid for name, process in self._running.items()}

    def log_of(self, name: str) -> Path:
        """The log file of a part."""
        return self._logs / f"{name}.log"

    async def start(self, *parts: Part) -> None:
        """Start parts in this order and keep them running; they stop together, before what was started earlier."""
        self._stages.append([part.name for part in parts])
        for part in parts:
            self._parts[part.name] = part
            await self._spawn(part)
            self._watchers[part.name] = asyncio.create_task(self._watch(part))

    async def _spawn(self, part: Part) -> None:
        log = self.log_of(part.name)
        if log.exists() and log.stat().st_size > KEPT_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        with log.open("ab") as output:
            self._running[part.name] = await asyncio.create_subprocess_exec(
                *part.process.arguments,
                cwd=self._root,
                env={**base_environment(self._root), **part.environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=as_child(os.getpid()),
            )

    async def _watch(self, part: Part) -> None:
        """Start the part again whenever it ends by itself, slower each time it ends quickly."""
        pause = 0.5
        while True:
            begun = time.monotonic()
            code = await self._running[part.name].wait()
            if self._stopping:
                return
            pause = 0.5 if time.monotonic() - begun > 60 else min(pause * 2, 30)
            self._tell(
                f"{part.name} ended (code {code}); starting it again in {pause:.0f} s, see {self.log_of(part.name)}"
            )
            _kill_group(self._running[part.name].pid)
            await asyncio.sleep(pause)
            await self._spawn(part)
            self.on_restart()

    async def wait_healthy(self, parts: Iterable[Part], seconds: float) -> None:
        """Wait until every part is healthy.

        Raises:
            PartError: one ended, or was not healthy in time.
        """
        await asyncio.gather(*(self._until_healthy(part, time.monotonic() + seconds) for part in parts))

    async def _until_healthy(self, part: Part, deadline: float) -> None:
        process = self._running[part.name]
        while not await asyncio.to_thread(part.healthy):
            if process.returncode is not None:
                raise PartError(f"{part.name} ended with code {process.returncode}: {self.last_words(part.name)}")
            if time.monotonic() > deadline:
                raise PartError(f"{part.name} is not healthy in time: {self.last_words(part.name)}")
            await asyncio.sleep(0.1)

    def last_words(self, name: str) -> str:
        """The last line of a part's log, and where the rest is."""
        log = self.log_of(name)
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return f"{lines[-1] if lines else 'it said nothing'} (all of it in {log})"

    async def stop(self) -> None:
        """Stop everything, those started last first, servers only when their users are gone."""
        self._stopping = True
        for watcher in self._watchers.values():
            watcher.cancel()
        await asyncio.gather(*self._watchers.values(), return_exceptions=True)
        for stage in reversed(self._stages):
            names = [name for name in reversed(stage) if name in self._running]
            for name in names:
                with contextlib.suppress(ProcessLookupError):
                    self._running[name].send_signal(self._parts[name].process.stop_signal)
            await asyncio.gather(*(self._ended(name) for name in names))
        self._running.clear()

    async def _ended(self, name: str) -> None:
        process = self._running[name]
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            self._tell(f"{name} did not stop in {STOP_SECONDS:.0f} s and is killed")
            _kill_group(process.pid)
            await process.wait()
        _kill_group(process.pid)


def _kill_group(leader: int) -> None:
    """Kill what is left of a process group; none left is the rule."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)

"""What fails in a storm: a line that is cut, a disk that fills, a clock that is wrong; and the account of it."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from deploy.link import Link
from deploy.processes import free_port

DISK_BYTES: Final = 600_000_000
_CLOCK: Final = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static time_t by(void) { const char *text = getenv("CLOCK_OFF_BY"); return text ? atol(text) : 0; }
int clock_gettime(clockid_t id, struct timespec *to) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, to);
    if (!result && id == CLOCK_REALTIME) to->tv_sec += by();
    return result;
}
int gettimeofday(struct timeval *restrict to, void *restrict zone) {
    struct timespec now;
    int result = clock_gettime(CLOCK_REALTIME, &now);
    to->tv_sec = now.tv_sec; to->tv_usec = now.tv_nsec / 1000;
    return result;
}
time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to) *to = now.tv_sec;
    return now.tv_sec;
}
"""


@dataclass
class Account:
    """What happened, and what was found."""

    looks: int = 0
    """How often the whole ledger was compared with the archive."""
    proved: int = 0
    """Rows that were receipted at the last of those."""
    skipped: int = 0
    """Looks that a full disk or a killed process made impossible."""
    lies: list[str] = field(default_factory=list)
    happened: Counter[str] = field(default_factory=Counter)
    left_out: list[str] = field(default_factory=list)
    settled_after: float = 0.0
    """Seconds from the end of the storm to the last receipt."""


class Line:
    """The clinic's line on a loop of its own, cut and mended from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._link = Link(free_port())
        self.url = self._link.url
        asyncio.run_coroutine_threadsafe(self._link.start(), self._loop).result(30)

    def cut(self) -> None:
        self._loop.call_soon_threadsafe(self._link.cut)

    def mend(self) -> None:
        self._loop.call_soon_threadsafe(self._link.restore)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _end(self) -> None:
        await self._link.stop()
        tunnels = asyncio.all_tasks() - {asyncio.current_task()}
        for tunnel in tunnels:
            tunnel.cancel()
        await asyncio.gather(*tunnels, return_exceptions=True)


class Disk:
    """A small disk of its own for a node's folder, which can be filled to the last byte. Needs root."""

    def __init__(self, folder: Path, account: Account) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
        try:
            mounted = subprocess.run(command, capture_output=True, text=True, check=False)
            trouble = mounted.stderr.strip()
        except OSError as error:
            trouble = str(error)
        self.is_own = not trouble
        if trouble:
            account.left_out.append(f"a full disk at the archive ({trouble})")

    @property
    def _ballast(self) -> Path:
        return self._folder / "ballast"

    def fill(self) -> None:
        """Leave no byte free."""
        with contextlib.suppress(OSError), self._ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))

    def clear(self) -> None:
        """Give the room back."""
        self._ballast.unlink(missing_ok=True)

    def remove(self) -> None:
        """Unmount it."""
        if self.is_own:
            subprocess.run(["umount", "--lazy", str(self._folder)], check=True)


def wrong_clock(folder: Path, account: Account) -> "Callable[[int], dict[str, str]] | None":
    """What gives a process another time of day by so many seconds; None where no compiler is."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        account.left_out.append("a wrong clock (no C compiler)")
        return None
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(_CLOCK)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)

    def environment(off_by: int) -> dict[str, str]:
        return {"LD_PRELOAD": os.fspath(library), "CLOCK_OFF_BY": str(off_by)} if off_by else {}

    return environment

"""What processes cost: processor time and memory of a process and of all it started."""

import os
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def tree(pid: int) -> list[int]:
    """The process and what it started, and what that started."""
    parents = {int(path.name): stat for path in Path("/proc").glob("[0-9]*") if (stat := _stat(int(path.name)))}
    found = [pid]
    for one in found:
        found += [child for child, stat in parents.items() if int(stat[1]) == one]
    return found


def cpu_seconds(pid: int) -> float:
    """Processor time that the process, its children and those of them that ended have used."""
    own_and_ended = (_stat(one)[11:15] for one in tree(pid))
    return sum(int(ticks) for fields in own_and_ended for ticks in fields) / _TICKS


def memory_mb(pid: int) -> float:
    """Memory that would be free without these processes: what they share among themselves counts once."""
    total = 0
    for one in tree(pid):
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1000


def load() -> str:
    """How busy the machine is beside what is measured, for the head of a table."""
    one, five, _ = os.getloadavg()
    return f"{os.cpu_count()} processors, load {one:.1f} now and {five:.1f} over five minutes"

"""`./regis demo` from outside: everything answers, everything stops, nothing is left, and its data is found again."""

import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from deploy.processes import as_child, wait_until

ROOT = Path(__file__).parents[2]
START_SECONDS = 600


def start(directory: Path, base: int) -> "subprocess.Popen[bytes]":
    command = [str(ROOT / "regis"), "demo", "--dir", str(directory), "--port-base", str(base)]
    demo = subprocess.Popen(command, start_new_session=True, preexec_fn=as_child(os.getpid()))

    def ready() -> bool:
        assert demo.poll() is None, "the demo ended before it was ready"
        return (directory / "region.json").exists()

    wait_until(ready, START_SECONDS, "the region is ready")
    return demo


def processes_of(directory: Path) -> list[str]:
    """Every process that was told about this directory, by its command."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            except (OSError, ProcessLookupError):
                continue
            if str(directory).encode() in command + environment:
                found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


def answers(url: str, authority: str) -> int:
    context = ssl.create_default_context(cafile=authority) if url.startswith("https") else None
    with urllib.request.urlopen(f"{url}/healthz", timeout=120, context=context) as answer:
        return int(answer.status)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.timeout(1800)
def test_a_region_starts_stops_and_starts_again_and_leaves_no_process_behind(directory: Path, port_base: int) -> None:
    demo = start(directory, port_base)
    region = json.loads((directory / "region.json").read_text(encoding="utf-8"))
    parts = [region["centre"], *region["nodes"]]
    assert [answers(part[key], region["ca"]) for part in parts for key in ("url", "https_url")] == [200] * 10
    assert all(Path(f"/proc/{pid}").exists() for pid in region["pids"].values())
    assert len(region["pids"]) == 13

    other = subprocess.run(
        [str(ROOT / "regis"), "demo", "--dir", str(directory), "--port-base", str(port_base)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert other.returncode == 1
    assert "Another demo runs in" in other.stderr

    demo.send_signal(signal.SIGTERM)
    assert demo.wait(300) == 0
    wait_until(lambda: processes_of(directory) == [], 60, "what the parts had started ends with them")
    assert not (directory / "region.json").exists()

    begun = time.monotonic()
    demo = start(directory, port_base)
    print(f"second start: {time.monotonic() - begun:.1f} s")
    again = json.loads((directory / "region.json").read_text(encoding="utf-8"))
    assert again["centre"] == region["centre"]
    assert again["users"] == region["users"]
    demo.kill()
    demo.wait()
    wait_until(lambda: processes_of(directory) == [], 120, "every process has followed the demo that was killed")

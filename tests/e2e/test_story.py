"""The story of Regis, played in a whole region by real parts, as `./regis demo --once` does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.processes import as_child
from deploy.story.browser import chromium

ROOT = Path(__file__).parents[2]
CHAPTERS = 9


@pytest.mark.timeout(1800)
def test_the_story_holds_from_booking_to_a_restored_link(directory: Path, port_base: int) -> None:
    command = [sys.executable, "-P", "-m", "deploy", "demo", "--dir", str(directory), "--port-base", str(port_base)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("REGIS_")}
    played = subprocess.run(
        [*command, "--once"],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
        preexec_fn=as_child(os.getpid()),
    )
    steps = re.findall(r"^  ✓ (\d+)\.", played.stdout, flags=re.MULTILINE)
    assert [int(step) for step in steps] == list(range(1, CHAPTERS + 1)), played.stdout + played.stderr
    assert played.returncode == 0
    if chromium() is not None:
        assert (directory / "screenshots" / "disc.png").exists()

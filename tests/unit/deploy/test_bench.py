"""The benchmark's command finds its benchmarks by name."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def bench(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "deploy", "bench", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_benchmarks_are_listed() -> None:
    outcome = bench()
    assert (outcome.returncode, outcome.stdout) == (0, "Benchmarks: chaos, mirror, move, query, region, store, wado\n")


def test_an_unknown_benchmark_is_refused_with_those_that_exist() -> None:
    outcome = bench("speed")
    assert (outcome.returncode, outcome.stdout) == (2, "Benchmarks: chaos, mirror, move, query, region, store, wado\n")

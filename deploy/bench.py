"""`regis bench`: the benchmarks, peers side by side in one run where the peer is installed."""

import os
import sys
from pathlib import Path

import typer

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "tests" / "bench"

app = typer.Typer(add_completion=False)


@app.command(add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def bench(context: typer.Context) -> None:
    """Run a benchmark by name (`store`); further words are its own."""
    names = sorted(path.stem for path in BENCHMARKS.glob("*.py") if not path.stem.startswith("_"))
    if not context.args or context.args[0] not in names:
        print(f"Benchmarks: {', '.join(names)}")
        raise typer.Exit(2 if context.args else 0)
    name, *words = context.args
    os.chdir(ROOT)
    os.execv(sys.executable, [sys.executable, "-P", "-m", f"tests.bench.{name}", *words])

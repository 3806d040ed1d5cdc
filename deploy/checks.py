"""`regis test`: everything that CI runs, in one go."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from babel.messages.pofile import read_po

from deploy.bootstrap import NO_NETWORK_SIGNS, translations, uv_environment

ROOT = Path(__file__).parent.parent
PURE = ["standards", "worklist", "publishing", "deploy", "tests/unit", "tests/contract", "tests/e2e", "tests/bench"]
MYPY = {
    "ris_central.settings": ["ris_central", "tests/central"],
    "pacs_node.settings": ["pacs_node", "gateway", "tests/node", "tests/services.py", "tests/conftest.py", *PURE],
}
PEERS = {
    "storescu": "dcmtk",
    "Orthanc": "orthanc",
    "/usr/share/orthanc/plugins/libOrthancDicomWeb.so": "orthanc-dicomweb",
    "dciodvfy": "dicom3tools",
    "chromium": "chromium",
    "firefox-esr": "firefox-esr",
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf": "fonts-dejavu-core",
}
"""Programs (and a plugin, and the font that browsers draw Cyrillic with) that tests and benchmarks need, and Debian's
package of each."""

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Group:
    """Tests that share a process: their folder, how pytest is called, and what it finds in its environment."""

    folder: str
    options: tuple[str, ...] = ("-n", "2")
    environment: Mapping[str, str] = field(default_factory=dict)
    label: str = ""


GROUPS = [
    Group("unit"),
    Group("node"),
    Group("node", environment={"REGIS_TEST_NODE_DATABASE": "postgresql"}, label="node on PostgreSQL"),
    Group("central"),
    Group("contract", options=("-n", "2", "--dist", "loadfile")),  # a module starts its region once
    Group("e2e", options=("-n", "0")),
]


MOST_UNSTEADY = 3
"""So many tests of a group may fail and be tried once more; more than that is no accident of the machine."""


@dataclass
class Tally:
    """How many tests ended how. ``unsteady``: the names of those that passed only when tried once more, alone."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    unsteady: list[str] = field(default_factory=list)

    def add(self, report: Path) -> bool:
        """Add a JUnit report; false when pytest wrote none."""
        if not report.exists():
            self.failed += 1
            return False
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):  # noqa: S314 - written by our own pytest
            total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
            failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            self.passed += total - failed - skipped
            self.failed += failed
            self.skipped += skipped
        return True

    def add_again(self, first: Path, again: Path) -> bool:
        """Add two reports: of a run with failures, and of another try of these alone."""
        failed, at_last = Tally(), Tally()
        failed.add(first)
        complete = at_last.add(again) and at_last.passed + at_last.failed == failed.failed
        before = failures(first)
        still = set(failures(again) if complete else before)
        unsteady = [name for name in before if name not in still]
        self.passed += failed.passed + len(unsteady)
        self.failed += failed.failed - len(unsteady)
        self.skipped += failed.skipped
        self.unsteady += unsteady
        return complete


def install_peers() -> None:
    """Install the programs that tests talk to, where that is ours to do; elsewhere say which are missing."""
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    wanting = (name for name in PEERS if not Path(name).exists() and not shutil.which(name, path=search))
    missing = sorted({PEERS[name] for name in wanting})
    if not missing:
        return
    if os.geteuid() != 0 or not Path("/etc/debian_version").exists() or not shutil.which("apt-get"):
        print(f"Not installed, their tests are skipped: {' '.join(missing)}", flush=True)
        return
    print(f"Installing {' '.join(missing)} …", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing]
    for command in (["apt-get", "update", "-q"], install):
        outcome = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if outcome.returncode:
            print(f"{' '.join(command)} failed, tests without their peer are skipped:\n{outcome.stderr}", flush=True)
            return


def _clean_environment(scratch: Path) -> dict[str, str]:
    """The caller's environment without what configures a running Regis, with data folders of its own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("REGIS_CENTRE_", "REGIS_NODE_"))}
    kept.pop("DJANGO_SETTINGS_MODULE", None)
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "REGIS_CENTRE_DATA_DIR": str(scratch / "centre"),
        "REGIS_NODE_DATA_DIR": str(scratch / "node"),
    }


def _ran(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Run a check; what it complains about, or nothing."""
    outcome = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return (
        "" if outcome.returncode == 0 else f"{outcome.stdout}{outcome.stderr}".strip() or "it failed and said nothing"
    )


def pinned(lock: str) -> set[str]:
    """The requirements of a lock without their digests: an index may add a wheel to a version that stays."""
    lines = (line.partition(" \\")[0].strip() for line in lock.splitlines() if "==" in line)
    return {line for line in lines if not line.startswith("#")}


def lock_matches(scratch: Path) -> str:
    """Whether requirements.lock is what pyproject.toml asks for; what differs, or nothing."""
    lock = ROOT / "requirements.lock"
    fresh = scratch / "requirements.lock"
    shutil.copyfile(lock, fresh)  # what is pinned stays pinned
    inputs = ["pyproject.toml", "--group", "dev", "--universal", "-p", "3.11"]
    form = ["--generate-hashes", "--no-emit-index-url", "--no-annotate", "--no-header"]
    command = [sys.executable, "-m", "uv", "pip", "compile", "-q", *inputs, *form, "-o", str(fresh)]
    complaint = _ran(command, uv_environment(ROOT))
    if complaint:
        if any(sign in complaint for sign in NO_NETWORK_SIGNS):
            print("  not checked: the lock against pyproject.toml (the package index cannot be reached)", flush=True)
            return ""
        return complaint
    before, after = pinned(lock.read_text(encoding="utf-8")), pinned(fresh.read_text(encoding="utf-8"))
    differing = [f"only in the lock: {line}" for line in sorted(before - after)]
    differing += [f"missing in the lock: {line}" for line in sorted(after - before)]
    return "\n".join(differing)


def translations_complete() -> str:
    """Every Russian catalogue is whole; what is not translated, or nothing."""
    wanting = []
    for file in translations(ROOT):
        with file.open("rb") as source:
            catalogue = read_po(source)
        for message in catalogue:
            texts = message.string if isinstance(message.string, tuple | list) else [message.string]
            if message.id and (message.fuzzy or not all(texts)):
                wanting.append(f"{file.relative_to(ROOT)}: {message.id!r} is {'fuzzy' if message.fuzzy else 'missing'}")
    return "\n".join(wanting)


def lint(scratch: Path) -> list[str]:
    """Run every check that is not a test; the names of those that failed."""
    environment, python = _clean_environment(scratch), [sys.executable, "-P"]

    def program(*words: str, **extra: str) -> Callable[[], str]:
        return lambda: _ran([*python, *words], {**environment, **extra})

    def types(settings: str) -> Callable[[], str]:
        folders = [folder for folder in MYPY[settings] if any((ROOT / folder).rglob("*.py")) or folder.endswith(".py")]
        cache = f".mypy_cache/{settings.partition('.')[0]}"
        return program("-m", "mypy", "--cache-dir", cache, *folders, DJANGO_SETTINGS_MODULE=settings)

    checks: dict[str, Callable[[], str]] = {
        "ruff check": program("-m", "ruff", "check", "."),
        "ruff format": program("-m", "ruff", "format", "--check", "."),
        "imports": program("-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"),
        "types of the centre": types("ris_central.settings"),
        "types of the rest": types("pacs_node.settings"),
        "migrations of the centre": program("-m", "deploy", "centre", "makemigrations", "--check", "--dry-run"),
        "migrations of the node": program("-m", "deploy", "node", "makemigrations", "--check", "--dry-run"),
        "lock": lambda: lock_matches(scratch),
        "translations": translations_complete,
    }
    failed = []
    for name, check in checks.items():
        begun = time.monotonic()
        complaint = check()
        print(f"{'FAILED' if complaint else 'ok':<8}{name} ({time.monotonic() - begun:.1f} s)", flush=True)
        if complaint:
            print(complaint, flush=True)
            failed.append(name)
    return failed


def chosen(arguments: Sequence[str]) -> list[tuple[Group, list[str]]]:
    """Which groups to run with which arguments: those whose folder a path names, or all that have tests."""
    paths = {word: Path(word.partition("::")[0]).resolve() for word in arguments if not word.startswith("-")}
    tests = ROOT / "tests"
    named = {word: path for word, path in paths.items() if path.exists() and path.is_relative_to(tests)}
    whole = [word for word, path in named.items() if path == tests]
    rest = [word for word in arguments if word not in named]
    found = []
    for group in GROUPS:
        folder = tests / group.folder
        mine = [word for word, path in named.items() if path.is_relative_to(folder)]
        if mine:
            found.append((group, [*rest, *mine]))
        elif (not named or whole) and any(folder.rglob("test_*.py")):
            found.append((group, [*rest, str(folder)]))
    return found


def failures(report: Path) -> list[str]:
    """The names of the tests that failed, by a JUnit report of ours."""
    cases = ElementTree.parse(report).getroot().iter("testcase")  # noqa: S314 - written by our own pytest
    failed = (case for case in cases if case.find("failure") is not None or case.find("error") is not None)
    return [f"{case.get('classname')}::{case.get('name')}" for case in failed]


def run_group(group: Group, arguments: Sequence[str], scratch: Path, tally: Tally) -> bool:
    """Run a group's tests; whether all of them passed.

    These tests start, kill and cut off real processes on a loaded machine. Where at most ``MOST_UNSTEADY`` fail they
    are run once more, one after the other; what passes then is counted as passed and told as unsteady: a fault to mend
    of the test or of what it tests, but not a reason to hold back everything else.
    """
    label = group.label or group.folder
    print(f"\n== tests: {label}", flush=True)
    own = scratch / label.replace(" ", "-")
    environment = {**_clean_environment(scratch), **group.environment}

    def run_pytest(report: Path, *options: str) -> int:
        command = [sys.executable, "-P", "-m", "pytest", "-o", f"cache_dir={own}", f"--junitxml={report}", *options]
        return subprocess.run([*command, *arguments], env=environment, check=False).returncode

    first = own.with_suffix(".xml")
    code = run_pytest(first, *([] if any(word.startswith("-n") for word in arguments) else group.options))
    if code != 1 or not first.exists() or not 0 < len(failed := failures(first)) <= MOST_UNSTEADY:
        return tally.add(first) and code in (0, 5)
    print(f"\n== once more, alone: {', '.join(failed)}", flush=True)
    again = own.with_suffix(".again.xml")
    code = run_pytest(again, "-n", "0", "--last-failed", "--last-failed-no-failures", "none")
    return tally.add_again(first, again) and code == 0


@app.command(add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def run(
    context: typer.Context,
    tests_only: Annotated[bool, typer.Option("--tests-only", help="Leave out everything that is not a test.")] = False,
) -> None:
    """Lint, types, layers, migrations, lock, translations, every test; with arguments, the tests that pytest picks."""
    install_peers()
    tally, failed = Tally(), []
    with tempfile.TemporaryDirectory(prefix="regis-test-") as folder:
        scratch = Path(folder)
        if not context.args and not tests_only:
            failed = lint(scratch)
        for group, arguments in chosen(context.args):
            if not run_group(group, arguments, scratch, tally):
                failed.append(f"tests/{group.folder}")
    if tally.unsteady:
        print(f"\nUnsteady, they failed and passed when tried once more: {', '.join(tally.unsteady)}", flush=True)
    if failed:
        print(f"\nFailed: {', '.join(failed)}", flush=True)
    print(f"\n{tally.passed} passed, {tally.failed} failed, {tally.skipped} skipped", flush=True)
    raise typer.Exit(1 if failed or tally.failed else 0)

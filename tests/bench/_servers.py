"""A region of processes for benchmarks: PostgreSQL and valkey, durable, and the region of the contract tests."""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg

from deploy import postgres, valkey
from deploy.certificates import ensure_authority, ensure_certificate
from deploy.processes import free_port
from tests.bench._peers import running
from tests.contract.region import Region, region


@dataclass(frozen=True)
class Servers:
    """PostgreSQL and the Redis-compatible server under a centre."""

    postgres_url: str
    postgres_pid: int
    valkey_pid: int


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[Servers]:
    """Both, until the block ends; the contract tests' region finds them."""
    postgres_port, valkey_port = free_port(), free_port()

    def command(name: str, port: int) -> list[str]:
        place = ["--directory", str(folder / name), "--port", str(port)]
        return [sys.executable, "-m", "deploy", "service", name, *place]

    def url_of_postgres() -> str:
        return postgres.superuser_url(folder / "postgres", postgres_port)

    def postgres_answers() -> bool:
        return (folder / "postgres" / "password").exists() and postgres.answers(url_of_postgres())

    def valkey_answers() -> bool:
        return (folder / "valkey" / "password").exists() and valkey.answers(valkey.url(folder / "valkey", valkey_port))

    with (
        running(command("postgres", postgres_port), folder / "postgres.log", {}, postgres_answers) as postgres_pid,
        running(command("valkey", valkey_port), folder / "valkey.log", {}, valkey_answers) as valkey_pid,
    ):
        os.environ["REGIS_TEST_POSTGRES_URL"] = url_of_postgres()
        os.environ["REGIS_CENTRE_REDIS_URL"] = valkey.url(folder / "valkey", valkey_port)
        yield Servers(url_of_postgres(), postgres_pid, valkey_pid)


@contextlib.contextmanager
def reachable_region(folder: Path, address: str) -> Iterator[Region]:
    """The contract tests' region, its centre reached at ``address``; nothing started yet."""
    ensure_authority(folder / "tls")
    for name in ("centre", "archive"):
        ensure_certificate(folder / "tls", name, [address])
    with region(folder) as made:
        made.centre.environment |= {
            "REGIS_CENTRE_HTTP_HOST": "0.0.0.0",
            "REGIS_CENTRE_PUBLIC_URL": f"https://{address}:{made.centre_port}",
        }
        yield made


def database_bytes(url: str) -> int:
    """The size of a database on disk."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    return int(row[0]) if row else 0

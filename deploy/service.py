"""`regis service …`: the infrastructure that a zero-install region brings along."""

from pathlib import Path
from typing import Annotated

import typer

from deploy import postgres as postgres_server
from deploy import valkey as valkey_server

app = typer.Typer(help="Servers that the demo and the tests bring along; production uses its own by URL.")

Fsync = Annotated[bool, typer.Option(envvar="REGIS_SERVICE_FSYNC", help="Off only for throwaway data.")]


@app.command()
def postgres(
    directory: Annotated[Path, typer.Option(envvar="REGIS_POSTGRES_DIRECTORY")],
    port: Annotated[int, typer.Option(envvar="REGIS_POSTGRES_PORT")],
    fsync: Fsync = True,
) -> None:
    """Run PostgreSQL on 127.0.0.1 in the foreground."""
    postgres_server.become_server(directory, port, fsync=fsync)


@app.command()
def valkey(
    directory: Annotated[Path, typer.Option(envvar="REGIS_VALKEY_DIRECTORY")],
    port: Annotated[int, typer.Option(envvar="REGIS_VALKEY_PORT")],
    fsync: Fsync = True,
) -> None:
    """Run the Redis-compatible server on 127.0.0.1 in the foreground."""
    valkey_server.become_server(directory, port, fsync=fsync)

"""Where a region under test lives."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.processes import free_port, port_is_free
from deploy.region import Ports


@pytest.fixture
def directory() -> Iterator[Path]:
    """A folder that PostgreSQL's uid can pass through, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="regis-demo-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "region"


@pytest.fixture
def port_base() -> int:
    """The first of fifty ports that are free."""
    while True:
        base = min(free_port(), 60_000)
        if all(port_is_free(port) for port in Ports(base).all().values()):
            return base

"""Where a region under test lives."""

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.processes import port_is_free
from deploy.region import Ports


@pytest.fixture
def directory() -> Iterator[Path]:
    """A folder that PostgreSQL's uid can pass through, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="regis-demo-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "region"


@pytest.fixture
def port_base() -> int:
    """The first of fifty ports that are free, below those that the system gives to outgoing connections."""
    for base in random.sample(range(12_000, 32_000, 50), 400):
        if all(port_is_free(port) for port in Ports(base).all().values()):
            return base
    raise AssertionError("no fifty free ports in a row")

"""An old PACS and a proxy before it, for the modules that name this in ``pytest_plugins``."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node.proxied import Orthanc, Proxy


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """One for the tests of a module."""
    one = Orthanc(tmp_path_factory.mktemp("pacs"))
    one.start()
    yield one
    one.stop()


@pytest.fixture
def proxy(tmp_path: Path, pacs: Orthanc) -> Iterator[Proxy]:
    """Not started yet: its rules are the test's."""
    one = Proxy(tmp_path / "proxy", pacs.port)
    yield one
    one.stop()

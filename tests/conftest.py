"""Fixtures that every folder of tests may use."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import settings
from psycopg import sql

import tests.pynetdicom_pauses  # noqa: F401  before anything associates

ROOT = Path(__file__).parent.parent

# A suite that is run again says the same, and a busy machine that is slow now and then says nothing about the code.
# REGIS_TEST_EXPLORE=1 looks for examples that were never tried.
settings.register_profile("regis", settings.get_profile("ci"), derandomize="REGIS_TEST_EXPLORE" not in os.environ)
settings.load_profile("regis")


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """The folder of sample DICOM files; tests that need it are skipped by name where it is absent."""
    folder = Path(os.environ.get("REGIS_SAMPLE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no sample data in {folder} (set REGIS_SAMPLE_DATA)")
    return folder


@pytest.fixture
def postgres_database() -> Iterator[str]:
    """The URL of an empty PostgreSQL database that is this test's own."""
    server = os.environ.get("REGIS_TEST_POSTGRES_URL")
    if server is None:
        pytest.fail("this folder of tests gets no PostgreSQL: add it to WITH_SERVERS in tests/services.py")
    name = f"regis_test_{secrets.token_hex(6)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield f"{server.rpartition('/')[0]}/{name}"
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def valkey_url() -> str:
    """The URL of this process's own database in the run's Redis-compatible server."""
    url = os.environ.get("REGIS_CENTRE_REDIS_URL")
    if url is None:
        pytest.fail("this folder of tests gets no valkey: add it to WITH_SERVERS in tests/services.py")
    return url

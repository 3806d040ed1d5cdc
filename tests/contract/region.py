"""A small real region for contract tests: a centre and nodes as processes, each with its own database and TLS."""

import contextlib
import json
import os
import secrets
import sqlite3
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psycopg
import redis
from psycopg import sql
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from deploy.certificates import ensure_authority, ensure_certificate
from deploy.processes import free_port, wait_until
from standards.uids import new_uid
from tests.contract.parts import CENTRE, NODE, Part, run, succeed


def make_instance(
    *, study: str = "", series: str = "", sop: str = "", number: int = 1, size: int = 32, text: str = ""
) -> Dataset:
    """A small CT image of a fictional patient, with pixels that differ from number to number."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    image = Dataset()
    image.file_meta = meta
    image.SpecificCharacterSet = "ISO_IR 192"
    image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = UID(sop or new_uid())
    image.StudyInstanceUID = study or new_uid()
    image.SeriesInstanceUID = series or new_uid()
    image.PatientName, image.PatientID = "Выдумкин^Пример", "CONTRACT-1"
    image.PatientBirthDate, image.PatientSex = "19700101", "O"
    image.StudyDate, image.StudyTime = "20260102", "101500"
    image.Modality, image.SeriesNumber, image.InstanceNumber = "CT", 1, number
    image.StudyDescription = text or "Contract"
    image.Rows = image.Columns = size
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    image.PixelRepresentation, image.SamplesPerPixel = 0, 1
    image.PhotometricInterpretation = "MONOCHROME2"
    pixels = (np.arange(size * size, dtype=np.uint16) * 7 + number) % 4096
    image.PixelData = pixels.astype("<u2").tobytes()
    return image


def make_series(count: int, folder: Path, **attributes: str) -> tuple[str, list[str]]:
    """``count`` instances of one series as files in ``folder``; the study's UID and those of the instances."""
    study, series = attributes.pop("study", new_uid()), new_uid()
    folder.mkdir(parents=True, exist_ok=True)
    uids = []
    for number in range(1, count + 1):
        image = make_instance(study=study, series=series, number=number, **attributes)  # type: ignore[arg-type]
        image.save_as(folder / f"{image.SOPInstanceUID}.dcm", enforce_file_format=True)
        uids.append(str(image.SOPInstanceUID))
    return study, uids


@dataclass
class NodeUnderTest:
    """A node: its two processes and its files."""

    name: str
    kind: str
    directory: Path
    environment: dict[str, str]
    pacs: Part
    gateway: Part
    https_port: int

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a management command of the node."""
        return run([*NODE, *arguments], self.environment)

    def query(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        """Read from the node's SQLite database."""
        with contextlib.closing(sqlite3.connect(self.directory / "node.sqlite3", timeout=30)) as connection:
            return connection.execute(statement, values).fetchall()

    def write(self, statement: str, *values: object) -> None:
        """Write to the node's SQLite database, as no good citizen does."""
        with contextlib.closing(sqlite3.connect(self.directory / "node.sqlite3", timeout=30)) as connection, connection:
            connection.execute(statement, values)

    def receipted(self) -> int:
        """How many deliveries have their receipt."""
        return int(str(self.query("SELECT count(*) FROM gateway_delivery WHERE status = 'receipted'")[0][0]))

    def held(self) -> dict[str, tuple[str, str]]:
        """SOP Instance UID to dataset and pixel digest of what the node holds."""
        rows = self.query(
            "SELECT sop_instance_uid, dataset_sha256, pixel_sha256 FROM study_index_instance WHERE released_at IS NULL"
        )
        assert len({row[0] for row in rows}) == len(rows), "an instance is there twice"
        return {str(uid): (str(dataset), str(pixel)) for uid, dataset, pixel in rows}

    def last_words(self) -> str:
        """The ends of both logs."""
        return f"{self.pacs.last_words()}\n{self.gateway.last_words()}"


@dataclass
class Region:
    """The centre and its nodes."""

    directory: Path
    database_url: str
    authority: Path
    centre: Part
    centre_port: int
    nodes: dict[str, NodeUnderTest] = field(default_factory=dict)
    version: int = 0
    """Of the last configuration that a test pushed."""

    @property
    def centre_url(self) -> str:
        """Where nodes reach the centre."""
        return f"https://127.0.0.1:{self.centre_port}"

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a management command of the centre."""
        return run([*CENTRE, *arguments], self.centre.environment)

    def ask(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        """Read from the centre's database."""
        with psycopg.connect(self.database_url) as connection:
            return connection.execute(statement.encode(), values).fetchall()

    def shell(self, code: str) -> str:
        """Run Python within the centre's Django; what it printed."""
        result = self.manage("shell", "--no-imports", "-c", code)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout.strip()

    def start_centre(self) -> None:
        """Start the centre and wait until it answers."""
        self.centre.start()
        self._wait(self.centre, self.centre_port, "/federation/v1/status")

    def revive(self, *nodes: NodeUnderTest) -> None:
        """Start what a test before killed of the centre and these nodes; until they answer and know each other."""
        for part in (self.centre, *(part for node in nodes for part in (node.pacs, node.gateway))):
            if part.process is None and part.log.exists():
                part.start()
        self._wait(self.centre, self.centre_port, "/federation/v1/status")
        for node in nodes:
            if node.pacs.process is not None:
                self.wait_for_pacs(node)
        wait_until(lambda: self._acquainted(nodes), 240, "each node has the keys of the others")

    def _acquainted(self, nodes: Sequence[NodeUnderTest]) -> bool:
        keys = {str(name): key for name, key in self.ask("SELECT name, public_key FROM federation_node")}
        for node in nodes:
            directory = json.loads(str(node.query("SELECT directory FROM gateway_joinstate")[0][0]))
            known = {peer["name"]: peer["public_key"] for peer in directory["peers"]}
            if any(known.get(other.name) != keys[other.name] for other in nodes if other is not node):
                return False
        return True

    def heard_all(self, node: NodeUnderTest) -> bool:
        """Whether the centre took every event of the node, and nothing waits to be numbered."""
        waiting = node.query("SELECT count(*) FROM gateway_outboxentry")[0][0]
        highest = node.query(
            "SELECT max(seq) FROM gateway_numberedevent WHERE epoch = (SELECT epoch FROM gateway_joinstate)"
        )[0][0]
        cursor = self.ask("SELECT cursor FROM federation_node WHERE name = %s", node.name)[0][0]
        return waiting == 0 and cursor == (highest or 0)

    def forget(self) -> None:
        """Empty the centre's cache: who could not be reached a moment ago, who was asked to hurry."""
        cache = redis.Redis.from_url(self.centre.environment["REGIS_CENTRE_REDIS_URL"])
        for key in cache.scan_iter(":1:*"):
            cache.delete(key)

    def tell(self, statement: str, *values: object) -> None:
        """Write to the centre's database: a restore, a clock, a command of a higher app."""
        with psycopg.connect(self.database_url) as connection:
            connection.execute(statement.encode(), values)

    def send(self, node: str, body: dict[str, object]) -> None:
        """Put a command on a node's outbox."""
        self.tell(
            "INSERT INTO federation_command (node_id, type, body, created_at)"
            " SELECT id, %s, %s::jsonb, now() FROM federation_node WHERE name = %s",
            body["type"],
            json.dumps(body),
            node,
        )

    def configure(self, node: NodeUnderTest, **body: object) -> None:
        """Push the next version of the configuration to a node, and wait until it has it."""
        self.version += 1
        self.send(node.name, {"type": "configuration", "version": self.version, **body})

        def has_it() -> bool:
            configuration = json.loads(str(node.query("SELECT configuration FROM gateway_joinstate")[0][0]))
            return bool(configuration.get("version") == self.version)

        wait_until(has_it, 240, f"{node.name} has version {self.version} of its configuration")

    def prepare(self, *nodes: tuple[str, str, str]) -> dict[str, str]:
        """Register a site and a node for each ``(site, kind of node, name)``; a one-time code for each name."""
        printed = self.shell(
            "from ris_central.federation import actions\n"
            "from ris_central.organizations.models import Site\n"
            f"for number, (code, kind, name) in enumerate({nodes!r}):\n"
            "    site, _ = Site.objects.get_or_create(code=code, defaults={\n"
            "        'name': code, 'kind': 'own_pacs', 'accession_prefix': f'{Site.objects.count()}'})\n"
            "    print(name, actions.create_join_code(site, kind, name)[1])\n"
        )
        lines = [line.split() for line in printed.splitlines()]
        return {line[0]: line[1] for line in lines if len(line) == 2 and line[1].count("-") == 3}

    def join_code(self, site: str, kind: str, name: str) -> str:
        """A one-time code, by the command a person uses."""
        result = self.manage("joincode", site, kind, name)
        assert result.returncode == 0, result.stderr
        return result.stdout.split()[-1]

    def add_node(self, name: str, kind: str, **settings: str) -> NodeUnderTest:
        """A node with its database migrated and nothing started; ``settings`` are more ``REGIS_NODE_…`` of it."""
        directory = self.directory / name
        certificate, key = ensure_certificate(self.directory / "tls", name)
        http, https = free_port(), free_port()
        environment = {
            "DJANGO_SETTINGS_MODULE": "pacs_node.settings",
            "REGIS_NODE_DATA_DIR": str(directory),
            "REGIS_NODE_NAME": name,
            "REGIS_NODE_KIND": kind,
            "REGIS_NODE_AE_TITLE": name.upper()[:16],
            "REGIS_NODE_HTTP_PORT": str(http),
            "REGIS_NODE_HTTPS_PORT": str(https),
            "REGIS_NODE_DICOM_PORT": "0",
            "REGIS_NODE_TLS_CERTIFICATE": str(certificate),
            "REGIS_NODE_TLS_KEY": str(key),
            "REGIS_NODE_TLS_CA": str(self.authority),
            **{f"REGIS_NODE_{name.upper()}": value for name, value in settings.items()},
        }
        node = NodeUnderTest(
            name,
            kind,
            directory,
            environment,
            Part(f"{name}-pacs", [*NODE, "run", "pacs"], environment, self.directory / f"{name}-pacs.log"),
            Part(f"{name}-gateway", [*NODE, "run", "gateway"], environment, self.directory / f"{name}-gateway.log"),
            https,
        )
        succeed([*NODE, "migrate"], environment)
        self.nodes[name] = node
        return node

    def join(self, node: NodeUnderTest, code: str) -> None:
        """Join a node."""
        result = node.manage("join", self.centre_url, code)
        assert result.returncode == 0, result.stderr

    def start_pacs(self, node: NodeUnderTest) -> None:
        """Start the receiving process of a node and wait until it answers."""
        node.pacs.start()
        self.wait_for_pacs(node)

    def wait_for_pacs(self, node: NodeUnderTest) -> None:
        """Wait until the receiving process of a node answers."""
        self._wait(node.pacs, node.https_port, "/gateway/v1/instances/1.2.3")

    def take_in(self, node: NodeUnderTest, folder: Path) -> None:
        """Bring the files of a folder into a node as its modality would, without a network."""
        succeed(
            [
                "-c",
                "import sys, django; from pathlib import Path; django.setup()\n"
                "from pacs_node.study_index.actions import ingest\n"
                "for path in sorted(Path(sys.argv[1]).glob('*.dcm')): ingest(path, source_ae_title='SCANNER')",
                str(folder),
            ],
            node.environment,
        )

    def _wait(self, part: Part, port: int, path: str) -> None:
        context = ssl.create_default_context(cafile=str(self.authority))

        def answers() -> bool:
            assert part.process is not None
            assert part.process.poll() is None, part.last_words()
            try:
                urllib.request.urlopen(f"https://127.0.0.1:{port}{path}", context=context, timeout=5)
            except urllib.error.HTTPError:
                return True
            except OSError:
                return False
            return True

        wait_until(answers, 240, f"{part.name} answers")

    def last_words(self) -> str:
        """The ends of all logs."""
        return "\n".join([self.centre.last_words(), *(node.last_words() for node in self.nodes.values())])

    def stop(self) -> None:
        """Kill every process."""
        for node in self.nodes.values():
            node.gateway.kill()
            node.pacs.kill()
        self.centre.kill()


@contextlib.contextmanager
def database() -> Iterator[str]:
    """The URL of an empty database of the run's PostgreSQL."""
    server = os.environ["REGIS_TEST_POSTGRES_URL"]
    name = f"regis_contract_{secrets.token_hex(6)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield f"{server.rpartition('/')[0]}/{name}"
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextlib.contextmanager
def region(directory: Path, *, migrated: bool = True) -> Iterator[Region]:
    """A centre with a migrated database, and nothing started yet; every process is gone at the end."""
    with database() as database_url:
        authority = ensure_authority(directory / "tls")
        certificate, key = ensure_certificate(directory / "tls", "centre")
        port = free_port()
        environment = {
            "DJANGO_SETTINGS_MODULE": "ris_central.settings",
            "REGIS_CENTRE_DATA_DIR": str(directory / "centre"),
            "REGIS_CENTRE_DATABASE_URL": database_url,
            "REGIS_CENTRE_REDIS_URL": os.environ["REGIS_CENTRE_REDIS_URL"],
            "REGIS_CENTRE_HTTP_PORT": "0",
            "REGIS_CENTRE_HTTPS_PORT": str(port),
            "REGIS_CENTRE_PUBLIC_URL": f"https://127.0.0.1:{port}",
            "REGIS_CENTRE_TLS_CERTIFICATE": str(certificate),
            "REGIS_CENTRE_TLS_KEY": str(key),
        }
        centre = Part("centre", [*CENTRE, "run", "web"], environment, directory / "centre.log")
        made = Region(directory, database_url, authority, centre, port)
        redis.Redis.from_url(environment["REGIS_CENTRE_REDIS_URL"]).flushdb()  # of the region that was here before
        if migrated:
            succeed([*CENTRE, "migrate"], environment)
        try:
            yield made
        finally:
            made.stop()

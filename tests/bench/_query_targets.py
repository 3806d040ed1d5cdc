"""The servers that are asked for studies, with their indexes: a Regis node, filled directly, and Orthanc, loaded."""

import http.client
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Final

import psycopg

from deploy.health import listens
from deploy.postgres import superuser_url
from deploy.processes import free_port
from pacs_node.dimse.calling import Address
from standards.tokens import generate_key, issue_image_token, public_key_to_text
from tests.bench._peers import program, running
from tests.factories.dicom import Patient, Study, part10, secondary_capture
from tests.factories.made_up_names import MadeUpPatient, patients

ROOT: Final = Path(__file__).parents[2]
ASKER: Final = "BENCH"
PLUGIN: Final = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
_SENDERS: Final = 3

Keys = dict[str, str]


@dataclass(frozen=True)
class Target:
    """A server with its index: where it answers, how many studies it holds, and keys of some of them."""

    name: str
    http_port: int
    headers: dict[str, str]
    dicom: Address
    studies: int
    samples: list[Keys]


# Regis

_PREPARE: Final = """
import django; django.setup()
from django.core.management import call_command
from gateway.models import JoinState
from pacs_node.clinic.actions import admit
from tests.factories.many_studies import fill
call_command("migrate", verbosity=0)
admit({asker!r}, actor="bench")
fill({count})
JoinState.objects.create(name="bench", centre_url="https://centre.example", epoch="e1", directory={{}})
"""
_TRUST: Final = """
import django; django.setup()
from django.core.management import call_command
from gateway.models import JoinState
from pacs_node.study_index.models import Study
import json, random
call_command("migrate", verbosity=0)
JoinState.objects.update(directory={{"peers": [], "mirror_to": [], "token_keys": {{"k1": {key!r}}}}})
keys = random.Random({seed}).sample(range(1, {count} + 1), {samples})
columns = ("patient_id", "accession_number", "study_date", "patient_name", "series__modality")
print(json.dumps(list(Study.objects.filter(pk__in=keys, series__series_number=1).values_list(*columns))))
"""


def _python(code: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    return done.stdout.decode()


@contextmanager
def _postgres(folder: Path) -> Iterator[str]:
    """A server of its own; the URL of the node's database."""
    port = free_port()
    code = f"from pathlib import Path; from deploy.postgres import *; become_server(Path({str(folder)!r}), {port})"
    if not (folder / "password").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _python(f"from pathlib import Path; from deploy.postgres import *; initialise(Path({str(folder)!r}))", {})
    with running([sys.executable, "-c", code], folder / "log", {}, listens(port)):
        with psycopg.connect(superuser_url(folder, port), autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'bench'").fetchone():
                connection.execute("CREATE DATABASE bench")
        yield superuser_url(folder, port, "bench")


@contextmanager
def regis(directory: Path, count: int, database: str, samples: int, seed: int) -> Iterator[Target]:
    """A node as shipped; every request carries an image token and is checked and audited."""
    folder = directory / f"query-{database}-{count}"
    folder.mkdir(parents=True, exist_ok=True)
    if database == "postgresql":
        with _postgres(folder / "postgres") as url:
            yield from _regis(folder, count, url, samples, seed)
    else:
        yield from _regis(folder, count, "", samples, seed)


def _regis(folder: Path, count: int, database_url: str, samples: int, seed: int) -> Iterator[Target]:
    web, dicom, key = free_port(), free_port(), generate_key()
    environment = {
        "PYTHONPATH": str(ROOT),
        "DJANGO_SETTINGS_MODULE": "pacs_node.settings",
        "REGIS_NODE_DATA_DIR": str(folder),
        "REGIS_NODE_DATABASE_URL": database_url,
        "REGIS_NODE_AE_TITLE": "REGIS",
        "REGIS_NODE_DICOM_PORT": str(dicom),
        "REGIS_NODE_HTTP_PORT": str(web),
    }
    filled = folder / "filled"
    if not filled.exists():
        print(f"Filling an index with {count} studies, once.", flush=True)
        begun = time.monotonic()
        _python(_PREPARE.format(asker=ASKER, count=count), environment)
        filled.touch()
        print(f"  {time.monotonic() - begun:.0f} s", flush=True)
    trust = _TRUST.format(key=public_key_to_text(key.public_key()), count=count, samples=samples, seed=seed)
    names = ("PatientID", "AccessionNumber", "StudyDate", "PatientName", "ModalitiesInStudy")
    keys = [dict(zip(names, row, strict=True)) for row in json.loads(_python(trust, environment))]
    token, _ = issue_image_token(
        key, "k1", subject="bench", audience="bench", studies=["*"], operations=["read"], ttl=7200
    )
    command = [sys.executable, "-m", "django", "run", "pacs"]
    with running(command, folder / "log", environment, lambda: listens(web)() and listens(dicom)()):
        yield Target(
            "Regis node",
            web,
            {"Authorization": f"Bearer {token}"},
            Address("REGIS", "127.0.0.1", dicom),
            count,
            keys,
        )


# Orthanc


def _small_study(patient: MadeUpPatient, number: int, day: date) -> tuple[bytes, Keys]:
    """One small instance of a study of its own, and the keys that find it."""
    accession = f"K{number % 7}-{number:08}"
    study = Study(
        Patient(patient.name, patient.patient_id, patient.birth_date, patient.sex),
        accession_number=accession,
        date=f"{day:%Y%m%d}",
    )
    image = secondary_capture(study=study)
    image.Rows = image.Columns = 2
    image.PixelData = bytes(4)
    keys = {
        "PatientID": patient.patient_id,
        "AccessionNumber": accession,
        "StudyDate": study.date,
        "PatientName": patient.name,
        "ModalitiesInStudy": "OT",
    }
    return part10(image), keys


def _load(port: int, seconds: float) -> list[Keys]:
    """Store as many studies as can be in that time, by several senders at once; the keys of all."""
    generator = random.Random(1)
    new = patients(generator)
    lock = threading.Lock()
    loaded: list[Keys] = []
    known: list[MadeUpPatient] = []
    until = time.monotonic() + seconds
    numbers = iter(range(1, 10**9))

    def send() -> None:
        connection = connect(port)
        while time.monotonic() < until:
            with lock:
                number = next(numbers)
                patient = generator.choice(known) if known and generator.random() < 0.55 else next(new)
                known.append(patient)
                day = date(2026, 11, 20) - timedelta(days=generator.randrange(8 * 365))
            content, keys = _small_study(patient, number, day)
            connection.request("POST", "/instances", content, {"Content-Type": "application/dicom"})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise RuntimeError(f"Orthanc answers {answer.status}")
            loaded.append(keys)

    senders = [threading.Thread(target=send) for _ in range(_SENDERS)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    return loaded


@contextmanager
def orthanc(directory: Path, seconds: int, samples: int, seed: int) -> Iterator[Target]:
    """Debian's Orthanc with its DICOMweb plugin, loaded as quickly as it goes: nothing synced, no digests."""
    folder = directory / f"query-orthanc-{seconds}"
    folder.mkdir(parents=True, exist_ok=True)
    web, dicom = free_port(), free_port()
    configuration = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "Plugins": [str(PLUGIN)] if PLUGIN.exists() else [],
        "DicomAet": "ORTHANC",
        "DicomPort": dicom,
        "DicomAlwaysAllowFind": True,
        "DicomModalities": {"bench": [ASKER, "127.0.0.1", 1]},
        "DefaultEncoding": "Utf8",
        "HttpPort": web,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "StoreMD5ForAttachments": False,
        "TcpNoDelay": True,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    log = folder / "log"
    ready = lambda: listens(web)() and listens(dicom)()  # noqa: E731
    with running([program("Orthanc"), str(folder / "orthanc.json")], log, {}, ready):
        kept = folder / "keys.json"
        if not kept.exists():
            print(f"Loading Orthanc for {seconds} s, once.", flush=True)
            kept.write_text(json.dumps(_load(web, seconds)))
        keys = json.loads(kept.read_text())
        chosen = random.Random(seed).sample(keys, min(samples, len(keys)))
        yield Target("Orthanc", web, {}, Address("ORTHANC", "127.0.0.1", dicom), len(keys), chosen)


def connect(port: int) -> http.client.HTTPConnection:
    """A connection that is kept open, without Nagle."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection

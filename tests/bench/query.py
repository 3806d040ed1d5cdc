"""Searches in an index of a million studies, by QIDO-RS and by C-FIND, beside Orthanc as large as it can be loaded.

Each request is timed from its first byte to the last one of its answer, over a connection or an association that is
kept open, with keys drawn at random from what is indexed. The indexes are filled once and kept under ``--dir``.
"""

import argparse
import http.client
import json
import os
import random
import secrets
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import psycopg
from pydicom.dataset import Dataset
from pynetdicom.dsutils import encode

from deploy.health import listens
from deploy.postgres import superuser_url
from deploy.processes import as_child, free_port, wait_until
from pacs_node.dimse.calling import Address, associate
from pacs_node.dimse.channel import Channel
from standards import upper_layer
from standards.tokens import generate_key, issue_image_token, public_key_to_text
from tests.factories.dicom import Patient, Study, part10, secondary_capture
from tests.factories.made_up_names import MadeUpPatient, patients

ROOT: Final = Path(__file__).parents[2]
ASKER: Final = "BENCH"
PLUGIN: Final = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
STUDY_ROOT_FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"
IMPLICIT: Final = "1.2.840.10008.1.2"
RETURNED: Final = (
    "StudyDate", "StudyTime", "AccessionNumber", "StudyDescription", "PatientName", "PatientBirthDate",
    "StudyInstanceUID", "ModalitiesInStudy",
)  # fmt: skip
LIMIT: Final = 101
"""What OHIF asks for."""
GOAL_MS: Final = 20.0
_PDU_HEAD: Final = struct.Struct(">BxL")
_SENDERS: Final = 3
_PREFIX_LETTERS: Final = 6

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


KINDS: Final[dict[str, Callable[[Keys], Keys]]] = {
    "id": lambda study: {"PatientID": study["PatientID"]},
    "accession": lambda study: {"AccessionNumber": study["AccessionNumber"]},
    "date": lambda study: {"StudyDate": study["StudyDate"]},
    "date, modality": lambda study: {
        "StudyDate": study["StudyDate"],
        "ModalitiesInStudy": study["ModalitiesInStudy"],
    },
    "name prefix": lambda study: {"PatientName": study["PatientName"].split("^")[0][:_PREFIX_LETTERS] + "*"},
    "name, given name": lambda study: {"PatientName": "^".join(study["PatientName"].split("^")[:2]) + "*"},
}


NOT_BY_C_FIND: Final = "name prefix"
"""It has no limit: the beginning of a common family name has thousands of answers."""


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
def _process(command: list[str], log: Path, environment: dict[str, str], ready: Callable[[], bool]) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=as_child(os.getpid()),
        )
    try:
        wait_until(ready, 300, f"{command[0]} answers")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@contextmanager
def _postgres(folder: Path) -> Iterator[str]:
    """A server of its own; the URL of the node's database."""
    port = free_port()
    code = f"from pathlib import Path; from deploy.postgres import *; become_server(Path({str(folder)!r}), {port})"
    if not (folder / "password").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _python(f"from pathlib import Path; from deploy.postgres import *; initialise(Path({str(folder)!r}))", {})
    with _process([sys.executable, "-c", code], folder / "log", {}, listens(port)):
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
    with _process(command, folder / "log", environment, lambda: listens(web)() and listens(dicom)()):
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
        connection = _connect(port)
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
    with _process([_program("Orthanc"), str(folder / "orthanc.json")], log, {}, ready):
        kept = folder / "keys.json"
        if not kept.exists():
            print(f"Loading Orthanc for {seconds} s, once.", flush=True)
            kept.write_text(json.dumps(_load(web, seconds)))
        keys = json.loads(kept.read_text())
        chosen = random.Random(seed).sample(keys, min(samples, len(keys)))
        yield Target("Orthanc", web, {}, Address("ORTHANC", "127.0.0.1", dicom), len(keys), chosen)


def _program(name: str) -> str:
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin") or ""


# Asking


def _connect(port: int) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class WebAsker:
    """QIDO-RS over one kept-alive connection."""

    def __init__(self, target: Target) -> None:
        self._connection = _connect(target.http_port)
        self._headers = {"Accept": "application/dicom+json", **target.headers}

    def ask(self, keys: Keys) -> tuple[float, int]:
        """Milliseconds, and how many studies came. Raises: RuntimeError when the answer is no list."""
        path = f"/dicom-web/studies?{urlencode({**keys, 'limit': LIMIT, 'includefield': '00081030,00080060'})}"
        begun = time.perf_counter()
        self._connection.request("GET", path, headers=self._headers)
        answer = self._connection.getresponse()
        body = answer.read()
        took = (time.perf_counter() - begun) * 1000
        if answer.status != 200:
            raise RuntimeError(f"{answer.status} {body[:300]!r}")
        return took, body.count(b'"0020000D"')


class DicomAsker:
    """C-FIND over one association; answers are taken off the wire and counted, not decoded."""

    def __init__(self, target: Target) -> None:
        self._channel: Channel = associate(
            target.dicom, calling=ASKER, contexts=[(STUDY_ROOT_FIND, [IMPLICIT])], timeout=120
        )
        self._read = self._channel.socket.makefile("rb", buffering=1 << 18).read
        self._known: dict[bytes, int] = {}

    def ask(self, keys: Keys) -> tuple[float, int]:
        """Milliseconds, and how many studies came. Raises: RuntimeError when the last status is no success."""
        query = Dataset()
        query.SpecificCharacterSet = "ISO_IR 192"
        query.QueryRetrieveLevel = "STUDY"
        for keyword in RETURNED:
            setattr(query, keyword, "")
        for keyword, value in keys.items():
            setattr(query, keyword, value)
        identifier = encode(query, True, True) or b""
        message_id = self._channel.next_message_id()
        found = 0
        begun = time.perf_counter()
        self._channel.send(
            1,
            {
                "CommandField": upper_layer.C_FIND_RQ,
                "MessageID": message_id,
                "AffectedSOPClassUID": STUDY_ROOT_FIND,
                "Priority": 0,
            },
            identifier,
        )
        while (status := self._status()) in (0xFF00, 0xFF01):
            found += 1
        took = (time.perf_counter() - begun) * 1000
        if status:
            raise RuntimeError(f"C-FIND ends with {status:04X}")
        return took, found

    def _status(self) -> int:
        """The status of the next response; its identifier, which follows in PDUs of its own, is left as it is."""
        while True:
            kind, length = _PDU_HEAD.unpack(self._read(_PDU_HEAD.size))
            if kind != upper_layer.P_DATA_TF:
                raise RuntimeError("the association is over")
            for piece in upper_layer.pdvs(self._read(length)):
                if piece.is_command:
                    return self._known_status(bytes(piece.data))

    def _known_status(self, command: bytes) -> int:
        # All pending responses of a query have the same command set.
        if command not in self._known:
            self._known = {command: int(upper_layer.decode_command(command)["Status"])}
        return self._known[command]


ASKERS: Final[dict[str, Callable[[Target], Any]]] = {"QIDO-RS": WebAsker, "C-FIND": DicomAsker}


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def measure(targets: list[Target], requests: int) -> bool:
    """Ask, print, and whether Regis kept to the goal."""
    kept = True
    for protocol, make in list(ASKERS.items())[int(os.environ.get("SKIPQ", "0")) :]:
        askers = {target.name: make(target) for target in targets}
        print(f"\n{protocol:<16}" + "".join(f"{f'{t.name}, {t.studies} studies':>46}" for t in targets))
        print(f"{'':<16}" + f"{'median':>16}{'p95':>12}{'answers':>18}" * len(targets))
        for kind, keys_of in KINDS.items():
            if protocol == "C-FIND" and kind == NOT_BY_C_FIND:
                continue
            line = f"{kind:<16}"
            times: dict[str, list[float]] = {target.name: [] for target in targets}
            found: dict[str, list[int]] = {target.name: [] for target in targets}
            for number in range(requests + 5):
                for target in targets:
                    keys = keys_of(target.samples[number % len(target.samples)])
                    took, studies = askers[target.name].ask(keys)
                    if not studies:
                        raise RuntimeError(f"{target.name} finds nothing for {keys}")
                    if number >= 5:  # the first ones fill caches
                        times[target.name].append(took)
                        found[target.name].append(studies)
            for target in targets:
                median, p95 = statistics.median(times[target.name]), _percentile(times[target.name], 0.95)
                line += f"{median:>13.1f} ms{p95:>9.1f} ms{statistics.mean(found[target.name]):>18.1f}"
                if target.name == "Regis node" and p95 > GOAL_MS:
                    kept = False
                    line += " !"
            print(line, flush=True)
    return kept


def main() -> None:
    """Parse, fill, measure."""
    parser = argparse.ArgumentParser(prog="regis bench query", description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="studies in the index of Regis")
    parser.add_argument("--requests", type=int, default=200, help="requests of each kind")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite", help="of Regis")
    parser.add_argument("--orthanc-seconds", type=int, default=600, help="how long Orthanc is loaded; 0: left out")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="which keys are drawn")
    parser.add_argument("--dir", type=Path, default=ROOT / "var" / "bench", help="where the indexes are kept")
    chosen = parser.parse_args()
    with_orthanc = bool(chosen.orthanc_seconds and _program("Orthanc") and PLUGIN.exists())
    if chosen.orthanc_seconds and not with_orthanc:
        print("Orthanc or its DICOMweb plugin is not installed and is left out.")
    count, seed, samples = chosen.count, chosen.seed, min(chosen.requests + 5, chosen.count)
    print(f"{chosen.requests} requests of each kind, seed {seed}; goal for Regis: p95 ≤ {GOAL_MS:.0f} ms", flush=True)
    with regis(chosen.dir, count, chosen.database, samples, seed) as ours:
        if with_orthanc:
            with orthanc(chosen.dir, chosen.orthanc_seconds, samples, seed) as theirs:
                kept = measure([ours, theirs], chosen.requests)
        else:
            kept = measure([ours], chosen.requests)
    print(f"\nRegis {'kept to' if kept else 'missed'} the goal: p95 ≤ {GOAL_MS:.0f} ms.")
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()

"""Foreign PACS for tests: Debian's Orthanc, DCMTK's dcmqrscp, and one whose quirks a test chooses."""

import contextlib
import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
)

from deploy.processes import as_child, free_port, port_is_free, wait_until
from gateway.envelope import ForeignSource

DICOMWEB_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@dataclass
class Orthanc:
    """Debian's Orthanc with DICOM and DICOMweb."""

    port: int = field(default_factory=free_port)
    web: int = field(default_factory=free_port)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def dicomweb_url(self) -> str:
        """Its DICOMweb service."""
        return f"http://127.0.0.1:{self.web}/dicom-web"

    def ask(self, path: str, body: object = None, method: str = "") -> Any:
        """Its REST API."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.web}{path}", data=data, method=method or None)
        with urllib.request.urlopen(request) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def take(self, dataset: Dataset, folder: Path) -> None:
        """Give it an instance."""
        path = folder / f"{dataset.SOPInstanceUID}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        self.ask("/instances", path.read_bytes())

    def forget(self, study_instance_uid: str) -> None:
        """Delete a study."""
        found = self.ask("/tools/find", {"Level": "Study", "Query": {"StudyInstanceUID": study_instance_uid}})
        for one in found:
            self.ask(f"/studies/{one}", method="DELETE")

    def source(self, **changes: Any) -> ForeignSource:
        """How a node is told of it."""
        said = {"name": "old-pacs", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": self.port}
        return ForeignSource.model_validate({**said, "url": self.dicomweb_url, "queries_per_minute": 6000, **changes})


@contextlib.contextmanager
def orthanc(folder: Path, modalities: dict[str, tuple[str, int]] | None = None, **settings: Any) -> Iterator[Orthanc]:
    """An Orthanc that runs until the block ends; ``modalities``: name to (AE title, port) that it knows."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
    program = shutil.which("Orthanc", path=path)
    if program is None or not DICOMWEB_PLUGIN.exists():
        pytest.skip("Orthanc with its DICOMweb plugin is not installed")
    one = Orthanc()
    folder.mkdir(parents=True, exist_ok=True)
    configuration = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [str(DICOMWEB_PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        "DicomAet": "ORTHANC",
        "DicomPort": one.port,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowMove": True,
        "DefaultEncoding": "Utf8",
        "MaximumStorageCacheSize": 0,
        "DicomModalities": {
            name: {"AET": ae_title, "Host": "127.0.0.1", "Port": port, "AllowStorageCommitment": True}
            for name, (ae_title, port) in (modalities or {}).items()
        },
        "HttpPort": one.web,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        **settings,
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(
            [program, str(folder / "orthanc.json")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=as_child(os.getpid()),
        )
    try:
        wait_until(lambda: not port_is_free(one.port) and not port_is_free(one.web), 120, "Orthanc listens")
        yield one
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def dcmqrscp(folder: Path, hosts: dict[str, int]) -> Iterator[int]:
    """DCMTK's archive ``OLDPACS``, which sends to these AEs (by port) and answers anybody; its port."""
    if shutil.which("dcmqrscp") is None:
        pytest.skip("dcmqrscp is not installed")
    port, storage = free_port(), folder / "store"
    storage.mkdir(parents=True)
    known = "\n".join(f"host{number} = ({ae}, 127.0.0.1, {at})" for number, (ae, at) in enumerate(hosts.items()))
    (folder / "dcmqrscp.cfg").write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
        f"HostTable BEGIN\n{known}\nHostTable END\nVendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nOLDPACS {storage} RW (200, 1024mb) ANY\nAETable END\n"
    )
    with (folder / "dcmqrscp.log").open("wb") as log:
        process = subprocess.Popen(
            ["dcmqrscp", "-v", "-c", str(folder / "dcmqrscp.cfg")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=as_child(os.getpid()),
        )
    try:
        wait_until(lambda: not port_is_free(port), 60, "dcmqrscp listens")
        yield port
    finally:
        process.terminate()
        process.wait(30)


def send_to(port: int, ae_title: str, datasets: list[Dataset], folder: Path) -> None:
    """Store these at a peer by DCMTK."""
    folder.mkdir(parents=True, exist_ok=True)
    for dataset in datasets:
        dataset.save_as(folder / f"{dataset.SOPInstanceUID}.dcm", enforce_file_format=True)
    done = subprocess.run(
        ["storescu", "-aec", ae_title, "+sd", "+r", "127.0.0.1", str(port), str(folder)],
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


Judge = Callable[[Dataset], list[Dataset] | int]


@contextlib.contextmanager
def quirky(judge: Judge, images: list[Dataset] | None = None) -> Iterator[tuple[int, list[Dataset]]]:
    """A C-FIND SCP that answers what ``judge`` says: data sets, or a failure status; its port, and what it was asked.

    To a C-GET it gives ``images``, whatever was asked for.
    """
    asked: list[Dataset] = []

    def on_find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        query = event.identifier
        asked.append(query)
        verdict = judge(query)
        if isinstance(verdict, int):
            yield verdict, None
            return
        for answer in verdict:
            yield 0xFF00, answer

    def on_get(event: evt.Event) -> Iterator[int | tuple[int, Dataset]]:
        asked.append(event.identifier)
        yield len(images or [])
        for image in images or []:
            yield 0xFF00, image

    entity = AE(ae_title="QUIRKY")
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelGet, ImplicitVRLittleEndian)
    entity.add_supported_context(CTImageStorage, ExplicitVRLittleEndian, scu_role=True, scp_role=True)
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind, ImplicitVRLittleEndian)
    port = free_port()
    server = entity.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_FIND, on_find), (evt.EVT_C_GET, on_get)]
    )
    try:
        yield port, asked
    finally:
        server.shutdown()

"""Storage commitment between a node and Orthanc, in both directions."""

import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.processes import free_port, port_is_free, wait_until
from tests.factories.dicom import ct_series
from tests.node.conftest import AE_TITLE, NodeProcess, need
from tests.node.test_dimse_commitment import pairs_of, store


@dataclass
class Orthanc:
    """Debian's Orthanc that knows the node."""

    port: int
    web: int

    def post(self, path: str, body: object) -> Any:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.web}{path}", data=data) as answer:
            return json.load(answer)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.web}{path}") as answer:
            return json.load(answer)


@pytest.fixture
def orthanc(tmp_path: Path, node_process: NodeProcess) -> Iterator[Orthanc]:
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
    program = shutil.which("Orthanc", path=path) or need("Orthanc")
    one = Orthanc(free_port(), free_port())
    configuration = {
        "StorageDirectory": str(tmp_path / "orthanc"),
        "IndexDirectory": str(tmp_path / "orthanc"),
        "Plugins": [],
        "DicomAet": "ORTHANC",
        "DicomPort": one.port,
        "DicomModalities": {
            "node": {
                "AET": AE_TITLE,
                "Host": "127.0.0.1",
                "Port": node_process.dicom_port,
                "AllowStorageCommitment": True,
            }
        },
        "HttpPort": one.web,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(configuration))
    node_process.admit("ORTHANC", host="127.0.0.1", port=one.port)
    with (tmp_path / "orthanc.log").open("wb") as log:
        process = subprocess.Popen([program, str(tmp_path / "orthanc.json")], stdout=log, stderr=log)
    try:
        wait_until(lambda: not port_is_free(one.port) and not port_is_free(one.web), 120, "Orthanc listens")
        yield one
    finally:
        process.terminate()
        process.wait(60)


def test_orthanc_asks_the_node_for_commitment(node_process: NodeProcess, orthanc: Orthanc) -> None:
    sets = store(node_process)
    answer = orthanc.post(
        "/modalities/node/storage-commitment",
        {"DicomInstances": [*({"SOPClassUID": a, "SOPInstanceUID": b} for a, b in pairs_of(sets))]},
    )
    wait_until(lambda: orthanc.get(answer["Path"])["Status"] != "Pending", 120, "the report reaches Orthanc")
    report = orthanc.get(answer["Path"])
    assert (report["Status"], report["RemoteAET"]) == ("Success", AE_TITLE)
    assert {item["SOPInstanceUID"] for item in report["Success"]} == {str(dataset.SOPInstanceUID) for dataset in sets}


def test_the_node_asks_orthanc_for_commitment(node_process: NodeProcess, orthanc: Orthanc, tmp_path: Path) -> None:
    sets = ct_series(2)
    sets[0].save_as(tmp_path / "one.dcm", enforce_file_format=True)
    orthanc.post("/instances", (tmp_path / "one.dcm").read_bytes())
    pairs = pairs_of(sets)
    node_process.python(f"from pacs_node.dimse.commitment import ask\nask('ORTHANC', {pairs!r})")
    query = "SELECT status, result FROM dimse_commitment WHERE role = 'scu' AND ae_title = 'ORTHANC'"
    wait_until(lambda: node_process.sql(query)[0][0] == "done", 120, "the answer of Orthanc")
    result = node_process.sql(query)[0][1]
    result = json.loads(result) if isinstance(result, str) else result
    assert result == {"committed": [list(pairs[0])], "failed": [[*pairs[1], 0x0112]]}

"""What the proxy counts is what happened, and every query of the ready Grafana board of a node has an answer."""

import json
import re
from pathlib import Path

import pytest
from django.test import Client

from deploy.processes import free_port, wait_until
from gateway.proxy.journal import SUPERVISOR_FIGURES, Journal
from pacs_node import proxying
from pacs_node.config import NodeConfig, config
from tests.factories.dicom import ct_series, part10
from tests.node.conftest import ROOT
from tests.node.proxied import COPY_ALL, Orthanc, Proxy, dcmtk

pytest_plugins = ["tests.node.old_pacs"]

BOARDS = ROOT / "deploy/grafana"


@pytest.fixture
def before_old_pacs(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = NodeConfig(**{**config().model_dump(), "proxy_pacs_host": "192.0.2.7", "proxy_pacs_port": 104})
    monkeypatch.setattr(proxying, "config", lambda: changed)


def shown(client: Client) -> dict[str, float]:
    """Metric with its labels → value."""
    lines = client.get("/metrics").content.decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def asked(board: Path) -> set[str]:
    """The metrics that a board asks for."""
    panels = json.loads(board.read_text(encoding="utf-8"))["panels"]
    return {
        name
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"regis_\w+", target["expr"])
    }  # fmt: skip


def test_each_board_is_tried_against_what_exports_its_metrics() -> None:
    """The region's board is tried at the centre (tests/central/test_region_figures.py), the node's below."""
    assert {path.name for path in BOARDS.glob("*.json")} == {"region.json", "node.json"}


@pytest.mark.django_db
@pytest.mark.usefixtures("before_old_pacs")
def test_every_query_of_the_nodes_board_names_a_metric_that_is_there(client: Client) -> None:
    one = Journal(proxying.folder())
    for label in ("associations:released", "associations-back:passed", "bytes:device", "copied:node", "forwarded:X"):
        one.count(label)
    one.event("copy-refused", destination="X")
    one.save()
    waiting = proxying.folder() / "spool" / "to" / "X"
    waiting.mkdir(parents=True)
    text = client.get("/metrics").content.decode()
    names = asked(BOARDS / "node.json")
    assert len(names) > 20
    exported = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
    assert names - exported == set()
    proxys = {name for name in names if name.startswith("regis_node_proxy_")}
    assert {name for name in proxys if not re.search(rf"^{name}(\{{|\s)", text, re.MULTILINE)} == set()
    waiting.rmdir()


@pytest.mark.django_db
def test_a_node_without_an_old_pacs_has_no_figures_of_a_proxy(client: Client) -> None:
    assert "regis_node_proxy" not in client.get("/metrics").content.decode()


@pytest.mark.django_db
@pytest.mark.usefixtures("before_old_pacs")
def test_figures_of_both_processes_are_added_up(
    client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(proxying, "folder", lambda _settings=None: tmp_path)
    worker, supervisor = Journal(tmp_path), Journal(tmp_path, SUPERVISOR_FIGURES)
    worker.missing('odd "reason" \\ of\nours: and more')
    supervisor.count("passed-blindly", 3)
    supervisor.missing("passed-blindly: the worker was down")
    for one in (worker, supervisor):
        one.count("bytes:device", 50)
        one.save()
    found = shown(client)
    assert found["regis_node_proxy_passed_blindly_total"] == 3
    assert found["regis_node_proxy_not_tapped_total"] == 2
    assert found['regis_node_proxy_bytes_total{to="device"}'] == 100
    assert found['regis_node_proxy_failures_total{reason="odd \\"reason\\" \\\\ of\\nours"}'] == 1


RULES = (
    COPY_ALL
    + f"""
[destinations.AWAY]
host = "127.0.0.1"
port = {free_port()}
[[rule]]
copy = "AWAY"
[[rule]]
when = {{ PatientID = "PHANTOM" }}
drop = true
[[rule]]
set = {{ InstitutionName = "Hospital" }}
"""
)


@pytest.mark.django_db
@pytest.mark.usefixtures("before_old_pacs")
def test_what_passes_is_counted(
    client: Client, monkeypatch: pytest.MonkeyPatch, proxy: Proxy, pacs: Orthanc, tmp_path: Path
) -> None:
    monkeypatch.setattr(proxying, "folder", lambda _settings=None: proxy.state_folder)
    proxy.rules = RULES
    proxy.start()
    (tmp_path / "in").mkdir()
    for number, dataset in enumerate(ct_series(3)):
        dataset.PatientID = "PHANTOM" if number == 2 else "P1"
        (tmp_path / "in" / f"{number}.dcm").write_bytes(part10(dataset))
    sent = dcmtk("storescu", proxy.port, "+sd", tmp_path / "in")
    assert sent.returncode == 0, sent.stderr
    assert dcmtk("echoscu", proxy.port).returncode == 0
    wait_until(lambda: shown(client).get('regis_node_proxy_copied_total{destination="AWAY"}') == 3, 90, "it is counted")
    released = 'regis_node_proxy_associations_total{outcome="released"}'
    wait_until(lambda: shown(client).get(released) == 2, 90, "both associations are counted")
    wait_until(lambda: not shown(client)["regis_node_proxy_associations_open"], 60, "all have ended")
    found = shown(client)
    assert found["regis_node_proxy_up"] == 1
    assert found["regis_node_proxy_instances_total"] == 3
    assert found["regis_node_proxy_tapped_total"] == 3
    assert found["regis_node_proxy_dropped_total"] == 1
    assert found["regis_node_proxy_rewritten_total"] == 2
    assert found['regis_node_proxy_spool_waiting{destination="AWAY"}'] == 3
    assert found['regis_node_proxy_spool_waiting{destination="node"}'] == 3
    sizes = sum(path.stat().st_size for path in (tmp_path / "in").iterdir())
    assert sizes < found['regis_node_proxy_bytes_total{to="old_pacs"}'] < sizes + 20_000
    assert 0 < found['regis_node_proxy_bytes_total{to="device"}'] < 20_000
    pacs.stop()
    assert dcmtk("echoscu", proxy.port).returncode != 0
    away = 'regis_node_proxy_associations_total{outcome="old-pacs-away"}'
    wait_until(lambda: shown(client).get(away) == 1, 60, "the refusal is counted")
    failed = 'regis_node_proxy_failures_total{reason="old-pacs-away"}'
    wait_until(lambda: shown(client).get(failed) == 1, 60, "and its reason")

"""The page of the proxy, and the node's own mending of devices whose texts are not what they declare."""

import json
import time
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.test import Client

from deploy.processes import free_port
from gateway.proxy.journal import Journal, now
from pacs_node import doctor, proxying
from pacs_node.backup import _own_files
from pacs_node.clinic.actions import add_person
from pacs_node.clinic.models import ApplicationEntity
from pacs_node.config import NodeConfig, config
from pacs_node.dimse import views
from pacs_node.dimse.admission import writes
from pacs_node.proxying import folder
from pacs_node.storage.stores import storage
from pacs_node.study_index.actions import ingest
from pacs_node.study_index.models import Study
from tests.factories.dicom import ct_series, part10
from tests.unit.gateway.test_proxy_rewriting import lie

pytestmark = pytest.mark.django_db


@pytest.fixture
def engineer(client: Client) -> Client:
    password = add_person("engineer-test", engineer=True, actor="test")
    assert client.login(username="engineer-test", password=password)
    return client


@pytest.fixture
def before_old_pacs(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = NodeConfig(**{**config().model_dump(), "proxy_pacs_host": "192.0.2.7", "proxy_pacs_port": 104})
    monkeypatch.setattr(views, "config", lambda: changed)


def test_a_node_without_an_old_pacs_says_how_to_put_it_before_one(engineer: Client) -> None:
    assert "REGIS_NODE_PROXY_PACS_HOST" in engineer.get("/proxy/").content.decode()


@pytest.mark.usefixtures("before_old_pacs")
def test_the_page_tells_of_lies_losses_and_broken_rules(engineer: Client) -> None:
    one = Journal(folder())
    one.detected("US1", "ISO_IR 100", "Windows-1251", sure=True, preview="Щёголев^Пётр")
    one.missing("too-slow", sop_instance_uid="1.2.3.4.5", calling_ae_title="CT1")
    one.event("worker-died", reason="it ended with -9")
    one.facts["rules"] = {"state": "broken", "error": "rule 2 «typo»", "using": "last-good", "path": "/etc/rules.toml"}
    one.count("instances", 7)
    one.facts["open"] = [
        {"calling_ae_title": "MR7", "called_ae_title": "OLDPACS", "address": "192.0.2.9", "since": now()}
    ]
    one.save()
    page = engineer.get("/proxy/").content.decode()
    for told in (
        "US1",
        "Windows-1251",
        "Щёголев^Пётр",
        "1.2.3.4.5",
        "too-slow",
        "rule 2 «typo»",
        "it ended with -9",
        "MR7",
    ):
        assert told in page, told
    assert "Passes and copies" in page


@pytest.mark.usefixtures("before_old_pacs")
def test_figures_that_are_old_mean_that_nothing_is_copied(engineer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    Journal(folder()).save()
    later = time.time() + 600
    monkeypatch.setattr(time, "time", lambda: later)
    assert "Copies nothing" in engineer.get("/proxy/").content.decode()


def test_names_are_for_engineers_alone(client: Client) -> None:
    Journal(folder()).detected("US1", "", "KOI8-R", sure=True, preview="Щёголев^Пётр")
    password = add_person("reader-test", engineer=False, actor="test")
    assert client.login(username="reader-test", password=password)
    answer = client.get("/proxy/")
    assert answer.status_code == 403
    assert "Щёголев" not in answer.content.decode()
    assert User.objects.filter(username="reader-test").exists()


@pytest.mark.parametrize(
    ("quirk", "written_in"),
    [
        ("writes-windows-1251", "cp1251"),
        ("writes-koi8-r", "koi8_r"),
        ("writes-utf-8", "utf_8"),
        ("writes-cp866", "cp866"),
    ],
)
def test_the_node_reads_a_device_as_its_rule_says_and_keeps_the_bytes(
    tmp_path: Path, quirk: str, written_in: str, client: Client
) -> None:
    entity = ApplicationEntity.objects.create(ae_title="US1", character_set="ISO_IR 144", quirks=[quirk])
    data = lie(written_in, "ISO_IR 100")
    whole = part10(ct_series(1)[0])
    path = tmp_path / "one.dcm"
    path.write_bytes(whole[: 144 + int.from_bytes(whole[140:144], "little")] + data)
    with path.open("rb") as file:
        file.seek(len(path.read_bytes()) - len(data))
        taken = ingest(
            file,
            source_ae_title="US1",
            expected_sop_class="1.2.840.10008.5.1.4.1.1.2",
            transfer_syntax="1.2.840.10008.1.2.1",
            default_character_set=writes(entity.character_set, entity.quirks),
            expected_sop_instance=_uid(data),
        )
    assert taken.outcome == "stored"
    study = Study.objects.get()
    assert "Щёголев^Пётр" in json.dumps(study.attributes, ensure_ascii=False) + study.patient_name
    (instance,) = study.series.get().instances.all()
    with storage().open(instance.path) as stored:
        assert stored.read().endswith(data)


def _uid(data: bytes) -> str:
    at = data.index(b"\x08\0\x18\0UI") + 6
    return data[at + 2 : at + 2 + int.from_bytes(data[at : at + 2], "little")].rstrip(b"\0").decode()


def test_the_doctor_looks_at_the_old_pacs_and_at_the_rules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text('[[rule]]\nname = "typo"\ncopi = "node"\n', encoding="utf-8")
    port = free_port()
    behind = {"proxy_pacs_host": "127.0.0.1", "proxy_pacs_port": port, "proxy_rules": tmp_path / "rules.toml"}
    changed = NodeConfig(**{**config().model_dump(), **behind})
    monkeypatch.setattr(doctor, "config", lambda: changed)
    said = {finding.about: finding for finding in doctor.findings()}
    assert not said["old PACS behind the proxy"].well
    assert not said["proxy rules"].well
    assert "«typo»" in said["proxy rules"].sentence


def test_a_backup_keeps_the_key_of_pseudonyms_and_leaves_what_is_on_its_way() -> None:
    proxying.pseudonym_secret(config())
    waiting = folder() / "spool" / "to" / "node" / "0-1-2-31.dcm"
    waiting.parent.mkdir(parents=True, exist_ok=True)
    waiting.write_bytes(b"on its way")
    try:
        kept = list(_own_files())
    finally:
        waiting.unlink()
    assert (config().data_dir / "secrets" / "pseudonyms.key").absolute() in kept
    assert waiting.absolute() not in kept

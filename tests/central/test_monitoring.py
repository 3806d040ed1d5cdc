"""The sites page tells the truth about nodes; refused devices are shown and let in."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from django.conf import settings
from django.db import connection
from django.test import Client
from django.utils import timezone

from gateway.envelope import AssociationRefused, Event
from ris_central.accounts.models import Role, User
from ris_central.audit import sealer
from ris_central.backups import backup, restore
from ris_central.federation.models import Command, Node
from ris_central.monitoring import actions, queries
from ris_central.monitoring.models import RefusedAssociation
from ris_central.monitoring.tasks import heartbeat
from ris_central.orders.models import Device
from ris_central.organizations.models import Site
from standards.errors import PermanentError
from tests.factories import centre

pytestmark = pytest.mark.django_db
Browser = Callable[[User | None], Client]


def refusal(seq: int = 1, title: str = "NEW_CT", address: str = "10.0.0.9") -> Event:
    body = AssociationRefused(calling_ae_title=title, called_ae_title="NODE", address=address, reason="unknown AE")
    return Event(epoch="e", seq=seq, occurred_at=timezone.now(), body=body)


def heard(node: Node, seconds_ago: int, **status: object) -> Node:
    node.last_seen_at = timezone.now() - timedelta(seconds=seconds_ago)
    node.status = {"clock": node.last_seen_at.isoformat(), "free_bytes": 10**12, "version": "1", **status}
    node.save()
    return node


@pytest.mark.parametrize(
    ("seconds_ago", "status", "state"),
    [
        (5, {}, "ok"),
        (600, {}, "bad"),
        (5, {"free_bytes": 10**9}, "warn"),
        (5, {"oldest_waiting_seconds": 3600}, "warn"),
        (5, {"clock": "2020-01-01T00:00:00+00:00"}, "warn"),
    ],
)
def test_a_node_is_shown_as_it_is(seconds_ago: int, status: dict[str, object], state: str) -> None:
    assert queries.state_of(heard(centre.node(centre.site()), seconds_ago, **status)).state == state


def test_a_node_that_has_not_joined_waits() -> None:
    node = Node.objects.create(site=centre.site(), name="n", kind=Node.Kind.CLINIC)
    assert queries.state_of(node).state == "waiting"


def test_a_refused_device_is_one_row_with_a_count_and_is_admitted_by_a_click(browser_of: Browser) -> None:
    site = centre.site()
    node = heard(centre.node(site), 5)
    for seq in (1, 2, 3):
        actions.take_association_refused(node, refusal(seq))
    row = RefusedAssociation.objects.get()
    assert (row.count, row.reason) == (3, "unknown AE")
    browser = browser_of(centre.user(Role.ENGINEER, site))
    assert "NEW_CT" in browser.get("/sites/").content.decode()
    assert browser.post(f"/sites/refused/{row.pk}/admit/").status_code == 302
    device = Device.objects.get()
    assert (device.ae_title, device.node, device.address, device.modality) == ("NEW_CT", node, "10.0.0.9", "")
    sent = Command.objects.filter(node=node, type="devices").get().body["devices"]
    assert [rule["ae_title"] for rule in sent] == ["NEW_CT"]
    assert "NEW_CT" not in browser.get("/sites/").content.decode()
    actions.take_association_refused(node, refusal(4))
    assert "NEW_CT" in browser.get("/sites/").content.decode()


def test_an_engineer_of_another_site_neither_sees_nor_admits_it(browser_of: Browser) -> None:
    actions.take_association_refused(centre.node(centre.site()), refusal())
    browser = browser_of(centre.user(Role.ENGINEER, centre.site("b")))
    assert "NEW_CT" not in browser.get("/sites/").content.decode()
    assert browser.post(f"/sites/refused/{RefusedAssociation.objects.get().pk}/admit/").status_code == 404
    assert browser.get(f"/sites/{centre.site().pk}/").status_code == 404


def test_the_administrator_adds_a_site_and_shows_its_join_code_once(browser_of: Browser) -> None:
    browser = browser_of(centre.user(Role.ADMINISTRATOR))
    form = {"code": "new", "name": "New clinic", "kind": "own_pacs", "accession_prefix": "n", "time_zone": "Asia/Omsk"}
    made = browser.post("/sites/new/", form)
    site = Site.objects.get(code="new")
    assert (made.status_code, site.accession_prefix, site.issuer_of_patient_id) == (302, "N", "NEW")
    assert browser.post("/sites/new/", form).status_code == 422
    browser.post(f"/sites/{site.pk}/join-code/", {"name": "new"})
    assert "regis node join" in browser.get(f"/sites/{site.pk}/").content.decode()
    assert "regis node join" not in browser.get(f"/sites/{site.pk}/").content.decode()


def test_health_and_metrics_name_the_parts(client: Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok", "database": True, "redis": True, "worker": False}
    heartbeat()
    assert client.get("/healthz").json()["worker"] is True
    heard(centre.node(centre.site()), 5, deliveries_waiting=7)
    text = client.get("/metrics").content.decode()
    assert 'regis_up{part="worker"} 1' in text
    assert 'regis_node_deliveries_waiting{node="node-a"} 7' in text


def rows_of(url: str) -> dict[str, list[tuple[object, ...]]]:
    with psycopg.connect(url) as database:
        names = [
            row[0] for row in database.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
        ]
        return {name: database.execute(f'SELECT * FROM "{name}" ORDER BY 1').fetchall() for name in names}


def test_a_restored_centre_is_the_one_that_was_backed_up(
    transactional_db: None, tmp_path: Path, postgres_database: str
) -> None:
    centre.booking(centre.site())
    sealer.seal()
    here = f"{postgres_database.rpartition('/')[0]}/{connection.settings_dict['NAME']}"
    backup(here, settings.CONFIG.data_dir, tmp_path / "backup.zip")
    assert (tmp_path / "backup.zip").stat().st_mode & 0o777 == 0o600
    restore(tmp_path / "backup.zip", postgres_database, tmp_path / "restored")
    assert rows_of(postgres_database) == rows_of(here)
    key = (settings.CONFIG.data_dir / "secrets" / "django.key").read_text()
    assert (tmp_path / "restored" / "secrets" / "django.key").read_text() == key
    with psycopg.connect(postgres_database) as database:
        number = database.execute("SELECT nextval('patients_patient_id_seq')").fetchone()
        highest = database.execute("SELECT max(id) FROM patients_patient").fetchone()
        assert number is not None
        assert highest is not None
        assert number[0] > highest[0]
        with pytest.raises(psycopg.errors.RaiseException, match="audit trail cannot be deleted"):
            database.execute("DELETE FROM audit_auditevent")
    with pytest.raises(PermanentError, match="database-not-empty"):
        restore(tmp_path / "backup.zip", postgres_database, tmp_path / "restored")


def test_a_damaged_backup_is_refused_before_anything_is_written(tmp_path: Path, postgres_database: str) -> None:
    target = tmp_path / "backup.zip"
    here = f"{postgres_database.rpartition('/')[0]}/{connection.settings_dict['NAME']}"
    backup(here, settings.CONFIG.data_dir, target)
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 1
    target.write_bytes(content)
    with pytest.raises(PermanentError, match="backup-damaged"):
        restore(target, postgres_database, tmp_path / "restored")
    assert rows_of(postgres_database) == {}
    assert not (tmp_path / "restored").exists()
    target.write_text("not a zip")
    with pytest.raises(PermanentError, match="backup-damaged"):
        restore(target, postgres_database, tmp_path / "restored")

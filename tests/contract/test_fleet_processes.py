"""A fleet of real processes: keys that change under fire, wrong clocks, a centre of yesterday, a node trusted
no more.
"""

import os
import random
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.contract.fleet import Fleet
from tests.contract.parts import CENTRE, Part, succeed
from tests.contract.region import NodeUnderTest, make_series, region

pytestmark = pytest.mark.timeout(1500)

A_DAY_BEHIND = (
    "import time\nfrom datetime import timedelta\nfrom django.utils import timezone\n"
    "real, now = time.time, timezone.now\n"
    "time.time = lambda: real() - 86400\n"
    "timezone.now = lambda: now() - timedelta(days=1)\n"
)
"""A machine whose clock is wrong, as far as a program of ours can tell."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with region(tmp_path_factory.mktemp("fleet")) as made:
        fleet = Fleet(made)
        fleet.start()
        yield fleet


@pytest.fixture(autouse=True)
def _at_work(shared: Fleet) -> None:
    shared.region.revive(shared.archive, shared.clinic)


def test_keys_change_while_both_ends_are_killed_and_no_study_is_lost(shared: Fleet, tmp_path: Path) -> None:
    first, _ = shared.send_study(tmp_path / "before")
    shared.until(lambda: shared.mirrored(first, 3), "the study before is mirrored")
    old = {node.name: shared.key_of(node) for node in (shared.archive, shared.clinic)}
    for node in (shared.archive, shared.clinic):
        shared.region.send(node.name, {"type": "key.rotate", "reason": "test"})
    for round_number in range(4):
        time.sleep(random.uniform(0.2, 2.5))  # where in the change it hits is the point
        victim = [shared.clinic.gateway, shared.archive.gateway, shared.region.centre][round_number % 3]
        victim.kill()
        if victim is shared.region.centre:
            shared.region.start_centre()
        else:
            victim.start()

    def changed(node: NodeUnderTest) -> bool:
        return shared.key_at_centre(node) == shared.key_of(node) != old[node.name]

    for node in (shared.archive, shared.clinic):
        shared.until(lambda node=node: changed(node), f"{node.name} has a new key that the centre knows")
    second, uids = shared.send_study(tmp_path / "after")
    shared.until(lambda: shared.mirrored(second, 3), "the study after is mirrored")
    assert set(uids) <= set(shared.archive.held())
    attempts = shared.clinic.query(
        "SELECT status, released_at FROM gateway_delivery WHERE study_instance_uid = ?", first
    )
    assert {row[0] for row in attempts} == {"receipted"}, "what the old key receipted need not be proved again"
    former = shared.region.ask("SELECT public_key, rotated FROM federation_formerkey ORDER BY id")
    assert {row[0] for row in former} >= set(old.values())


def test_a_node_whose_clock_is_off_by_a_day_goes_on_and_says_so(shared: Fleet, tmp_path: Path) -> None:
    gateway = shared.clinic.gateway
    gateway.kill()
    start = "import runpy, sys\nsys.argv = ['deploy.parts', 'node', 'run', 'gateway']\n"
    start += "runpy.run_module('deploy.parts', run_name='__main__')\n"
    slow = Part("clinic-slow-clock", ["-c", A_DAY_BEHIND + start], shared.clinic.environment, gateway.log)
    slow.start()
    try:

        def known() -> bool:
            row = shared.region.ask(
                "SELECT clock_skew_seconds, status->>'clock_offset_seconds' FROM federation_node WHERE name = 'clinic'"
            )[0]
            return abs(int(str(row[0] or 0)) + 86400) < 120 and abs(int(str(row[1] or 0)) - 86400) < 120

        shared.until(known, "the centre knows how wrong the clock is, and the node signs by the centre's")
        study, _ = make_series(3, tmp_path)
        take_in = (
            "import sys, django; from pathlib import Path; django.setup()\n"
            "from pacs_node.study_index.actions import ingest\n"
            "for path in sorted(Path(sys.argv[1]).glob('*.dcm')): ingest(path, source_ae_title='SCANNER')"
        )
        succeed(["-c", A_DAY_BEHIND + take_in, str(tmp_path)], shared.clinic.environment)
        shared.until(lambda: shared.mirrored(study, 3), "a study is mirrored by a node with a wrong clock")
        shared.until(lambda: shared.all_known_at_centre(study, 3), "and the centre hears of it")
        when = shared.region.ask(
            "SELECT extract(epoch FROM occurred_at) FROM federation_inboxevent e JOIN federation_node n"
            " ON n.id = e.node_id WHERE n.name = 'clinic' AND e.type = 'series.changed'"
            " AND e.body->'study'->>'study_instance_uid' = %s ORDER BY e.id DESC LIMIT 1",
            study,
        )[0][0]
        assert abs(float(str(when)) - time.time()) < 3600, "what is told has the region's time"
    finally:
        slow.kill()
        gateway.start()
    shared.until(
        lambda: shared.clinic.query("SELECT clock_offset_seconds FROM gateway_joinstate")[0][0] == 0,
        "a clock that is right again is not corrected",
    )


def _restore_centre(fleet: Fleet, backup: Path) -> None:
    """Put the backup into an empty database and data folder, as a person would after a fire."""
    made = fleet.region
    made.centre.kill()
    server = os.environ["REGIS_TEST_POSTGRES_URL"]
    name = f"regis_contract_{secrets.token_hex(6)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    made.database_url = f"{server.rpartition('/')[0]}/{name}"
    made.centre.environment |= {
        "REGIS_CENTRE_DATABASE_URL": made.database_url,
        "REGIS_CENTRE_DATA_DIR": str(made.directory / f"centre-{name}"),
    }
    succeed([*CENTRE, "restore", str(backup)], made.centre.environment)
    succeed([*CENTRE, "migrate"], made.centre.environment)
    made.start_centre()


def test_a_centre_of_yesterday_is_made_whole_by_its_nodes(shared: Fleet, tmp_path: Path) -> None:
    fleet = shared
    backup = tmp_path / "centre.zip"
    first, _ = fleet.send_study(tmp_path / "first")
    fleet.until(lambda: fleet.mirrored(first, 3), "mirrored before the backup")
    succeed([*CENTRE, "backup", str(backup)], fleet.region.centre.environment)
    second, _ = fleet.send_study(tmp_path / "second")
    fleet.until(lambda: fleet.all_known_at_centre(second, 3), "the centre knows the study of after the backup")
    before = fleet.key_at_centre(fleet.clinic)
    fleet.region.send("clinic", {"type": "key.rotate"})
    fleet.until(lambda: fleet.key_at_centre(fleet.clinic) != before, "a key was changed after the backup")
    fleet.region.shell(
        "from ris_central.federation import configurations\n"
        "from ris_central.federation.models import Node\n"
        "configurations.save(Node.objects.get(name='clinic'), {'mirror': {'night_since': '19:00'}})\n"
    )
    fleet.until(
        lambda: "19:00" in str(fleet.clinic.query("SELECT configuration FROM gateway_joinstate")[0][0]),
        "the node has a configuration that the backup does not know",
    )
    present = fleet.key_of(fleet.clinic)
    _restore_centre(fleet, backup)
    fleet.until(lambda: fleet.all_known_at_centre(second, 3), "the study of after the backup came back by itself")
    fleet.until(lambda: fleet.key_at_centre(fleet.clinic) == present, "the key of after the backup too")
    fleet.until(
        lambda: (
            fleet.region.ask("SELECT restored_at IS NOT NULL FROM federation_node WHERE name = 'clinic'")[0][0] is True
        ),
        "the centre noticed that it was restored",
    )
    third, _ = fleet.send_study(tmp_path / "third")
    fleet.until(lambda: fleet.all_known_at_centre(third, 3), "and the work goes on")
    gaps = fleet.region.ask(
        "SELECT node_id, epoch, count(*), max(seq), min(seq) FROM federation_inboxevent GROUP BY 1, 2"
    )
    assert all(count == highest - lowest + 1 for _, _, count, highest, lowest in gaps)  # type: ignore[operator]
    doubled = fleet.region.ask("SELECT study_instance_uid FROM catalogue_study GROUP BY 1 HAVING count(*) > 1")
    assert doubled == []


def test_a_node_restored_from_its_backup_begins_anew_and_nothing_is_lost(shared: Fleet, tmp_path: Path) -> None:
    fleet, clinic = shared, shared.clinic
    backup = tmp_path / "clinic.tar"
    assert clinic.manage("backup", str(backup)).returncode == 0
    after, uids = fleet.send_study(tmp_path / "after")
    fleet.until(lambda: fleet.all_known_at_centre(after, 3), "a study came after the backup")
    epoch = clinic.query("SELECT epoch FROM gateway_joinstate")[0][0]
    clinic.gateway.kill()
    clinic.pacs.kill()
    for path in clinic.directory.glob("node.sqlite3*"):
        path.unlink()  # the disk of the database died; the files of the images did not
    done = clinic.manage("restore", str(backup))
    assert done.returncode == 0, done.stdout + done.stderr
    clinic.gateway.start()
    fleet.until(
        lambda: clinic.query("SELECT epoch FROM gateway_joinstate")[0][0] != epoch, "the node speaks under a new epoch"
    )
    assert set(uids) <= set(clinic.held()), "what came after the backup was read from the files again"
    last, _ = fleet.send_study(tmp_path / "last")
    fleet.until(lambda: fleet.all_known_at_centre(last, 3), "and the work goes on")
    assert fleet.region.ask("SELECT study_instance_uid FROM catalogue_study GROUP BY 1 HAVING count(*) > 1") == []


def test_a_revoked_node_is_refused_at_once_here_and_at_the_archive(shared: Fleet, tmp_path: Path) -> None:
    fleet = shared
    fleet.region.shell(
        "from ris_central.federation import actions\n"
        "from ris_central.federation.models import Node\n"
        "actions.revoke(Node.objects.get(name='clinic'))\n"
    )
    fleet.until(
        lambda: "clinic" not in str(fleet.archive.query("SELECT directory FROM gateway_joinstate")[0][0]),
        "the archive forgot it",
    )
    study, uids = make_series(2, tmp_path)
    fleet.region.take_in(fleet.clinic, tmp_path)
    fleet.until(
        lambda: "node-revoked" in str(fleet.clinic.query("SELECT last_error FROM gateway_joinstate")[0][0]),
        "the node says why nothing goes",
    )
    assert not set(uids) & set(fleet.archive.held())
    code = fleet.region.join_code("a", "clinic", "clinic")
    joined = fleet.clinic.manage("join", "--force", fleet.region.centre_url, code)
    assert joined.returncode == 0, joined.stderr
    fleet.until(lambda: fleet.mirrored(study, 2), "taken in again, it goes on where it stopped")

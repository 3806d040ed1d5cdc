"""A fleet of real processes: keys that change under fire, wrong clocks, a centre of yesterday, neighbours of another
version.
"""

import io
import os
import random
import secrets
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from deploy.processes import wait_until
from tests.contract.region import CENTRE, NODE, ROOT, NodeUnderTest, Part, Region, make_series, region, run, succeed

pytestmark = pytest.mark.timeout(1500)

PATIENT = 240.0
PREVIOUS = "24efaee"
"""The version before: the last commit that spoke the wire of the first release."""


A_DAY_BEHIND = (
    "import time\nfrom datetime import timedelta\nfrom django.utils import timezone\n"
    "real, now = time.time, timezone.now\n"
    "time.time = lambda: real() - 86400\n"
    "timezone.now = lambda: now() - timedelta(days=1)\n"
)
"""A machine whose clock is wrong, as far as a program of ours can tell."""


class Fleet:
    """A centre, an archive and a clinic."""

    def __init__(self, made: Region) -> None:
        self.region = made
        self.archive = made.add_node("archive", "archive")
        self.clinic = made.add_node("clinic", "clinic")

    def start(self) -> None:
        codes = self.region.prepare(("centre", "archive", "archive"), ("a", "clinic", "clinic"))
        self.region.start_centre()
        for node in (self.archive, self.clinic):
            self.region.join(node, codes[node.name])
        self.region.start_pacs(self.archive)
        self.archive.gateway.start()
        self.clinic.gateway.start()

    def until(self, ready: object, what: str, seconds: float = PATIENT) -> None:
        try:
            wait_until(ready, seconds, what)  # type: ignore[arg-type]
        except TimeoutError:
            pytest.fail(f"{what}\n{self.region.last_words()}")

    def key_at_centre(self, node: NodeUnderTest) -> str:
        return str(self.region.ask("SELECT public_key FROM federation_node WHERE name = %s", node.name)[0][0])

    def key_of(self, node: NodeUnderTest) -> str:
        return str(
            run(
                ["-c", "import sys; from pathlib import Path; from gateway.keys import node_key, public_text\n"
                 "print(public_text(node_key(Path(sys.argv[1]))))", str(node.directory)],
                node.environment,
            ).stdout.strip()
        )  # fmt: skip

    def mirrored(self, study: str, count: int) -> bool:
        rows = self.clinic.query("SELECT status FROM gateway_delivery WHERE study_instance_uid = ?", study)
        return [row[0] for row in rows] == ["receipted"] * count

    def heard_since(self, node: NodeUnderTest, moment: float) -> bool:
        seen = self.region.ask(
            "SELECT extract(epoch FROM last_seen_at) FROM federation_node WHERE name = %s", node.name
        )
        return seen[0][0] is not None and float(str(seen[0][0])) > moment

    def send_study(self, folder: Path, count: int = 3) -> tuple[str, list[str]]:
        study, uids = make_series(count, folder)
        self.region.take_in(self.clinic, folder)
        return study, uids

    def all_known_at_centre(self, study: str, count: int) -> bool:
        rows = self.region.ask(
            "SELECT instances_known, instances_safe FROM catalogue_study WHERE study_instance_uid = %s", study
        )
        return rows == [(count, count)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with region(tmp_path_factory.mktemp("fleet")) as made:
        fleet = Fleet(made)
        fleet.start()
        yield fleet


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
        when = shared.region.ask(
            "SELECT extract(epoch FROM occurred_at) FROM federation_inboxevent e JOIN federation_node n"
            " ON n.id = e.node_id WHERE n.name = 'clinic' AND e.type = 'series.changed' ORDER BY e.id DESC LIMIT 1"
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


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of the version before, from this repository's history."""
    known = subprocess.run(
        ["git", "cat-file", "-e", f"{PREVIOUS}^{{commit}}"], cwd=ROOT, capture_output=True, check=False
    )
    if known.returncode:
        pytest.skip(f"the history has no {PREVIOUS}: a shallow clone or an export")
    folder = tmp_path_factory.mktemp("older")
    packed = subprocess.run(["git", "archive", PREVIOUS], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive:
            if member.isreg() or member.isdir():
                archive.extract(member, folder)
    return folder


def of_version(part: Part, folder: Path) -> None:
    """Have this process run another version of the program from now on."""
    starter = f"import os, sys, runpy; os.chdir({str(folder)!r}); sys.path.insert(0, {str(folder)!r})\n"
    call = (
        f"sys.argv = {['deploy.parts', *part.arguments[2:]]!r}\nrunpy.run_module('deploy.parts', run_name='__main__')"
    )
    part.arguments = ["-c", starter + call]


def manage_older(folder: Path, what: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, *what],
        cwd=folder,
        env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Mixed:
    """A region of a centre, an archive and a clinic, of which some run the version before."""

    def __init__(self, made: Region, older: Path, *, old_centre: bool) -> None:
        self.fleet = Fleet.__new__(Fleet)
        self.fleet.region, self.older, self.old_centre = made, older, old_centre
        self.now: dict[str, list[str]] = {}

    def add_nodes(self) -> None:
        """Nodes whose database is that of the version they run."""
        fleet, made = self.fleet, self.fleet.region
        fleet.archive, fleet.clinic = made.add_node("archive", "archive"), made.add_node("clinic", "clinic")
        if not self.old_centre:
            for node in (fleet.archive, fleet.clinic):
                for path in node.directory.glob("node.sqlite3*"):
                    path.unlink()
                manage_older(self.older, [*NODE, "migrate"], node.environment)

    def run_older(self, *parts: Part) -> None:
        for part in parts:
            self.now[part.name] = part.arguments
            of_version(part, self.older)

    def upgrade(self, part: Part) -> None:
        part.stop()
        part.arguments = self.now[part.name]


def join_older(mixed: Mixed, node: NodeUnderTest, code: str) -> None:
    manage_older(mixed.older, [*NODE, "join", mixed.fleet.region.centre_url, code], node.environment)


def take_in_older(mixed: Mixed, folder: Path) -> None:
    take_in = (
        "import sys, django; from pathlib import Path; django.setup()\n"
        "from pacs_node.study_index.actions import ingest\n"
        "for path in sorted(Path(sys.argv[1]).glob('*.dcm')): ingest(path, source_ae_title='SCANNER')"
    )
    manage_older(mixed.older, ["-c", take_in, str(folder)], mixed.fleet.clinic.environment)


def test_a_centre_a_version_ahead_works_with_its_nodes_and_they_are_upgraded_without_losing_a_job(
    older: Path, tmp_path: Path
) -> None:
    with region(tmp_path / "region") as made:
        mixed = Mixed(made, older, old_centre=False)
        mixed.add_nodes()
        fleet = mixed.fleet
        nodes = (fleet.archive, fleet.clinic)
        codes = made.prepare(("centre", "archive", "archive"), ("a", "clinic", "clinic"))
        made.start_centre()
        for node in nodes:
            mixed.run_older(node.pacs, node.gateway)
            join_older(mixed, node, codes[node.name])
        made.start_pacs(fleet.archive)
        fleet.archive.gateway.start()
        fleet.clinic.gateway.start()
        study, _ = make_series(3, tmp_path / "old")
        take_in_older(mixed, tmp_path / "old")
        fleet.until(lambda: fleet.all_known_at_centre(study, 3), "an old node delivers to a new centre")
        made.shell(
            "from ris_central.federation import configurations, trust\n"
            "from ris_central.federation.models import Node\n"
            "node = Node.objects.get(name='clinic')\n"
            "configurations.save(node, {'mirror': {'night_since': '18:30'}})\n"
            "trust.ask_rotation(node)\n"
        )
        made.send("clinic", {"type": "study.send", "study_instance_uid": study, "priority": 10})
        fleet.until(
            lambda: fleet.clinic.query("SELECT count(*) FROM gateway_studypriority")[0][0] == 1,
            "what the old node understands reaches it",
        )
        waiting = made.ask("SELECT type FROM federation_command WHERE seq IS NULL ORDER BY id")
        assert {"configuration", "key.rotate"} <= {row[0] for row in waiting}, "what it would lose waits at the centre"
        before = fleet.key_at_centre(fleet.clinic)
        for part in (fleet.clinic.gateway, fleet.clinic.pacs, fleet.archive.gateway, fleet.archive.pacs):
            mixed.upgrade(part)
        for node in nodes:
            succeed([*NODE, "migrate"], node.environment)
        made.start_pacs(fleet.archive)
        fleet.archive.gateway.start()
        fleet.clinic.gateway.start()
        fleet.until(
            lambda: "18:30" in str(fleet.clinic.query("SELECT configuration FROM gateway_joinstate")[0][0]),
            "the upgraded node gets the configuration that waited",
        )
        fleet.until(lambda: fleet.key_at_centre(fleet.clinic) != before, "and makes the key that it was asked for")
        last, _ = fleet.send_study(tmp_path / "new")
        fleet.until(lambda: fleet.all_known_at_centre(last, 3), "and the work goes on")
        assert fleet.mirrored(study, 3), "nothing had to be proved again"


def test_nodes_a_version_ahead_work_with_their_centre_and_it_is_upgraded_without_losing_a_job(
    older: Path, tmp_path: Path
) -> None:
    with region(tmp_path / "region", migrated=False) as made:
        manage_older(older, [*CENTRE, "migrate"], made.centre.environment)
        mixed = Mixed(made, older, old_centre=True)
        mixed.run_older(made.centre)
        mixed.add_nodes()
        fleet = mixed.fleet
        codes = {}
        for site, kind, name in (("centre", "archive", "archive"), ("a", "clinic", "clinic")):
            manage_older(
                older,
                ["-c", "import django; django.setup()\nfrom ris_central.organizations.models import Site\n"
                 f"Site.objects.create(code={site!r}, name={site!r}, kind='own_pacs', accession_prefix={site[0]!r})"],
                made.centre.environment,
            )  # fmt: skip
            code = f"JOIN-CODE-{name.upper()}-2026"
            manage_older(
                older,
                ["-c", "import django; django.setup()\nfrom ris_central.federation import actions\n"
                 "from ris_central.organizations.models import Site\n"
                 f"actions.create_join_code(Site.objects.get(code={site!r}), {kind!r}, {name!r}, code={code!r})"],
                made.centre.environment,
            )  # fmt: skip
            codes[name] = code
        made.start_centre()
        for node in (fleet.archive, fleet.clinic):
            made.join(node, codes[node.name])
        made.start_pacs(fleet.archive)
        fleet.archive.gateway.start()
        fleet.clinic.gateway.start()
        study, _ = fleet.send_study(tmp_path / "old")
        fleet.until(lambda: fleet.all_known_at_centre(study, 3), "a new node delivers to an old centre")
        succeed(
            ["-c", "import django; django.setup()\nfrom pacs_node.clinic import audit\n"
             "audit.record('tested', actor='engineer'); audit.seal_all()"],
            fleet.clinic.environment,
        )  # fmt: skip
        fleet.until(
            lambda: bool(made.ask("SELECT 1 FROM federation_inboxevent WHERE type = 'audit.sealed' AND error <> ''")),
            "what the old centre does not understand is kept there",
        )
        mixed.upgrade(made.centre)
        succeed([*CENTRE, "migrate"], made.centre.environment)
        made.start_centre()
        made.shell("from ris_central.federation import intake\nintake.apply_what_is_understood_now()")
        rows = made.ask("SELECT action, whole FROM federation_nodeauditrow ORDER BY sequence")
        assert ("tested", True) in rows, "and applied after its upgrade"
        last, _ = fleet.send_study(tmp_path / "new")
        fleet.until(lambda: fleet.all_known_at_centre(last, 3), "and the work goes on")

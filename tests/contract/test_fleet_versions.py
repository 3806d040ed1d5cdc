"""A fleet of real processes of which some run the version before, and are upgraded at work."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.contract.fleet import Fleet
from tests.contract.parts import CENTRE, NODE, ROOT, Part, succeed
from tests.contract.region import NodeUnderTest, Region, make_series, region

pytestmark = pytest.mark.timeout(1500)

PREVIOUS = "24efaee"
"""The version before: the last commit that spoke the wire of the first release."""


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
        fleet.until(
            lambda: ("tested", True) in made.ask("SELECT action, whole FROM federation_nodeauditrow"),
            "and applied after its upgrade",
        )
        last, _ = fleet.send_study(tmp_path / "new")
        fleet.until(lambda: fleet.all_known_at_centre(last, 3), "and the work goes on")

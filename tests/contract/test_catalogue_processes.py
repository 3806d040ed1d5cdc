"""Real processes: a study opens as it arrives, holders fail over, and what node and centre disagree on is mended."""

import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from pydicom import dcmread

from deploy.processes import wait_until
from tests.contract.region import NodeUnderTest, Region, make_series, region

pytestmark = pytest.mark.timeout(900)
NOWHERE = "https://127.0.0.1:9"
SLOW = [{"since": "00:00", "until": "00:00", "kilobits_per_second": 400}]


class Setup:
    """A centre, an archive and a clinic, and an administrator's token; each test uses studies of its own."""

    def __init__(self, made: Region) -> None:
        self.region = made
        self.archive, self.clinic = made.add_node("archive", "archive"), made.add_node("clinic", "clinic")
        made.centre.environment["REGIS_CENTRE_TLS_CA"] = str(made.authority)

    def start(self) -> None:
        codes = self.region.prepare(("centre", "archive", "archive"), ("a", "clinic", "clinic"))
        token = self.region.shell(
            "from ris_central.accounts import actions\n"
            "from ris_central.accounts.models import Role, User\n"
            "user = User.objects.create_user('admin', password='correct horse', role=Role.ADMINISTRATOR)\n"
            "print(actions.issue_token(user, 'test'))"
        ).splitlines()[-1]
        self.region.start_centre()
        for node in (self.archive, self.clinic):
            self.region.join(node, codes[node.name])
            self.region.start_pacs(node)
            node.gateway.start()
        self.client = httpx.Client(
            base_url=self.region.centre_url,
            verify=ssl.create_default_context(cafile=str(self.region.authority)),
            headers={"Authorization": f"Bearer {token}"},
            timeout=60,
        )

    def configure(self, **mirror: object) -> None:
        """Rules and rates for the clinic, as the centre pushes them; until the node has them."""
        self.region.configure(self.clinic, mirror=mirror)

    def reachable(self, *, clinic: bool) -> None:
        """Whether the centre can dial the clinic, or it sits behind NAT."""
        url = f"https://127.0.0.1:{self.clinic.https_port}" if clinic else NOWHERE
        self.region.tell("UPDATE federation_node SET url = %s WHERE name = 'clinic'", url)

    def study(self, uid: str) -> tuple[int, int, int]:
        """Key, known and safe instances."""
        rows = self.region.ask(
            "SELECT id, instances_known, instances_safe FROM catalogue_study WHERE study_instance_uid = %s", uid
        )
        return tuple(rows[0]) if rows else (0, 0, 0)  # type: ignore[return-value]

    def wait(self, uid: str, known: int, safe: int, seconds: float = 240) -> int:
        """Until the centre counts so many, and nothing is on its way that says more; the key of the study."""

        def counted() -> bool:
            nodes = (self.archive, self.clinic)
            return self.study(uid)[1:] == (known, safe) and all(self.region.heard_all(node) for node in nodes)

        try:
            wait_until(counted, seconds, f"{known} known, {safe} safe")
        except TimeoutError:
            pytest.fail(f"{self.study(uid)}\n{self.region.last_words()}")
        return self.study(uid)[0]

    def metadata(self, uid: str) -> httpx.Response:
        return self.client.get(f"/dicom-web/studies/{uid}/metadata", headers={"Accept": "application/dicom+json"})

    def holder(self, uid: str) -> str:
        """Who answered; what the problem was where nobody did."""
        answer = self.metadata(uid)
        return answer.headers.get("X-Regis-Holder") or answer.text

    def compare(self, node: NodeUnderTest) -> None:
        """Ask for a round."""
        self.region.send(node.name, {"type": "holdings.tell"})

    def differences(self, uid: str) -> list[tuple[object, ...]]:
        return self.region.ask(
            "SELECT n.name, d.kind, d.believed, d.found, d.resolution FROM catalogue_difference d"
            " JOIN federation_node n ON n.id = d.node_id WHERE d.study_instance_uid = %s ORDER BY d.id",
            uid,
        )

    def wait_for_differences(self, uid: str, wanted: list[tuple[object, ...]], seconds: float = 240) -> None:
        try:
            wait_until(lambda: self.differences(uid) == wanted, seconds, f"{wanted}")
        except TimeoutError:
            pytest.fail(f"{self.differences(uid)}\n{self.region.last_words()}")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    with region(tmp_path_factory.mktemp("region")) as made:
        setup = Setup(made)
        setup.start()
        yield setup


@pytest.fixture
def setup(shared: Setup) -> Setup:
    """Both nodes up, reachable and quick at the beginning of each test, and the centre does not know them otherwise."""
    shared.region.revive(shared.archive, shared.clinic)
    shared.reachable(clinic=True)
    shared.region.forget()
    shared.configure()
    return shared


def noisy_series(count: int, folder: Path) -> str:
    """A series whose pixels no codec makes smaller, so that a slow line is slow."""
    study, _ = make_series(count, folder)
    for number, path in enumerate(sorted(folder.glob("*.dcm"))):
        image = dcmread(path)
        image.Rows = image.Columns = 160
        pixels = np.random.default_rng(number).integers(0, 4096, (160, 160), dtype=np.uint16)
        image.PixelData = pixels.tobytes()
        image.save_as(path)
    return study


def test_a_study_behind_nat_opens_with_its_first_images_and_fills_up(setup: Setup, tmp_path: Path) -> None:
    setup.reachable(clinic=False)
    setup.configure(rules=[{"when": "on-demand"}], rates=SLOW)
    uid = noisy_series(24, tmp_path)
    setup.region.take_in(setup.clinic, tmp_path)
    setup.wait(uid, 24, 0)
    (row,) = setup.client.get("/dicom-web/studies", params={"StudyInstanceUID": uid}).json()
    assert (row["00091001"]["Value"], row["00091002"]["Value"]) == (["clinic"], [24])
    first = setup.metadata(uid)
    assert (first.status_code, first.json()["holders"][0]["node"]) == (503, "clinic")
    seen: set[int] = set()

    def filled() -> bool:
        answer = setup.metadata(uid)
        if answer.status_code == 200:
            assert answer.headers["X-Regis-Holder"] == "archive"
            seen.add(len(answer.json()))
            one = answer.json()[0]
            frame = setup.client.get(
                f"/dicom-web/studies/{uid}/series/{one['0020000E']['Value'][0]}"
                f"/instances/{one['00080018']['Value'][0]}/frames/1"
            )
            assert frame.status_code == 200, "what is listed can be looked at"
        return 24 in seen

    wait_until(filled, 300, "all have arrived")
    assert any(0 < count < 24 for count in seen), seen
    setup.wait(uid, 24, 24)
    assert setup.metadata(uid).headers["Cache-Control"] == "private, no-cache"


def test_when_a_holder_is_down_the_other_one_answers_and_nobody_notices(setup: Setup, tmp_path: Path) -> None:
    uid, _ = make_series(5, tmp_path)
    setup.region.take_in(setup.clinic, tmp_path)
    setup.wait(uid, 5, 5)
    wait_until(lambda: setup.holder(uid) == "archive", 240, "the archive answers in time")
    setup.archive.pacs.kill()
    for _ in range(3):
        answer = setup.metadata(uid)
        assert (answer.status_code, answer.headers["X-Regis-Holder"], len(answer.json())) == (200, "clinic", 5)
    setup.clinic.pacs.kill()
    nobody = setup.metadata(uid)
    assert (nobody.status_code, nobody.json()["code"]) == (503, "holder-unreachable")
    assert {holder["node"] for holder in nobody.json()["holders"]} == {"archive", "clinic"}
    setup.region.start_pacs(setup.archive)
    wait_until(lambda: setup.metadata(uid).status_code == 200, 240, "the archive is asked again")


def test_a_node_that_was_away_sends_what_was_asked_for_meanwhile(setup: Setup, tmp_path: Path) -> None:
    setup.reachable(clinic=False)
    setup.configure(rules=[{"when": "on-demand"}])
    uid, _ = make_series(4, tmp_path)
    setup.region.take_in(setup.clinic, tmp_path)
    setup.wait(uid, 4, 0)
    setup.clinic.gateway.kill()
    assert setup.metadata(uid).status_code == 503
    setup.clinic.gateway.start()
    setup.wait(uid, 4, 4)


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("DELETE FROM catalogue_seriesholder WHERE series_id IN (SELECT s.id FROM catalogue_series s JOIN"
         " catalogue_study t ON t.id = s.study_id WHERE t.study_instance_uid = %s)", "extra"),
        ("UPDATE catalogue_seriesinstance SET dataset_sha256 = repeat('0', 64) WHERE id IN (SELECT min(i.id) FROM"
         " catalogue_seriesinstance i JOIN catalogue_series s ON s.id = i.series_id JOIN catalogue_study t"
         " ON t.id = s.study_id WHERE t.study_instance_uid = %s)", "content"),
        ("DELETE FROM catalogue_instanceholding WHERE id IN (SELECT min(h.id) FROM catalogue_instanceholding h"
         " JOIN catalogue_seriesinstance i ON i.id = h.instance_id JOIN catalogue_series s ON s.id = i.series_id"
         " JOIN catalogue_study t ON t.id = s.study_id WHERE t.study_instance_uid = %s)", "count"),
    ],
)  # fmt: skip
def test_what_was_tampered_with_at_the_centre_is_told_again(
    setup: Setup, tmp_path: Path, statement: str, kind: str
) -> None:
    uid, _ = make_series(6, tmp_path)
    setup.region.take_in(setup.clinic, tmp_path)
    setup.wait(uid, 6, 6)
    setup.region.tell(statement, uid)
    for node in (setup.clinic, setup.archive):
        setup.compare(node)

    holders = (
        "SELECT n.name, count(*), bool_and(i.dataset_sha256 <> repeat('0', 64)) FROM catalogue_instanceholding h"
        " JOIN federation_node n ON n.id = h.node_id JOIN catalogue_seriesinstance i ON i.id = h.instance_id"
        " JOIN catalogue_series s ON s.id = i.series_id JOIN catalogue_study t ON t.id = s.study_id"
        " WHERE t.study_instance_uid = %s GROUP BY 1 ORDER BY 1"
    )

    def mended() -> bool:
        rows = setup.differences(uid)
        is_true_again = setup.region.ask(holders, uid) == [("archive", 6, True), ("clinic", 6, True)]
        return is_true_again and bool(rows) and all(row[4] == "told-again" for row in rows)

    try:
        wait_until(mended, 240, "mended")
    except TimeoutError:
        pytest.fail(f"{setup.differences(uid)}\n{setup.region.ask(holders, uid)}\n{setup.region.last_words()}")
    assert kind in {row[1] for row in setup.differences(uid)}


def lose(node: NodeUnderTest, uid: str, count: int) -> None:
    """Have a node's index forget images without a word, as an old backup does."""
    node.write(
        "UPDATE study_index_instance SET released_at = '2026-01-01 00:00:00' WHERE id IN (SELECT i.id FROM"
        " study_index_instance i JOIN study_index_series s ON s.id = i.series_id JOIN study_index_study t"
        " ON t.id = s.study_id WHERE t.study_instance_uid = ? ORDER BY i.id LIMIT ?)",
        uid,
        count,
    )


def test_what_a_clinic_lost_is_found_and_the_archives_copy_counts(setup: Setup, tmp_path: Path) -> None:
    uid, _ = make_series(6, tmp_path)
    setup.region.take_in(setup.clinic, tmp_path)
    setup.wait(uid, 6, 6)
    lose(setup.clinic, uid, 2)
    setup.compare(setup.clinic)
    setup.wait_for_differences(uid, [("clinic", "count", 6, 4, "elsewhere")])
    assert setup.study(uid)[1:] == (6, 6)


def test_what_the_archive_lost_is_not_called_safe_and_comes_again(setup: Setup, tmp_path: Path) -> None:
    uid, uids = make_series(6, tmp_path)
    setup.region.take_in(setup.clinic, tmp_path)
    setup.wait(uid, 6, 6)
    lose(setup.archive, uid, 3)
    setup.compare(setup.archive)
    setup.wait_for_differences(uid, [("archive", "count", 6, 3, "proved-again")])
    setup.wait(uid, 6, 6)
    assert {uid: setup.archive.held().get(uid) for uid in uids} == {uid: setup.clinic.held()[uid] for uid in uids}


def test_a_study_that_the_centre_lost_altogether_comes_back(setup: Setup, tmp_path: Path) -> None:
    uid, _ = make_series(6, tmp_path)
    setup.region.take_in(setup.clinic, tmp_path)
    key = setup.wait(uid, 6, 6)
    delete = f"print(Study.objects.filter(pk={key}).delete()[1]['catalogue.Study'])"
    assert setup.region.shell(f"from ris_central.catalogue.models import Study; {delete}") == "1"
    setup.compare(setup.clinic)
    # Clinic and archive may come to it by rounds of their own, too, any moment: so not (0, 0) before, nor (6, 0) now.
    wait_until(lambda: setup.study(uid)[0] != key and setup.study(uid)[1] == 6, 240, "the clinic told it again")
    setup.compare(setup.archive)
    setup.wait(uid, 6, 6)


def test_a_node_restored_from_an_old_copy_is_compared_by_itself_after_it_begins_anew(
    setup: Setup, tmp_path: Path
) -> None:
    old = tmp_path / "old.sqlite3"
    setup.clinic.gateway.stop()
    setup.clinic.pacs.stop()
    shutil.copy(setup.clinic.directory / "node.sqlite3", old)
    setup.region.start_pacs(setup.clinic)
    setup.clinic.gateway.start()
    uid, _ = make_series(4, tmp_path / "files")
    setup.region.take_in(setup.clinic, tmp_path / "files")
    setup.wait(uid, 4, 4)
    setup.clinic.gateway.stop()
    setup.clinic.pacs.stop()
    for path in setup.clinic.directory.glob("node.sqlite3*"):
        path.unlink()
    shutil.copy(old, setup.clinic.directory / "node.sqlite3")
    setup.region.start_pacs(setup.clinic)
    setup.clinic.gateway.start()
    setup.wait_for_differences(uid, [("clinic", "lost", 4, 0, "elsewhere")], seconds=300)
    holders = setup.region.ask(
        "SELECT n.name FROM catalogue_seriesholder h JOIN federation_node n ON n.id = h.node_id JOIN catalogue_series s"
        " ON s.id = h.series_id JOIN catalogue_study t ON t.id = s.study_id WHERE t.study_instance_uid = %s",
        uid,
    )
    assert holders == [("archive",)]

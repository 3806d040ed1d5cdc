"""A real Orthanc that nobody changes joins the region by a clinic's node: listed, fetched by a button, and proved."""

import json
import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydicom.dataset import Dataset

from deploy.processes import free_port, wait_until
from gateway.envelope import ForeignSource
from standards.uids import new_uid
from tests.contract.region import NodeUnderTest, Region, make_instance, region
from tests.factories.foreign_peers import Orthanc, orthanc

pytestmark = pytest.mark.timeout(900)
PASSWORD = "correct-horse-7"


class Setup:
    """A centre, a clinic, the clinic's old PACS, and an outside vault."""

    def __init__(self, made: Region, clinic: NodeUnderTest, old: Orthanc, vault: Orthanc, folder: Path) -> None:
        self.region, self.clinic, self.old, self.vault, self.folder = made, clinic, old, vault, folder

    def configure(self, *others: ForeignSource) -> None:
        """Have the clinic poll the old PACS, and others too, and mirror to the vault."""
        there = {"kind": "dicom", "host": "127.0.0.1"}
        sources = [self.old.source(poll_seconds=2, name="old-pacs"), *others]
        outside = [
            {"name": "vault", "ae_title": "VAULT", "port": self.vault.port, **there},
            {"name": "old-again", "ae_title": "OLDAGAIN", "port": self.old.port, **there},
            {"name": "web", "kind": "stow", "url": self.vault.dicomweb_url},
        ]
        foreign = [source.model_dump(mode="json") for source in sources]
        self.region.configure(self.clinic, foreign=foreign, mirror={"outside": outside})

    def fill(self, count: int, size: int = 32) -> tuple[str, list[Dataset]]:
        """A study that the old PACS has."""
        study, series = new_uid(), new_uid()
        images = [make_instance(study=study, series=series, number=number, size=size) for number in range(count)]
        for image in images:
            image.StudyDate = f"{self.today()}"
            self.old.take(image, self.folder)
        return study, images

    def today(self) -> str:
        return str(self.region.ask("SELECT to_char(now(), 'YYYYMMDD')")[0][0])

    def holding(self, study: str) -> tuple[object, ...]:
        """(how it is fetched, expected, held, missing, last error) as the centre was told."""
        rows = self.region.ask(
            "SELECT h.fetching, h.expected, h.held, h.missing, h.last_error, s.instances_known, s.id, h.id"
            " FROM catalogue_foreignholding h JOIN catalogue_study s ON s.id = h.study_id"
            " WHERE s.study_instance_uid = %s",
            study,
        )
        assert len(rows) <= 1, rows
        return rows[0] if rows else ()

    def wait_for(self, what: str, done: object, seconds: float = 240) -> None:
        try:
            wait_until(done, seconds, what)  # type: ignore[arg-type]
        except TimeoutError:
            jobs = self.clinic.query("SELECT * FROM foreign_retrieval")
            pytest.fail(f"{what}: {jobs}\n{self.region.last_words()}")

    def received(self, study: str) -> list[str]:
        rows = self.clinic.query(
            "SELECT i.sop_instance_uid FROM study_index_instance i JOIN study_index_series s ON s.id = i.series_id"
            " JOIN study_index_study t ON t.id = s.study_id WHERE t.study_instance_uid = ?",
            study,
        )
        return sorted(str(row[0]) for row in rows)

    def press(self, study: str) -> None:
        """Log in as the clinic's radiologist and press the button on the study's page."""
        key, holding = self.holding(study)[6:8]
        with httpx.Client(
            base_url=self.region.centre_url,
            verify=ssl.create_default_context(cafile=self.region.authority),
            timeout=120,
        ) as browser:
            token = self._token(browser.get("/login/").text)
            form = {"username": "reader", "password": PASSWORD, "csrfmiddlewaretoken": token}
            browser.post("/login/", data=form, headers={"Referer": self.region.centre_url})
            page = browser.get(f"/studies/{key}/").text
            assert f"/studies/{key}/fetch/{holding}/" in page
            answer = browser.post(
                f"/studies/{key}/fetch/{holding}/",
                data={"csrfmiddlewaretoken": self._token(page)},
                headers={"Referer": self.region.centre_url},
            )
            assert answer.status_code == 302, answer.text

    @staticmethod
    def _token(page: str) -> str:
        found = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)
        assert found is not None
        return found[1]


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    folder = tmp_path_factory.mktemp("foreign")
    port = free_port()
    known = {"clinic": ("CLINIC", port)}
    with (
        region(folder) as made,
        orthanc(folder / "old", known) as old,
        orthanc(folder / "vault", known, DicomAet="VAULT") as vault,
    ):
        clinic = made.add_node("clinic", "clinic", dicom_port=str(port))
        codes = made.prepare(("a", "clinic", "clinic"))
        made.shell(
            "from ris_central.accounts.models import User\n"
            "from ris_central.organizations.models import Membership, Site\n"
            "user = User(username='reader', role='radiologist'); user.set_password('" + PASSWORD + "'); user.save()\n"
            "Membership.objects.create(user=user, site=Site.objects.get(code='a'))\n"
        )
        made.start_centre()
        made.join(clinic, codes["clinic"])
        made.start_pacs(clinic)
        clinic.gateway.start()
        setup = Setup(made, clinic, old, vault, folder)
        setup.configure()
        yield setup


@pytest.fixture(autouse=True)
def _at_work(setup: Setup) -> None:
    setup.region.revive(setup.clinic)


def test_a_new_study_is_listed_within_a_poll_and_a_button_brings_its_images_once(setup: Setup) -> None:
    study, images = setup.fill(4)
    setup.wait_for("the catalogue lists it", lambda: setup.holding(study))
    assert setup.holding(study)[5] == 0, "no instance is invented"
    assert setup.received(study) == [], "nothing is fetched unasked"
    setup.press(study)
    setup.wait_for("the images are fetched", lambda: setup.holding(study)[:2] == ("done", 4))
    assert setup.received(study) == sorted(str(image.SOPInstanceUID) for image in images)
    setup.wait_for("the catalogue counts them", lambda: setup.holding(study)[5] == 4)
    (source,) = setup.clinic.query(
        "SELECT DISTINCT i.source_ae_title FROM study_index_instance i JOIN study_index_series s ON s.id = i.series_id"
        " JOIN study_index_study t ON t.id = s.study_id WHERE t.study_instance_uid = ?",
        study,
    )
    assert source == ("ORTHANC",)

    def proofs() -> dict[str, set[object]]:
        rows = setup.clinic.query("SELECT destination, proof FROM gateway_delivery WHERE study_instance_uid = ?", study)
        return {str(name): {proof for other, proof in rows if other == name} for name, _ in rows}

    # The ledger has their digests; what came from the old PACS does not go back there, by whatever name.
    expected = {"vault": {"committed"}, "web": {"read-back"}}
    setup.wait_for("the vault proves them", lambda: proofs() == expected)


def test_a_study_is_fetched_whole_and_once_though_both_processes_are_killed_meanwhile(setup: Setup) -> None:
    study, images = setup.fill(60, size=256)
    setup.wait_for("the catalogue lists it", lambda: setup.holding(study))
    setup.press(study)
    setup.wait_for("the first images are here", lambda: len(setup.received(study)) > 3)
    setup.clinic.gateway.kill()
    setup.clinic.pacs.kill()
    came = len(setup.received(study))
    setup.region.start_pacs(setup.clinic)
    setup.clinic.gateway.start()
    setup.wait_for("all are here", lambda: setup.holding(study)[:3] == ("done", 60, 60))
    assert setup.received(study) == sorted(str(image.SOPInstanceUID) for image in images), f"{came} had come"


def test_what_the_pacs_cannot_send_is_named_and_the_rest_is_here(setup: Setup) -> None:
    study, images = setup.fill(3)
    lost = str(images[1].SOPInstanceUID)
    files = [path for path in (setup.folder / "old" / "storage").glob("??/??/*") if lost.encode() in path.read_bytes()]
    assert files
    for path in files:
        path.unlink()
    setup.wait_for("the catalogue lists it", lambda: setup.holding(study))
    setup.press(study)
    told: list[tuple[object, ...]] = []

    def is_missing() -> bool:
        told[:] = [setup.holding(study)]  # it is tried again a moment later
        return told[0][3] == [lost]

    setup.wait_for("it is told what is missing", is_missing)
    fetching, expected, held, _, error, *_ = told[0]
    assert (fetching, expected, held) == ("waiting", 3, 2)
    assert str(error).startswith("1 of 3 did not come")


def test_a_study_that_is_deleted_at_the_pacs_is_told_of(setup: Setup) -> None:
    study, _ = setup.fill(1)
    setup.wait_for("the catalogue lists it", lambda: setup.holding(study))
    setup.old.forget(study)
    query = "SELECT count(*) FROM catalogue_foreignholding h JOIN catalogue_study s ON s.id = h.study_id"
    setup.wait_for(
        "it is gone",
        lambda: (
            setup.region.ask(f"{query} WHERE s.study_instance_uid = %s AND h.gone_at IS NOT NULL", study)[0] == (1,)
        ),
    )


def test_a_pacs_that_is_away_is_told_of_with_its_reason_and_since_when_until_it_is_left_out(setup: Setup) -> None:
    setup.configure(setup.old.source(poll_seconds=2, name="dead-pacs", port=9))
    try:
        query = "SELECT last_error FROM catalogue_foreignpacs WHERE source = 'dead-pacs' AND failing_since IS NOT NULL"
        setup.wait_for("the centre knows", lambda: setup.region.ask(query))
        assert "connection-failed" in json.dumps(setup.region.ask(query))
    finally:
        setup.configure()
    retired = "SELECT source, retired FROM catalogue_foreignpacs ORDER BY source"
    setup.wait_for(
        "it alone is retired", lambda: setup.region.ask(retired) == [("dead-pacs", True), ("old-pacs", False)]
    )

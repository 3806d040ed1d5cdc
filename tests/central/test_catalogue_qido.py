"""One list of all sites' studies: with who holds them, how quickly they can be had, and at a fixed price."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from ris_central.accounts.models import Role, User
from ris_central.catalogue import reach
from ris_central.federation.models import Node
from ris_central.organizations.models import Site
from tests.factories import region

pytestmark = pytest.mark.django_db
Browser = Callable[[User | None], Client]


class Region:
    """Two clinics with a study each, an archive that has one of them."""

    def __init__(self) -> None:
        self.a = region.node("node-a", region.site("a"))
        self.b = region.node("node-b", region.site("b"))
        self.archive = region.node("archive", region.site("centre", Site.Kind.CENTRE), Node.Kind.ARCHIVE)
        Node.objects.update(last_seen_at=timezone.now())
        self.made_a = region.Acquisition(patient_id="P-1", accession_number="001-0001")
        self.made_b = region.Acquisition(patient_id="P-2", modality="MR", accession_number="002-0001")
        self.made_a.arrive(self.a)
        self.made_a.arrive(self.archive)
        self.made_b.arrive(self.b)
        self.administrator = region.person("admin", Role.ADMINISTRATOR)


@pytest.fixture
def made() -> Region:
    return Region()


def ask(browser: Client, path: str = "studies", **query: str) -> list[dict[str, Any]]:
    answer = browser.get(f"/dicom-web/{path}", query)
    assert answer.status_code == 200, answer.content
    found: list[dict[str, Any]] = json.loads(answer.content)
    return found


def holders(row: dict[str, Any]) -> list[tuple[str, int]]:
    return list(zip(row["00091001"]["Value"], row["00091002"]["Value"], strict=True))


def test_one_list_answers_for_all_sites_with_holders(made: Region, browser_of: Browser) -> None:
    rows = {row["00080050"]["Value"][0]: row for row in ask(browser_of(made.administrator))}
    assert holders(rows["001-0001"]) == [("archive", 3), ("node-a", 3)]
    assert holders(rows["002-0001"]) == [("node-b", 3)]
    assert rows["001-0001"]["00080054"]["Value"] == ["ARCHIVE", "NODE-A"]
    assert rows["001-0001"]["00090010"]["Value"] == ["REGIS"]
    assert rows["002-0001"]["00081190"]["Value"][0].endswith(made.made_b.study.study_instance_uid)
    (series,) = ask(browser_of(made.administrator), f"studies/{made.made_a.study.study_instance_uid}/series")
    assert holders(series) == [("archive", 3), ("node-a", 3)]


def test_availability_says_how_quickly_the_images_can_be_had(made: Region, browser_of: Browser) -> None:
    browser = browser_of(made.administrator)

    def of_b() -> str:
        (row,) = ask(browser, AccessionNumber="002-0001")
        return str(row["00080056"]["Value"][0])

    assert of_b() == "ONLINE"
    reach.note_down("node-b")
    assert of_b() == "NEARLINE", "in touch, but only it can send"
    Node.objects.filter(pk=made.b.pk).update(last_seen_at=timezone.now() - timedelta(hours=1))
    assert of_b() == "OFFLINE"


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({"StudyTime": "0930"}, 2),
        ({"StudyTime": "0800-0930"}, 2),
        ({"StudyTime": "093001-"}, 0),
        ({"PatientBirthDate": "19570312"}, 2),
        ({"PatientBirthDate": "19600101-"}, 0),
        ({"PatientSex": "M"}, 2),
        ({"RetrieveAETitle": "ARCHIVE"}, 1),
        ({"AccessionNumber": "00?-0001"}, 2),
        ({"ModalitiesInStudy": "MR"}, 1),
        ({"PatientName": "щеголев"}, 2),
        ({"offset": "1", "limit": "5"}, 1),
        ({"includefield": "all"}, 2),
    ],
)
def test_the_keys_that_people_use_match(made: Region, browser_of: Browser, query: dict[str, str], count: int) -> None:
    assert len(ask(browser_of(made.administrator), **query)) == count


@pytest.mark.parametrize("query", [{"StudyTime": "morning"}, {"PatientBirthDate": "19570399"}])
def test_what_is_no_time_or_date_is_refused(made: Region, browser_of: Browser, query: dict[str, str]) -> None:
    assert browser_of(made.administrator).get("/dicom-web/studies", query).status_code == 400


def test_an_answer_that_was_cut_says_so(made: Region, browser_of: Browser) -> None:
    browser = browser_of(made.administrator)
    assert browser.get("/dicom-web/studies", {"limit": "1"})["Warning"].startswith("299 ")
    assert "Warning" not in browser.get("/dicom-web/studies", {"limit": "2"})


@pytest.mark.parametrize("path", ["studies", "series"])
def test_a_long_answer_costs_no_more_queries_than_a_short_one(made: Region, browser_of: Browser, path: str) -> None:
    browser = browser_of(made.administrator)

    def cost() -> int:
        with CaptureQueriesContext(connection) as queries:
            ask(browser, path)
        return len(queries)

    cost()
    few = cost()
    for number in range(12):
        region.Acquisition(patient_id=f"M-{number}", images=1).arrive(made.a)
    assert cost() == few

"""Who sees which studies: membership, grant, care link, and nobody else; on pages, in REST and in DICOMweb."""

import json
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from ris_central.accounts.models import Role, User
from ris_central.audit.models import AuditEvent
from ris_central.catalogue.actions.arrivals import take_series_changed
from ris_central.catalogue.actions.grants import grant, revoke
from ris_central.catalogue.models import Study
from ris_central.catalogue.queries import priors, visible_to
from ris_central.federation.models import Command, Node
from ris_central.organizations.models import Site
from ris_central.patients.models import CareLink
from ris_central.reporting import actions as reporting
from tests.factories import region

pytestmark = pytest.mark.django_db
Browser = Callable[[User | None], Client]


class Two:
    """Two clinics with a study each."""

    def __init__(self) -> None:
        self.a, self.b = region.site("a"), region.site("b")
        self.reference = region.site("ref", Site.Kind.CONSULTANT)
        self.node_a, self.node_b = region.node("node-a", self.a), region.node("node-b", self.b)
        self.made_a, self.made_b = region.Acquisition(patient_id="P-1"), region.Acquisition(patient_id="P-2")
        self.study_a, self.study_b = self.made_a.arrive(self.node_a), self.made_b.arrive(self.node_b)
        self.doctor = region.person("doctor", Role.RADIOLOGIST, self.a)
        self.expert = region.person("expert", Role.EXPERT, self.reference)
        self.clerk = region.person("clerk", Role.CLERK, self.a)
        self.engineer = region.person("engineer", Role.ENGINEER, self.a)
        self.administrator = region.person("admin", Role.ADMINISTRATOR)


@pytest.fixture
def two() -> Two:
    return Two()


def seen(user: User) -> set[int]:
    return set(visible_to(user).values_list("pk", flat=True))


def test_a_site_sees_its_own_studies_and_no_others(two: Two) -> None:
    assert seen(two.doctor) == {two.study_a.pk}
    assert seen(two.clerk) == {two.study_a.pk}


def test_an_engineer_sees_no_study_though_a_member_of_the_site(two: Two) -> None:
    assert seen(two.engineer) == set()


def test_the_administrator_sees_all(two: Two) -> None:
    assert seen(two.administrator) == {two.study_a.pk, two.study_b.pk}


def test_an_expert_sees_a_study_only_while_it_is_granted(two: Two) -> None:
    assert seen(two.expert) == set()
    grant(two.study_a, [two.expert])
    grant(two.study_a, [two.expert])
    assert seen(two.expert) == {two.study_a.pk}
    assert revoke(two.study_a, [two.expert]) == 1
    assert seen(two.expert) == set()


def test_a_care_link_opens_the_patients_studies_of_all_sites_until_it_ends(two: Two) -> None:
    link = CareLink.objects.create(
        patient=two.study_b.patient, site=two.a, reason="booked", expires_at=timezone.now() + timedelta(days=1)
    )
    assert seen(two.doctor) == {two.study_a.pk, two.study_b.pk}
    assert seen(two.clerk) == {two.study_a.pk}
    link.expires_at = timezone.now() - timedelta(seconds=1)
    link.save()
    assert seen(two.doctor) == {two.study_a.pk}


def test_a_closed_account_sees_nothing(two: Two) -> None:
    two.doctor.is_active = False
    assert seen(two.doctor) == set()


def test_rights_cost_one_query_however_many_studies_there_are(
    two: Two, django_assert_num_queries: Callable[[int], object]
) -> None:
    for number in range(5):
        region.Acquisition(patient_id=f"N-{number}", images=1).arrive(two.node_a)
    with django_assert_num_queries(1):  # type: ignore[attr-defined]
        assert len(list(visible_to(two.doctor))) == 6


def test_a_grant_does_not_open_the_patients_other_studies(two: Two) -> None:
    other = region.Acquisition(patient_id="P-1").arrive(two.node_a)
    grant(two.study_a, [two.expert])
    assert list(priors(two.expert, two.study_a)) == []
    assert list(priors(two.doctor, two.study_a)) == [other]


def test_a_grant_opens_the_patient_page_with_the_granted_study_alone(two: Two, browser_of: Browser) -> None:
    other = region.Acquisition(patient_id="P-1").arrive(two.node_a)
    page = f"/patients/{two.study_a.patient_id}/"
    browser = browser_of(two.expert)
    assert browser.get(page).status_code == 404
    grant(two.study_a, [two.expert])
    text = browser.get(page).content.decode()
    assert f'href="/studies/{two.study_a.pk}/"' in text
    assert f'href="/studies/{other.pk}/"' not in text
    assert browser.get(f"/patients/{two.study_b.patient_id}/").status_code == 404
    assert f'href="/studies/{other.pk}/"' in browser_of(two.doctor).get(page).content.decode()
    revoke(two.study_a, [two.expert])
    assert browser.get(page).status_code == 404


def test_the_patient_page_lists_studies_with_their_report(two: Two, browser_of: Browser) -> None:
    reporting.sign(two.study_a, two.doctor, version=0, findings="x", conclusion="Норма")
    text = browser_of(two.doctor).get(f"/patients/{two.study_a.patient_id}/").content.decode()
    row = text.partition(f'data-href="/studies/{two.study_a.pk}/"')[2].partition("</tr>")[0]
    assert '<span class="modality">CT</span>' in row
    assert "Signed" in row
    assert str(two.a) in row


def test_the_worklist_shows_the_study_with_its_proof_and_not_the_neighbours(two: Two, browser_of: Browser) -> None:
    page = browser_of(two.doctor).get("/").content.decode()
    assert "Щёголев-Ящуржинский Пётр Ёжикович" in page
    assert "0 / 3 safe" in page
    assert f"/studies/{two.study_a.pk}/" in page
    assert f"/studies/{two.study_b.pk}/" not in page


@pytest.mark.parametrize(
    ("filters", "is_there"),
    [
        ({"text": "щеголев"}, True),
        ({"text": "shchegolev"}, True),
        ({"text": "P-1"}, True),
        ({"text": "nobody"}, False),
        ({"modality": "CT"}, True),
        ({"modality": "MR"}, False),
        ({"status": "arriving"}, True),
        ({"status": "complete"}, False),
        ({"status": "unreported"}, True),
        ({"status": "signed"}, False),
        ({"since": "2026-11-21", "until": "2026-11-21"}, True),
        ({"since": "2026-11-22"}, False),
    ],
)
def test_the_worklist_is_narrowed(two: Two, browser_of: Browser, filters: dict[str, str], is_there: bool) -> None:
    answer = browser_of(two.doctor).get("/", filters, headers={"HX-Request": "true", "HX-Target": "worklist-rows"})
    assert (f"/studies/{two.study_a.pk}/" in answer.content.decode()) is is_there
    assert "<html" not in answer.content.decode()


def test_a_study_of_another_site_is_not_found_and_the_attempt_is_in_the_trail(two: Two, browser_of: Browser) -> None:
    assert browser_of(two.doctor).get(f"/studies/{two.study_b.pk}/").status_code == 404
    assert AuditEvent.objects.filter(action="study.viewed", outcome="refused", actor=two.doctor).exists()


def test_looking_twice_in_a_sitting_is_one_row_in_the_trail(two: Two, browser_of: Browser) -> None:
    browser = browser_of(two.doctor)
    for _ in range(2):
        assert browser.get(f"/studies/{two.study_a.pk}/").status_code == 200
    rows = AuditEvent.objects.filter(action="study.viewed", actor=two.doctor)
    assert [(row.outcome, row.patient_key) for row in rows] == [("success", two.study_a.patient_id)]


@pytest.mark.parametrize("path", ["/", "/studies/1/", "/viewer/", "/viewer/app-config.js", "/consults/", "/discs/"])
def test_a_stranger_is_sent_to_log_in(two: Two, browser_of: Browser, path: str) -> None:
    answer = browser_of(None).get(path)
    assert answer.status_code == 302
    assert answer["Location"].startswith("/login/")


@pytest.mark.parametrize("path", ["/dicom-web/studies", "/dicom-web/studies/1.2/series", "/dicom-web/studies/1.2"])
def test_a_stranger_gets_a_problem_document_from_dicomweb(two: Two, browser_of: Browser, path: str) -> None:
    answer = browser_of(None).get(path)
    assert answer.status_code == 401
    assert answer["Content-Type"] == "application/problem+json"


def qido(browser: Client, path: str, **query: str) -> list[dict[str, dict[str, list[object]]]]:
    answer = browser.get(f"/dicom-web/{path}", query)
    assert answer.status_code == 200, answer.content
    assert answer["Content-Type"] == "application/dicom+json"
    found: list[dict[str, dict[str, list[object]]]] = json.loads(answer.content)
    return found


def test_ohif_finds_a_study_and_its_series_as_it_asks_for_them(two: Two, browser_of: Browser) -> None:
    browser = browser_of(two.doctor)
    uid = two.study_a.study_instance_uid
    query = {
        "limit": "101",
        "offset": "0",
        "fuzzymatching": "false",
        "includefield": "00081030,00080060,00080090,00100030",
    }
    (study,) = qido(browser, "studies", **query, StudyInstanceUID=uid)
    assert study["0020000D"]["Value"] == [uid]
    assert study["00100010"]["Value"] == [{"Alphabetic": region.NAME}]
    assert study["00080061"]["Value"] == ["CT"]
    assert study["00201208"]["Value"] == [3]
    (series,) = qido(browser, f"studies/{uid}/series", includefield="00080021,00080031,0008103E,00200011")
    assert series["0020000E"]["Value"] == [two.made_a.series.series_instance_uid]
    assert series["00201209"]["Value"] == [3]


def test_priors_by_patient_id_are_those_of_the_person_and_only_visible_ones(two: Two, browser_of: Browser) -> None:
    region.Acquisition(patient_id="P-1").arrive(two.node_a)
    region.Acquisition(patient_id="P-1").arrive(two.node_b)  # the same number at another clinic is another person
    assert len(qido(browser_of(two.doctor), "studies", **{"00100020": "P-1"})) == 2
    grant(two.study_a, [two.expert])
    (only,) = qido(browser_of(two.expert), "studies", **{"00100020": "P-1"})
    assert only["0020000D"]["Value"] == [two.study_a.study_instance_uid]


def test_a_number_that_several_people_have_is_answered_with_its_issuer(two: Two, browser_of: Browser) -> None:
    region.Acquisition(patient_id="P-1").arrive(two.node_b)
    browser = browser_of(two.administrator)
    ids = {str(found["00100020"]["Value"][0]) for found in qido(browser, "studies", PatientID="P-1")}
    assert ids == {"P-1^^^ISS-a", "P-1^^^ISS-b"}
    assert len(qido(browser, "studies", PatientID="P-1^^^ISS-a")) == 1


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({"PatientName": "ЩЕГОЛЕВ*"}, 2),
        ({"PatientName": "Schegolev"}, 2),
        ({"PatientName": "Иванов"}, 0),
        ({"StudyDate": "20261101-"}, 2),
        ({"StudyDate": "-20261101"}, 0),
        ({"ModalitiesInStudy": "MR"}, 0),
        ({"limit": "1"}, 1),
    ],
)
def test_qido_matches(two: Two, browser_of: Browser, query: dict[str, str], count: int) -> None:
    assert len(qido(browser_of(two.administrator), "studies", **query)) == count


def test_a_wrong_query_is_refused_by_name(two: Two, browser_of: Browser) -> None:
    answer = browser_of(two.administrator).get("/dicom-web/studies", {"StudyDate": "yesterday"})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad-query")


def test_images_of_a_study_that_is_not_open_are_not_found(two: Two, browser_of: Browser) -> None:
    for path in ("", "/metadata", f"/series/{two.made_b.series.series_instance_uid}/metadata"):
        answer = browser_of(two.doctor).get(f"/dicom-web/studies/{two.study_b.study_instance_uid}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


def test_when_no_holder_answers_the_problem_says_who_has_the_images(two: Two, browser_of: Browser) -> None:
    Node.objects.filter(pk=two.node_a.pk).update(url="https://127.0.0.1:9", last_seen_at=timezone.now())
    answer = browser_of(two.doctor).get(f"/dicom-web/studies/{two.study_a.study_instance_uid}/metadata")
    assert (answer.status_code, answer.json()["code"]) == (503, "holder-unreachable")
    (holder,) = answer.json()["holders"]
    assert (holder["node"], holder["site"]) == ("node-a", "Клиника a")
    assert holder["unreachable_since"] is not None


def test_a_look_at_a_study_that_is_not_at_the_archive_hurries_it_once(two: Two, browser_of: Browser) -> None:
    Node.objects.filter(pk=two.node_a.pk).update(url="https://127.0.0.1:9")
    for _ in range(3):
        browser_of(two.doctor).get(f"/dicom-web/studies/{two.study_a.study_instance_uid}/metadata")
    (command,) = Command.objects.filter(type="study.send")
    assert command.body["study_instance_uid"] == two.study_a.study_instance_uid


def test_two_patients_under_one_study_uid_are_never_given_together(two: Two, browser_of: Browser) -> None:
    uid = two.study_a.study_instance_uid
    other = region.Acquisition(patient_id="P-9", study_uid=uid)
    take_series_changed(two.node_b, other.changed(two.node_b))
    assert Study.objects.filter(study_instance_uid=uid).count() == 2
    answer = browser_of(two.doctor).get(f"/dicom-web/studies/{uid}")
    assert (answer.status_code, answer.json()["code"]) == (409, "study-uid-shared")
    foreign = browser_of(two.doctor).get(f"/dicom-web/studies/{uid}/series/{other.series.series_instance_uid}/metadata")
    assert foreign.status_code == 404


def token(browser: Client, studies: list[str], **extra: object) -> tuple[int, dict[str, object]]:
    answer = browser.post("/api/v1/image-tokens", {"studies": studies, **extra}, content_type="application/json")
    return answer.status_code, answer.json()


def test_a_token_is_given_for_what_one_may_see_and_for_nothing_else(two: Two, browser_of: Browser) -> None:
    browser = browser_of(two.doctor)
    status, body = token(browser, [two.study_a.study_instance_uid])
    assert status == 200
    assert set(body) == {"token", "expires"}
    assert token(browser, [two.study_a.study_instance_uid, two.study_b.study_instance_uid])[0] == 403
    assert token(browser, ["1.2.3.4"])[0] == 403
    assert token(browser, [two.study_a.study_instance_uid], operations=["store"])[0] == 403
    assert token(browser, [])[0] == 400


def test_an_engineer_gets_a_token_to_store_but_not_to_read(two: Two, browser_of: Browser) -> None:
    browser = browser_of(two.engineer)
    assert token(browser, ["1.2.3.4"])[0] == 200
    assert token(browser, [two.study_a.study_instance_uid], operations=["read"])[0] == 403


def test_rest_lists_and_tells_visible_studies_alone(two: Two, browser_of: Browser) -> None:
    browser = browser_of(two.doctor)
    listed = browser.get("/api/v1/studies").json()
    assert [row["study_instance_uid"] for row in listed["results"]] == [two.study_a.study_instance_uid]
    told = browser.get(f"/api/v1/studies/{two.study_a.pk}").json()
    assert (told["instances_known"], told["instances_safe"]) == (3, 0)
    assert told["holders"] == [{"node": "node-a", "kind": "clinic", "held": 3}]
    assert browser.get(f"/api/v1/studies/{two.study_b.pk}").status_code == 404

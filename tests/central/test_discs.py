"""Disc jobs: who may order, one worker at a time, a named reason with what to do, and states by the table."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from ris_central.accounts.models import Role, User
from ris_central.discs import actions, queries
from ris_central.discs.models import DiscJob
from ris_central.discs.tasks import run
from ris_central.discs.transitions import DISC, check
from standards.errors import PermanentError, TransientError
from tests.factories import region

pytestmark = pytest.mark.django_db
Browser = Callable[[User | None], Client]


class Desk:
    """A clinic with a study, its clerk, and a node that does not answer."""

    def __init__(self) -> None:
        self.clinic = region.site("a")
        self.node = region.node("node-a", self.clinic, url="https://127.0.0.1:9")
        self.study = region.Acquisition(images=2).arrive(self.node)
        self.clerk = region.person("clerk", Role.CLERK, self.clinic)

    def order(self) -> DiscJob:
        return actions.order([self.study], self.clerk, medium="cd")


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_clerk_orders_from_the_form_and_sees_the_job(desk: Desk, browser_of: Browser) -> None:
    browser = browser_of(desk.clerk)
    assert f'value="{desk.study.pk}" checked' in browser.get(f"/studies/{desk.study.pk}/").content.decode()
    page = browser.post("/discs/order", {"studies": [desk.study.pk], "medium": "dvd", "with_reports": "1"}, follow=True)
    job = DiscJob.objects.get()
    assert (job.medium, job.with_reports, job.total, job.requested_by) == ("dvd", True, 2, desk.clerk)
    assert "0 / 2" in page.content.decode()


def test_a_disc_of_another_sites_study_cannot_be_ordered(desk: Desk, browser_of: Browser) -> None:
    foreign = region.Acquisition(patient_id="B-1").arrive(region.node("node-b", region.site("b")))
    answer = browser_of(desk.clerk).post("/discs/order", {"studies": [foreign.pk], "medium": "cd"})
    assert answer.status_code == 404
    with pytest.raises(PermanentError, match="study-not-visible"):
        actions.order([foreign], desk.clerk, medium="cd")
    assert not DiscJob.objects.exists()


def test_a_disc_holds_one_patient(desk: Desk) -> None:
    other = region.Acquisition(patient_id="A-2").arrive(desk.node)
    with pytest.raises(PermanentError, match="several-patients"):
        actions.order([desk.study, other], desk.clerk, medium="cd")


def test_clerks_of_other_sites_and_radiologists_see_no_job(desk: Desk, browser_of: Browser) -> None:
    job = desk.order()
    assert not queries.visible_to(region.person("other", Role.CLERK, region.site("b"))).exists()
    doctor = region.person("doctor", Role.RADIOLOGIST, desk.clinic)
    assert browser_of(doctor).get("/discs/").status_code == 403
    assert browser_of(doctor).post(f"/discs/{job.pk}/cancel").status_code == 403


def test_one_worker_has_a_job_until_its_lease_ends(desk: Desk) -> None:
    job = desk.order()
    assert actions.due_jobs() == [job.pk]
    first = actions.take(job.pk)
    assert first is not None
    assert actions.take(job.pk) is None
    DiscJob.objects.filter(pk=job.pk).update(next_attempt_at=timezone.now() - timedelta(seconds=1))
    assert actions.take(job.pk) is not None, "a worker that went silent is replaced"
    with pytest.raises(actions.Taken):
        actions.progressed(first, done=1, total=2)


def test_a_holder_that_does_not_answer_makes_the_job_wait_with_its_reason(desk: Desk, browser_of: Browser) -> None:
    job = desk.order()
    run(job.pk)
    job.refresh_from_db()
    assert (job.status, job.error_code) == ("collecting", "holder-unreachable")
    assert job.next_attempt_at > timezone.now()
    assert "goes on by itself" in browser_of(desk.clerk).get("/discs/").content.decode()


def test_a_disc_too_large_fails_with_what_to_do_and_goes_on_on_another_medium(desk: Desk, browser_of: Browser) -> None:
    job = actions.take(desk.order().pk)
    assert job is not None
    actions.failed(job, PermanentError("disc-too-large", "812 MB do not fit on a CD"), is_permanent=True)
    browser = browser_of(desk.clerk)
    assert "larger medium" in browser.get("/discs/").content.decode()
    browser.post(f"/discs/{job.pk}/retry", {"medium": "dvd"})
    job.refresh_from_db()
    assert (job.status, job.medium, job.error_code) == ("requested", "dvd", "")


def test_rest_refuses_to_retry_with_a_list(desk: Desk, browser_of: Browser) -> None:
    path = f"/api/v1/discs/{desk.order().pk}/retry"
    answer = browser_of(desk.clerk).post(path, [{"medium": "dvd"}], content_type="application/json")
    assert answer.status_code == 400, answer.content


def test_a_job_is_cancelled_once_and_rest_says_so(desk: Desk, browser_of: Browser) -> None:
    browser, path = browser_of(desk.clerk), f"/api/v1/discs/{desk.order().pk}/cancel"
    assert browser.post(path).status_code == 200
    again = browser.post(path)
    assert (again.status_code, again.json()["code"]) == (409, "state-conflict")


def test_a_cancelled_job_stops_its_worker(desk: Desk) -> None:
    job = actions.take(desk.order().pk)
    assert job is not None
    actions.cancel(job, desk.clerk)
    with pytest.raises(actions.Taken):
        actions.progressed(job, done=1, total=2)
    actions.failed(job, TransientError("late"), is_permanent=False)
    job.refresh_from_db()
    assert job.status == "cancelled"


@pytest.mark.parametrize("start", list(DISC))
def test_discs_move_only_by_the_table(start: str) -> None:
    for to in DiscJob.Status.values:
        if to in DISC[start]:
            check(start, to)
        else:
            with pytest.raises(PermanentError, match="state-conflict"):
                check(start, to)

"""Consults: the images go first, the experts see the study only while it is open, and one of two takers wins."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import IntegrityError, transaction
from django.test import Client
from django.utils import timezone

from ris_central.accounts.models import Role, User
from ris_central.catalogue.queries import visible_to as visible_studies
from ris_central.consults import actions, queries
from ris_central.consults.models import Consult
from ris_central.consults.transitions import CONSULT, move
from ris_central.federation.models import Command, Node
from ris_central.organizations.models import Site
from standards.errors import PermanentError
from tests.factories import region

pytestmark = pytest.mark.django_db
Browser = Callable[[User | None], Client]


class Desk:
    """A clinic with a study, and a reference centre with two experts."""

    def __init__(self) -> None:
        self.clinic = region.site("a")
        self.reference = region.site("ref", Site.Kind.CONSULTANT)
        self.node = region.node("node-a", self.clinic)
        self.archive = region.node("archive", region.site("centre", Site.Kind.CENTRE), Node.Kind.ARCHIVE)
        self.made = region.Acquisition(images=4)
        self.study = self.made.arrive(self.node)
        self.doctor = region.person("doctor", Role.RADIOLOGIST, self.clinic)
        self.one = region.person("expert-1", Role.EXPERT, self.reference)
        self.two = region.person("expert-2", Role.EXPERT, self.reference)

    def ask(self, **extra: object) -> Consult:
        return actions.ask(
            self.study,
            self.doctor,
            reference_site=self.reference,
            question="Есть ли очаг?",
            **extra,  # type: ignore[arg-type]
        )


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_asking_opens_the_study_to_the_experts_and_sends_its_images_first(desk: Desk) -> None:
    consult = desk.ask()
    for expert in (desk.one, desk.two):
        assert list(visible_studies(expert)) == [desk.study]
    (command,) = Command.objects.filter(type="study.send")
    assert (command.node, command.body["priority"]) == (desk.node, 10)
    assert consult.images_ready_at is None


def test_the_desk_learns_when_all_images_are_there(desk: Desk) -> None:
    consult = desk.ask()
    desk.made.arrive(desk.archive, desk.made.images[:3])
    consult.refresh_from_db()
    assert consult.images_ready_at is None
    desk.made.arrive(desk.archive, desk.made.images[3:])
    consult.refresh_from_db()
    assert consult.images_ready_at is not None


def test_two_experts_take_one_consult_and_the_slower_is_told(desk: Desk, browser_of: Browser) -> None:
    consult = desk.ask()
    assert browser_of(desk.one).post(f"/consults/{consult.pk}/take").status_code == 302
    answer = browser_of(desk.two).post(f"/consults/{consult.pk}/take", follow=True)
    assert "somebody was quicker" in answer.content.decode()
    consult.refresh_from_db()
    assert (consult.expert, consult.status) == (desk.one, "accepted")


def test_rest_tells_of_a_conflict_and_of_a_consult_that_is_anothers(desk: Desk, browser_of: Browser) -> None:
    consult = actions.take_slot(desk.ask(), desk.one)
    path = f"/api/v1/consults/{consult.pk}"
    one, two = browser_of(desk.one), browser_of(desk.two)

    def said(browser: Client, verb: str) -> tuple[int, str]:
        answer = browser.post(f"{path}/{verb}", {"version": 0, "opinion": "Очага нет."}, "application/json")
        return answer.status_code, answer.json().get("code", "")

    assert said(two, "take") == (409, "slot-taken")
    assert said(two, "opinion") == (403, "not-yours")
    question = {"study": desk.study.pk, "reference_site": "ref", "question": "И ещё?"}
    again = browser_of(desk.doctor).post("/api/v1/consults", question, "application/json")
    assert (again.status_code, again.json()["code"]) == (409, "already-asked")
    assert said(one, "conclude") == (200, "")
    assert said(one, "conclude") == (409, "state-conflict")


def test_an_expert_cannot_have_two_consults_at_one_time(desk: Desk) -> None:
    at = timezone.now() + timedelta(hours=1)
    actions.take_slot(desk.ask(), desk.one, starts_at=at)
    other = region.Acquisition(patient_id="A-2").arrive(desk.node)
    second = actions.ask(other, desk.doctor, reference_site=desk.reference, question="И здесь?")
    with pytest.raises(PermanentError, match="slot-taken"):
        actions.take_slot(second, desk.one, starts_at=at + timedelta(minutes=15))
    actions.take_slot(second, desk.one, starts_at=at + timedelta(minutes=30))


def test_concluding_closes_the_study_to_the_experts_and_shows_the_opinion_to_the_clinic(
    desk: Desk, browser_of: Browser
) -> None:
    consult = actions.take_slot(desk.ask(), desk.one)
    consult = actions.conclude(consult, desk.one, version=0, opinion="Очага нет.")
    assert (consult.status, len(consult.content_sha256)) == ("completed", 64)
    assert list(visible_studies(desk.one)) == []
    assert list(visible_studies(desk.two)) == []
    assert "Очага нет." in browser_of(desk.doctor).get(f"/studies/{desk.study.pk}/").content.decode()
    pdf = browser_of(desk.doctor).get(f"/consults/{consult.pk}/opinion.pdf")
    assert pdf.content.startswith(b"%PDF-")


def test_a_signed_opinion_never_changes(desk: Desk) -> None:
    consult = actions.take_slot(desk.ask(), desk.one)
    actions.conclude(consult, desk.one, version=0, opinion="Очага нет.")
    with pytest.raises(PermanentError, match="state-conflict"):
        actions.save_opinion(consult, desk.one, version=1, opinion="Очаг есть.")
    with pytest.raises(IntegrityError, match="never changes"), transaction.atomic():
        Consult.objects.filter(pk=consult.pk).update(opinion="Очаг есть.")


def test_another_open_consult_keeps_the_study_open_to_its_own_experts(desk: Desk) -> None:
    other_centre = region.site("ref2", Site.Kind.CONSULTANT)
    other_expert = region.person("expert-3", Role.EXPERT, other_centre)
    first = desk.ask()
    actions.ask(desk.study, desk.doctor, reference_site=other_centre, question="А вы?")
    actions.cancel(first, desk.doctor, reason="Не нужно")
    assert list(visible_studies(desk.one)) == []
    assert list(visible_studies(other_expert)) == [desk.study]


def test_a_second_question_to_the_same_centre_waits_for_the_first_answer(desk: Desk) -> None:
    desk.ask()
    with pytest.raises(PermanentError, match="already-asked"):
        desk.ask()


def test_strangers_neither_ask_nor_see(desk: Desk, browser_of: Browser) -> None:
    consult = desk.ask()
    stranger = region.person("stranger", Role.RADIOLOGIST, region.site("b"))
    with pytest.raises(PermanentError, match="may-not-ask"):
        actions.ask(desk.study, stranger, reference_site=desk.reference, question="?")
    assert not queries.visible_to(stranger).exists()
    assert browser_of(stranger).get(f"/consults/{consult.pk}/").status_code == 404


def test_the_desk_shows_urgent_questions_first_with_how_far_the_images_are(desk: Desk, browser_of: Browser) -> None:
    desk.ask()
    other = region.Acquisition(patient_id="A-2", images=2).arrive(desk.node)
    urgent = actions.ask(other, desk.doctor, reference_site=desk.reference, question="Срочно", is_urgent=True)
    assert queries.desk(desk.one).first() == urgent
    page = browser_of(desk.one).get("/consults/").content.decode()
    assert "0 / 2 safe" in page
    assert page.index("Срочно") < page.index("Есть ли очаг?")


@pytest.mark.parametrize("start", list(CONSULT))
def test_consults_move_only_by_the_table(start: str) -> None:
    for to in Consult.Status.values:
        consult = Consult(status=start)
        if to in CONSULT[start]:
            move(consult, to)
            assert consult.status == to
        else:
            with pytest.raises(PermanentError, match="state-conflict"):
                move(consult, to)

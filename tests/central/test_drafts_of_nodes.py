"""Drafts that were written at a node: taken over, or kept beside the centre's, and never dropped."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from gateway.envelope import RawEvent
from ris_central.accounts.models import Role, User
from ris_central.catalogue.models import Study
from ris_central.federation import intake
from ris_central.federation.models import InboxEvent, Node
from ris_central.orders.models import ReturnDifference
from ris_central.reporting import actions
from ris_central.reporting.models import NodeDraft, Report, ReportRevision
from tests.factories import region

pytestmark = pytest.mark.django_db
Browser = Callable[[User | None], Client]


@pytest.fixture
def node() -> Node:
    return region.node("node-a", region.site("a"))


@pytest.fixture
def doctor(node: Node) -> User:
    return region.person("dr-somova", Role.RADIOLOGIST, node.site)


class Draft:
    """A draft at the node, told version by version."""

    def __init__(self, node: Node, uid: str, author: str = "dr-somova") -> None:
        self.node, self.uid, self.author, self.version = node, uid, author, 0

    def tell(self, findings: str, *, ago: int = 0) -> NodeDraft:
        self.version += 1
        body = {
            "type": "report.draft",
            "study_instance_uid": self.uid,
            "author": self.author,
            "version": self.version,
            "findings": findings,
            "saved_at": (timezone.now() - timedelta(seconds=ago)).isoformat(),
        }
        event = RawEvent(schema_version=1, epoch="drafts", seq=self.version, occurred_at=timezone.now(), body=body)
        intake.take(self.node, [event])
        assert InboxEvent.objects.get(node=self.node, epoch="drafts", seq=self.version).error == ""
        return NodeDraft.objects.get(study_instance_uid=self.uid, author_name=self.author)


def settle(browser_of: Browser, who: User, draft: NodeDraft, choice: str, version: int) -> None:
    path = f"/studies/{draft.study_id}/report/node-draft/{draft.pk}"
    answer = browser_of(who).post(path, {"choice": choice, "version": version})
    assert answer.status_code == 302


def test_a_draft_of_the_node_becomes_the_report_in_draft_by_its_author(node: Node, doctor: User) -> None:
    study = region.Acquisition().arrive(node)
    draft = Draft(node, study.study_instance_uid)
    assert draft.tell("Очаг").state == "taken"
    draft.tell("Очаг 5 мм")
    report = Report.objects.get()
    assert (report.author, report.findings, report.status) == (doctor, "Очаг 5 мм", "partial")
    assert ReportRevision.objects.count() == 2
    assert not ReturnDifference.objects.exists()


def test_an_older_text_that_comes_again_changes_nothing(node: Node, doctor: User) -> None:
    study = region.Acquisition().arrive(node)
    draft = Draft(node, study.study_instance_uid)
    draft.tell("Новое")
    draft.tell("Старое", ago=100)
    assert Report.objects.get().findings == "Новое"


def test_a_draft_that_comes_before_its_images_waits_for_them(node: Node, doctor: User) -> None:
    acquisition = region.Acquisition()
    draft = Draft(node, acquisition.study.study_instance_uid).tell("Очаг")
    assert (draft.state, draft.study) == ("waiting", None)
    study = acquisition.arrive(node)
    draft.refresh_from_db()
    assert (draft.state, draft.study) == ("taken", study)
    assert Report.objects.get().findings == "Очаг"


def begun_at_both_ends(node: Node, doctor: User) -> tuple[Study, NodeDraft]:
    study = region.Acquisition().arrive(node)
    actions.save_draft(study, doctor, version=0, findings="В центре", conclusion="Норма")
    return study, Draft(node, study.study_instance_uid).tell("В машине")


@pytest.mark.parametrize(
    ("choice", "text", "kept"),
    [("both", "В центре\n\nВ машине", "both"), ("node", "В машине", "node"), ("centre", "В центре", "centre")],
)
def test_a_report_begun_at_both_ends_keeps_both_until_somebody_chooses(
    node: Node, doctor: User, browser_of: Browser, choice: str, text: str, kept: str
) -> None:
    study, draft = begun_at_both_ends(node, doctor)
    assert draft.state == "beside"
    assert Report.objects.get().findings == "В центре"
    page = browser_of(doctor).get(f"/studies/{study.pk}/").content.decode()
    assert "В машине" in page
    assert "Written at the node" in page
    settle(browser_of, doctor, draft, choice, 1)
    row = ReturnDifference.objects.get()
    assert (row.rule, row.state, row.kept, row.decided_by) == ("draft-at-both-ends", "by-person", kept, doctor)
    assert Report.objects.get().findings == text
    assert NodeDraft.objects.get().findings == "В машине", "nothing is dropped"
    assert "Written at the node" not in browser_of(doctor).get(f"/studies/{study.pk}/").content.decode()


def test_a_choice_over_a_text_that_changed_meanwhile_is_refused(node: Node, doctor: User, browser_of: Browser) -> None:
    study, draft = begun_at_both_ends(node, doctor)
    actions.save_draft(study, doctor, version=1, findings="В центре, ещё", conclusion="Норма")
    settle(browser_of, doctor, draft, "node", 1)
    draft.refresh_from_db()
    assert draft.state == "beside"
    assert Report.objects.get().findings == "В центре, ещё"


def test_a_new_text_of_the_node_stands_beside_what_was_written_over_the_first(node: Node, doctor: User) -> None:
    study = region.Acquisition().arrive(node)
    draft = Draft(node, study.study_instance_uid)
    draft.tell("Машина 1")
    actions.save_draft(study, doctor, version=1, findings="Центр", conclusion="")
    assert draft.tell("Машина 2").state == "beside"
    assert Report.objects.get().findings == "Центр"


def test_a_draft_for_a_signed_report_is_shown_and_changes_nothing(
    node: Node, doctor: User, browser_of: Browser
) -> None:
    study = region.Acquisition().arrive(node)
    actions.sign(study, doctor, version=0, findings="Готово", conclusion="Норма")
    draft = Draft(node, study.study_instance_uid).tell("В машине")
    assert draft.state == "beside"
    settle(browser_of, doctor, draft, "node", 1)
    assert Report.objects.get().findings == "Готово"
    assert "addendum" in browser_of(doctor).get(f"/studies/{study.pk}/").content.decode()


def test_who_may_not_report_at_the_site_is_not_made_an_author(node: Node, doctor: User) -> None:
    study = region.Acquisition().arrive(node)
    stranger = region.person("dr-elsewhere", Role.RADIOLOGIST, region.site("b"))
    draft = Draft(node, study.study_instance_uid, author=stranger.username).tell("Чужой текст")
    assert (draft.state, draft.author) == ("foreign", None)
    assert not Report.objects.exists()


def test_a_radiologist_of_another_site_cannot_choose(node: Node, doctor: User, browser_of: Browser) -> None:
    study, draft = begun_at_both_ends(node, doctor)
    stranger = region.person("dr-elsewhere", Role.RADIOLOGIST, region.site("b"))
    path = f"/studies/{study.pk}/report/node-draft/{draft.pk}"
    assert browser_of(stranger).post(path, {"choice": "node", "version": 1}).status_code == 404
    assert Report.objects.get().findings == "В центре"

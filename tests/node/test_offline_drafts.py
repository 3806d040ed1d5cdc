"""Drafts of reports at a node: no sentence is lost, two windows get one winner, and the page of what waits."""

import re
from datetime import timedelta
from typing import Any

import httpx
import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from gateway.envelope import AccessionBlock, Configuration, MirrorPolicy
from gateway.models import Delivery, JoinState, OutboxEntry
from pacs_node.clinic.models import RosterMember
from pacs_node.offline import accessions, drafts, queries
from pacs_node.offline.models import DraftRevision, ReportDraft
from pacs_node.study_index.models import Instance, Study
from standards.uids import new_uid
from tests.node.conftest import NodeProcess
from tests.node.dicomweb_node import ct_slice, join, take_in

pytestmark = pytest.mark.django_db


@pytest.fixture
def doctor() -> User:
    user = User.objects.create_user("dr-somova", password="radiant-day")
    RosterMember.objects.create(user=user, role="radiologist", expires_at=timezone.now() + timedelta(days=30))
    return user


@pytest.fixture
def study() -> Study:
    uid = new_uid()
    take_in(ct_slice(uid, new_uid()))
    return Study.objects.get(study_instance_uid=uid)


def save(client: Client, study: Study, version: int, findings: str, **more: str) -> Any:
    values = {"version": version, "findings": findings, "conclusion": "норма", **more}
    return client.post(f"/drafts/{study.pk}/save/", values)


def test_each_save_is_a_revision_and_the_page_shows_the_last(client: Client, doctor: User, study: Study) -> None:
    client.force_login(doctor)
    for version, text in enumerate(("Очаг", "Очаг 5 мм", "Очаг 5 мм в S6")):
        assert save(client, study, version, text).json()["version"] == version + 1
    assert list(DraftRevision.objects.order_by("version").values_list("findings", flat=True)) == [
        "Очаг",
        "Очаг 5 мм",
        "Очаг 5 мм в S6",
    ]
    page = client.get(f"/drafts/{study.pk}/").content.decode()
    assert "Очаг 5 мм в S6" in page
    assert f"StudyInstanceUIDs={study.study_instance_uid}" in page


def test_the_second_window_is_told_and_shown_the_other_text(client: Client, doctor: User, study: Study) -> None:
    client.force_login(doctor)
    save(client, study, 0, "Первое окно")
    answer = save(client, study, 0, "Второе окно")
    body = answer.json()
    assert (answer.status_code, body["code"], body["current"]["findings"]) == (409, "version-conflict", "Первое окно")
    assert "another window" in body["title"]
    assert ReportDraft.objects.get().findings == "Первое окно"
    assert save(client, study, 1, "Первое окно\n\nВторое окно").status_code == 200


def test_the_same_text_again_is_no_revision(client: Client, doctor: User, study: Study) -> None:
    client.force_login(doctor)
    save(client, study, 0, "Очаг")
    assert save(client, study, 0, "Очаг").json()["version"] == 1
    assert DraftRevision.objects.count() == 1


def told() -> list[dict[str, Any]]:
    return [row.body for row in OutboxEntry.objects.filter(kind="report.draft").order_by("pk")]


def test_the_centre_hears_of_a_quiet_draft_once_a_version(client: Client, doctor: User, study: Study) -> None:
    client.force_login(doctor)
    save(client, study, 0, "Очаг")
    drafts.tell_quiet()
    assert told() == []
    ReportDraft.objects.update(updated_at=timezone.now() - timedelta(seconds=11))
    drafts.tell_quiet()
    drafts.tell_quiet()
    assert [(body["author"], body["version"], body["findings"]) for body in told()] == [("dr-somova", 1, "Очаг")]


def test_one_who_types_without_a_pause_is_told_of_as_well(client: Client, doctor: User, study: Study) -> None:
    client.force_login(doctor)
    save(client, study, 0, "Очаг")
    DraftRevision.objects.update(saved_at=timezone.now() - timedelta(seconds=61))
    save(client, study, 1, "Очаг и ещё")
    drafts.tell_quiet()
    assert [body["version"] for body in told()] == [2]


def test_giving_it_to_the_centre_does_not_wait(client: Client, doctor: User, study: Study) -> None:
    client.force_login(doctor)
    save(client, study, 0, "Очаг", done="1")
    assert [body["conclusion"] for body in told()] == ["норма"]


@pytest.mark.parametrize("role", ["registrar", "engineer", None])
def test_only_doctors_of_the_roster_write(client: Client, doctor: User, study: Study, role: str | None) -> None:
    if role:
        RosterMember.objects.update(role=role)
    else:
        RosterMember.objects.all().delete()
    client.force_login(doctor)
    assert client.get(f"/drafts/{study.pk}/").status_code == 403
    assert save(client, study, 0, "Очаг").status_code == 403


def test_a_colleague_reads_the_draft_and_writes_an_own_one(client: Client, doctor: User, study: Study) -> None:
    client.force_login(doctor)
    save(client, study, 0, "Первый врач")
    other = User.objects.create_user("dr-petrov", password="radiant-day")
    RosterMember.objects.create(user=other, role="radiologist", expires_at=timezone.now() + timedelta(days=30))
    client.force_login(other)
    assert "Первый врач" in client.get(f"/drafts/{study.pk}/").content.decode()
    save(client, study, 0, "Второй врач")
    assert ReportDraft.objects.count() == 2


def test_what_was_typed_outlives_a_power_cut(make_node: Any) -> None:
    node: NodeProcess = make_node()
    key = node.python(
        "from datetime import timedelta\n"
        "from django.contrib.auth.models import User\n"
        "from django.utils import timezone\n"
        "from pacs_node.clinic.models import RosterMember\n"
        "from pacs_node.study_index.models import Study\n"
        "user = User.objects.create_user('dr', password='radiant-day')\n"
        "later = timezone.now() + timedelta(days=1)\n"
        "RosterMember.objects.create(user=user, role='radiologist', expires_at=later)\n"
        "print(Study.objects.create(study_instance_uid='1.2.3', patient_id='A').pk)"
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{node.http_port}", trust_env=False, timeout=60) as browser:
        page = browser.get("/login/").text
        token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', page)
        assert token is not None
        form = {"username": "dr", "password": "radiant-day", "csrfmiddlewaretoken": token[1]}
        assert browser.post("/login/", data=form).status_code == 302
        cookie = next(value for name, value in browser.cookies.items() if "csrf" in name)
        for version, text in enumerate(("Очаг", "Очаг 5 мм")):
            answer = browser.post(
                f"/drafts/{key}/save/",
                data={"version": str(version), "findings": text},
                headers={"X-CSRFToken": cookie},
            )
            assert answer.json()["version"] == version + 1
    node.kill()
    assert node.sql("SELECT findings, version FROM offline_reportdraft") == [("Очаг 5 мм", 2)]
    assert len(node.sql("SELECT id FROM offline_draftrevision")) == 2


def deliver(study: Study, priority: int, **values: Any) -> None:
    instance = Instance.objects.get(series__study=study)
    row = {
        "instance_key": instance.pk,
        "series_key": instance.series_id,
        "study_instance_uid": study.study_instance_uid,
        "sop_instance_uid": instance.sop_instance_uid,
        "dataset_sha256": instance.dataset_sha256,
        "destination": "archive",
        "priority": priority,
        "size": 1500,
        "next_attempt_at": timezone.now(),
    }
    Delivery.objects.create(**(row | values))


def test_what_waits_is_shown_by_urgency_with_the_reason(client: Client, doctor: User, study: Study) -> None:
    join()
    policy = MirrorPolicy(checkpoints=["198.51.100.0/24"])
    JoinState.objects.update(configuration=Configuration(version=1, mirror=policy).model_dump(mode="json"))
    deliver(study, 0, held_by="checkpoint")
    deliver(study, 50, destination="second", status=Delivery.Status.FAILED, last_error="refused: full")
    rows = queries.waiting_by_urgency()
    assert [(row.urgency, row.instances, row.size) for row in rows] == [("stat", 1, 1500), ("routine", 1, 1500)]
    client.force_login(doctor)
    page = client.get("/waiting/").content.decode()
    assert "waits for the checkpoint network 198.51.100.0/24" in page
    assert "refused: full" in page
    assert "Images wait until this node is in one of these networks" in page


def test_the_page_says_how_long_the_node_can_live_alone(client: Client, doctor: User, study: Study) -> None:
    accessions.take_block(AccessionBlock(prefix="A", first=1, last=500, mark="1"))
    RosterMember.objects.update(expires_at=timezone.now() + timedelta(days=2))
    client.force_login(doctor)
    page = client.get("/waiting/").content.decode()
    assert "500" in page
    assert 'class="chip warn"' in page
    assert queries.space().days is not None
    assert queries.space().days > 0  # type: ignore[operator]

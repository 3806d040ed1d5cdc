"""PACS outside the region on their pages: entered, changed, switched off, tried out, taken out again."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from django.test import Client
from django.utils import timezone

from gateway.envelope import Event, ForeignSourceState, Probe, ProbeStep
from ris_central.accounts.models import Role, User
from ris_central.audit.models import AuditEvent
from ris_central.catalogue.actions import foreign
from ris_central.catalogue.models import ForeignHolding, ForeignPacs
from ris_central.federation import configurations
from ris_central.federation.models import Command, Node, NodeConfiguration
from standards.errors import PermanentError
from tests.central.nodes import joined
from tests.factories import centre, region

pytestmark = pytest.mark.django_db
Browser = Callable[[User | None], Client]
NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
FORM = {
    **{"name": "old-pacs", "enabled": "on", "kind": "dicom", "ae_title": "OLDPACS", "host": "10.0.0.5", "port": "104"},
    **{"retrieve": "c-get", "poll_seconds": "120", "queries_per_minute": "6", "concurrent_retrieves": "2"},
    **{"hours": "19:00-07:00, 12:00-13:00", "window_days": "30", "sweep_seconds": "7200", "undated_at_most": "500"},
    **{"answers_at_most": "200", "character_set": "ISO_IR 144", "issuer_of_patient_id": "H-5", "timeout_seconds": "60"},
    **{"rules-TOTAL_FORMS": "3", "rules-INITIAL_FORMS": "0", "rules-0-modalities": "ct, mr", "rules-0-when": "night"},
    **{"rules-1-modalities": "US", "rules-1-when": "catalogue", "rules-2-modalities": "", "rules-2-when": ""},
}


@pytest.fixture
def clinic() -> Node:
    return joined()[0]


@pytest.fixture
def browser(clinic: Node, browser_of: Browser) -> Client:
    """Of the engineer of the clinic."""
    return browser_of(centre.user(Role.ENGINEER, clinic.site))


def at(node: Node, rest: str = "old-pacs/") -> str:
    return f"/sites/nodes/{node.pk}/foreign/{rest}"


def told(node: Node, **state: object) -> None:
    body = ForeignSourceState.model_validate({"source": "old-pacs", **state})
    foreign.take_foreign_source(node, Event(epoch="e", seq=1, occurred_at=NOW, body=body))


def sources(node: Node) -> list[dict[str, object]]:
    return list(configurations.body_of(node)["foreign"])


def test_an_engineer_enters_a_pacs_and_the_node_gets_it_as_a_version_that_can_be_taken_back(
    clinic: Node, browser: Client
) -> None:
    configurations.save(clinic, {"mirror": {"upload_hours": 7}})
    form = {**FORM, "based_on": str(configurations.applied(clinic).wanted)}
    page = browser.get(at(clinic, "new/")).content
    assert b"poll_seconds" in page
    assert re.search(rb'name="port" value="104"', page), "a port to begin with that can be one"
    answer = browser.post(at(clinic, "new/"), form)
    assert (answer.status_code, answer["Location"]) == (302, at(clinic))
    sent = Command.objects.filter(node=clinic, type="configuration").latest("pk").body
    (made,) = sent["foreign"]
    expected = {
        **{"name": "old-pacs", "enabled": True, "ae_title": "OLDPACS", "host": "10.0.0.5", "port": 104},
        **{"retrieve": "c-get", "hours": ["19:00-07:00", "12:00-13:00"], "queries_per_minute": 6},
        **{"character_set": "ISO_IR 144", "undated_at_most": 500, "sweep_seconds": 7200, "timeout_seconds": 60.0},
        "rules": [{"modalities": ["CT", "MR"], "when": "night"}, {"modalities": ["US"], "when": "catalogue"}],
    }
    assert {name: made[name] for name in expected} == expected
    assert sent["mirror"]["upload_hours"] == 7, "the rest of the configuration stays"
    first = NodeConfiguration.objects.filter(node=clinic).earliest("version")
    configurations.roll_back(first)
    assert sources(clinic) == []


def test_a_form_of_an_older_version_and_a_name_twice_are_refused(clinic: Node, browser: Client) -> None:
    configurations.save(clinic, {"mirror": {"upload_hours": 7}})
    late = browser.post(at(clinic, "new/"), {**FORM, "based_on": "0"})
    assert late.status_code == 422
    assert sources(clinic) == []
    now = {"based_on": str(configurations.applied(clinic).wanted)}
    assert browser.post(at(clinic, "new/"), {**FORM, **now}).status_code == 302
    now = {"based_on": str(configurations.applied(clinic).wanted)}
    assert browser.post(at(clinic, "new/"), {**FORM, **now}).status_code == 422
    assert browser.post(at(clinic, "new/"), {**FORM, **now, "name": "other"}).status_code == 302
    assert [one["name"] for one in sources(clinic)] == ["old-pacs", "other"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "new"},
        {"name": "Старый"},
        {"host": ""},
        {"port": "70000"},
        {"hours": "8-18"},
        {"retrieve": "wado-rs"},
        {"kind": "dicomweb", "url": "ftp://x"},
        {"queries_per_minute": "0"},
    ],
)
def test_what_cannot_work_is_said_at_its_field_and_nothing_is_saved(
    clinic: Node, browser: Client, wrong: dict[str, str]
) -> None:
    answer = browser.post(at(clinic, "new/"), {**FORM, **wrong})
    assert answer.status_code == 422
    assert b"errorlist" in answer.content
    assert sources(clinic) == []


def test_what_is_changed_is_changed_and_what_the_form_does_not_show_stays(clinic: Node, browser: Client) -> None:
    configurations.save(clinic, {"foreign": [{"name": "old-pacs", "ae_title": "X", "host": "h", "port": 1}]})
    page = browser.get(at(clinic)).content.decode()
    assert 'value="X"' in page
    form = {**FORM, "name": "renamed", "enabled": "", "kind": "dicomweb", "url": "https://pacs.example/dicom-web"}
    assert browser.post(at(clinic), form).status_code == 302
    (made,) = sources(clinic)
    assert (made["name"], made["enabled"], made["kind"], made["retrieve"]) == ("old-pacs", False, "dicomweb", "wado-rs")
    assert "not in use" in browser.get(f"/sites/{clinic.site_id}/").content.decode()


def test_a_try_out_goes_to_the_node_and_its_answer_is_shown_step_by_step(clinic: Node, browser: Client) -> None:
    assert browser.post(at(clinic, "new/"), {**FORM, "probe": "1"}).status_code == 302
    types = list(Command.objects.filter(node=clinic).order_by("pk").values_list("type", flat=True))
    assert types[-2:] == ["configuration", "foreign.probe"], "what is tried is what was saved"
    asked = Command.objects.filter(type="foreign.probe").get().body
    waiting = browser.get(at(clinic, "old-pacs/state/")).content.decode()
    assert "hx-get" in waiting, "the page looks again by itself"
    moment = datetime.fromisoformat(asked["asked_at"])
    steps = [
        ProbeStep(step="echo", outcome="ok", milliseconds=3),
        ProbeStep(step="find", outcome="ok", found=12),
        ProbeStep(step="retrieve", outcome="failed", detail="move-destination-unknown: the PACS answered A801"),
    ]
    older = Probe(asked_at=moment - timedelta(minutes=1), done_at=moment, steps=[])
    told(clinic, probe=older)
    assert "hx-get" in browser.get(at(clinic, "old-pacs/state/")).content.decode(), "that was the answer before"
    told(clinic, probe=Probe(asked_at=moment, done_at=timezone.now(), steps=steps))
    shown = browser.get(at(clinic)).content.decode()
    assert "hx-get" not in shown.split('id="foreign-state"')[1].split(">")[0]
    assert "12 studies of today" in shown
    assert "move-destination-unknown: the PACS answered A801" in shown
    assert "Have the node" in shown, "and what to do"
    told(clinic, polled_at=NOW)
    assert "12 studies of today" in browser.get(at(clinic)).content.decode(), "a node of before says nothing of it"
    assert AuditEvent.objects.filter(action="foreign.probe-asked").exists()


def test_the_page_says_since_when_a_pacs_does_not_answer_why_and_what_to_do(clinic: Node, browser: Client) -> None:
    configurations.save(clinic, {"foreign": [{"name": "old-pacs", "ae_title": "X", "host": "h", "port": 1}]})
    told(clinic, failing_since=NOW, last_error="connection-failed: X at h:1", polled_at=NOW, quirks=["no-counts"])
    for page in (browser.get(at(clinic)), browser.get(f"/sites/{clinic.site_id}/")):
        text = page.content.decode()
        for piece in ("No answer since 20.11.2026", "the PACS cannot be reached", "Check its power", "how many images"):
            assert piece in text, piece


def test_a_pacs_that_is_taken_out_is_in_no_configuration_and_history_brings_it_back(
    clinic: Node, browser: Client
) -> None:
    made = configurations.save(clinic, {"foreign": [{"name": "old-pacs", "ae_title": "X", "host": "h", "port": 1}]})
    assert browser.post(at(clinic, "old-pacs/remove/"), {"based_on": "999"}).status_code == 302
    assert len(sources(clinic)) == 1, "somebody else changed it meanwhile"
    answer = browser.post(at(clinic, "old-pacs/remove/"), {"based_on": str(made.version)})
    assert answer["Location"] == f"/sites/{clinic.site_id}/"
    assert sources(clinic) == []
    assert browser.get(at(clinic)).status_code == 404
    configurations.roll_back(made)
    assert browser.get(at(clinic)).status_code == 200


def test_nobody_reaches_the_pacs_of_another_site(clinic: Node, browser_of: Browser) -> None:
    configurations.save(clinic, {"foreign": [{"name": "old-pacs", "ae_title": "X", "host": "h", "port": 1}]})
    stranger = browser_of(centre.user(Role.ENGINEER, centre.site("b")))
    assert [stranger.get(at(clinic, rest)).status_code for rest in ("new/", "old-pacs/", "old-pacs/state/")] == [
        404
    ] * 3
    for rest in ("new/", "old-pacs/", "old-pacs/probe/", "old-pacs/remove/"):
        assert stranger.post(at(clinic, rest), FORM).status_code == 404
    assert not ForeignPacs.objects.exists()
    radiologist = browser_of(centre.user(Role.RADIOLOGIST, clinic.site))
    assert radiologist.get(at(clinic)).status_code == 403
    assert at(clinic) not in radiologist.get(f"/sites/{clinic.site_id}/").content.decode()


def test_from_a_pacs_that_is_not_in_use_nothing_is_fetched(clinic: Node, browser_of: Browser) -> None:
    study = region.Acquisition(images=1).arrive(clinic)
    holding = ForeignHolding.objects.create(study=study, node=clinic, source="old-pacs", seen_at=NOW)
    old = {"name": "old-pacs", "ae_title": "X", "host": "h", "port": 1, "enabled": False}
    configurations.save(clinic, {"foreign": [old]})
    answer = browser_of(centre.user(Role.RADIOLOGIST, clinic.site)).post(f"/studies/{study.pk}/fetch/{holding.pk}/")
    assert answer.status_code == 302
    assert not Command.objects.filter(type="study.fetch").exists()


def test_what_no_configuration_has_cannot_be_tried_out(clinic: Node, browser: Client) -> None:
    with pytest.raises(PermanentError, match="unknown-source"):
        foreign.ask_probe(clinic, "nowhere", browser.request().wsgi_request)

"""Studies that only a PACS outside the region has: listed for the people of the site, fetched by a button."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from django.test import Client

from gateway.envelope import (
    Event,
    ForeignRetrieval,
    ForeignSourceState,
    ForeignStudySeen,
    PatientIdentity,
    StudyDescription,
)
from ris_central.accounts.models import Role, User
from ris_central.audit.models import AuditEvent
from ris_central.catalogue.actions import foreign
from ris_central.catalogue.models import ForeignHolding, Study
from ris_central.federation import configurations
from ris_central.federation.models import Command, Node
from standards.errors import PermanentError
from tests.factories import centre, region

pytestmark = pytest.mark.django_db
Browser = Callable[[User | None], Client]
NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.fixture
def clinic() -> Node:
    return region.node("clinic-a", region.site("a"))


def event_of(body: ForeignStudySeen | ForeignRetrieval | ForeignSourceState) -> Event:
    return Event(epoch="e", seq=1, occurred_at=NOW, body=body)


def seen(made: region.Acquisition, clinic: Node, **changes: object) -> Study:
    told = made.changed(clinic).body
    body = ForeignStudySeen(
        source="old-pacs",
        patient=told.patient,  # type: ignore[union-attr]
        study=told.study,  # type: ignore[union-attr]
        modalities=["CT"],
        series_count=1,
        instance_count=4,
    )
    foreign.take_foreign_study(clinic, event_of(body.model_copy(update=changes)))
    return made.known()


def test_a_listed_study_is_of_the_site_and_has_no_instances(clinic: Node) -> None:
    study = seen(region.Acquisition(images=4), clinic)
    assert (study.site, study.instances_known, study.modalities) == (clinic.site, 0, ["CT"])
    assert not study.series.exists()
    holding = study.foreign_holdings.get()
    assert (holding.source, holding.node, holding.instance_count, holding.gone_at) == ("old-pacs", clinic, 4, None)


def test_images_that_come_by_the_node_join_the_study_that_was_listed(clinic: Node) -> None:
    made = region.Acquisition(images=4)
    listed = seen(made, clinic)
    arrived = made.arrive(clinic)
    assert (arrived.pk, arrived.instances_known) == (listed.pk, 4)
    assert Study.objects.count() == 1
    assert seen(made, clinic).modalities == ["CT"]


def test_a_study_that_is_listed_no_more_is_told_of_and_may_come_back(clinic: Node) -> None:
    made = region.Acquisition(images=4)
    seen(made, clinic)
    study = seen(made, clinic, gone=True)
    assert study.foreign_holdings.get().gone_at == NOW
    assert seen(made, clinic).foreign_holdings.get().gone_at is None


def test_a_patient_that_is_corrected_at_the_pacs_does_not_double_the_study(clinic: Node) -> None:
    made = region.Acquisition(images=4)
    before = seen(made, clinic)
    other = PatientIdentity(patient_id="CORRECTED-1", patient_name="Исправленный^Пример")
    foreign.take_foreign_study(
        clinic,
        event_of(
            ForeignStudySeen(
                source="old-pacs",
                patient=other,
                study=StudyDescription(study_instance_uid=before.study_instance_uid),
                modalities=["CT"],
            )
        ),
    )
    (study,) = Study.objects.all()
    assert (study.pk, study.dicom_patient_id, study.patient.name) == (before.pk, "CORRECTED-1", "Исправленный^Пример")


def test_the_worklist_the_study_page_and_qido_show_what_only_a_foreign_pacs_has(
    clinic: Node, browser_of: Browser
) -> None:
    study = seen(region.Acquisition(images=4), clinic)
    browser = browser_of(centre.user(Role.RADIOLOGIST, clinic.site))
    assert "PACS old-pacs" in browser.get("/").content.decode()
    assert f"study-{study.pk}" in browser.get("/?status=elsewhere").content.decode()
    page = browser.get(f"/studies/{study.pk}/").content.decode()
    assert "old-pacs" in page
    assert "Fetch the images" in page
    (row,) = browser.get("/dicom-web/studies").json()
    assert row["00201208"]["Value"] == [4]
    assert row["00080056"]["Value"] == ["NEARLINE"]
    (told,) = browser.get(f"/api/v1/studies/{study.pk}/").json()["foreign"]
    assert (told["source"], told["instances"], told["fetching"]) == ("old-pacs", 4, "")


def test_the_button_sends_the_node_for_the_images_and_its_progress_is_shown(clinic: Node, browser_of: Browser) -> None:
    study = seen(region.Acquisition(images=4), clinic)
    holding = study.foreign_holdings.get()
    browser = browser_of(centre.user(Role.RADIOLOGIST, clinic.site))
    assert browser.post(f"/studies/{study.pk}/fetch/{holding.pk}/").status_code == 302
    command = Command.objects.get(node=clinic, type="study.fetch")
    assert command.body["study_instance_uid"] == study.study_instance_uid
    assert (command.body["source"], command.body["priority"]) == ("old-pacs", 10)
    assert AuditEvent.objects.filter(action="study.fetch-asked", entity_id=str(study.pk)).exists()
    foreign.take_foreign_retrieval(
        clinic,
        event_of(
            ForeignRetrieval(
                source="old-pacs",
                study_instance_uid=study.study_instance_uid,
                status="waiting",
                expected=4,
                held=3,
                missing_count=1,
                missing=["1.2.3.4"],
                attempts=1,
                next_attempt_at=NOW,
                last_error="1 of 4 did not come",
            )
        ),
    )
    page = browser.get(f"/studies/{study.pk}/").content.decode()
    assert "3 of 4 are here" in page
    assert "1.2.3.4" in page
    assert "Try again now" in page
    assert f'hx-get="/studies/{study.pk}/foreign/"' in page, "it is looked at again and again while it goes on"
    assert "3 of 4 are here" in browser.get(f"/studies/{study.pk}/foreign/").content.decode()
    done = ForeignRetrieval(
        source="old-pacs", study_instance_uid=study.study_instance_uid, status="done", expected=4, held=4
    )
    foreign.take_foreign_retrieval(clinic, event_of(done))
    part = browser.get(f"/studies/{study.pk}/foreign/").content.decode()
    assert "All of the 4 images that it lists are here" in part
    assert "hx-get" not in part


def test_who_may_not_see_the_study_may_not_fetch_it(clinic: Node, browser_of: Browser) -> None:
    study = seen(region.Acquisition(images=4), clinic)
    stranger = browser_of(centre.user(Role.RADIOLOGIST, region.site("b")))
    assert stranger.post(f"/studies/{study.pk}/fetch/{study.foreign_holdings.get().pk}/").status_code == 404
    assert not Command.objects.filter(type="study.fetch").exists()


def test_what_a_rule_keeps_at_its_pacs_or_what_is_gone_is_not_fetched(clinic: Node, browser_of: Browser) -> None:
    made = region.Acquisition(images=4)
    browser = browser_of(centre.user(Role.RADIOLOGIST, clinic.site))
    for changes, word in (({"may_fetch": False}, "By a rule of the site"), ({"gone": True}, "no longer lists")):
        study = seen(made, clinic, **changes)
        page = browser.post(f"/studies/{study.pk}/fetch/{study.foreign_holdings.get().pk}/", follow=True)
        assert word in page.content.decode()
    assert not Command.objects.filter(type="study.fetch").exists()


def test_a_pacs_that_does_not_answer_is_told_on_the_page_since_when(clinic: Node, browser_of: Browser) -> None:
    study = seen(region.Acquisition(images=4), clinic)
    state = ForeignSourceState(source="old-pacs", failing_since=NOW, last_error="connection-failed: OLDPACS")
    foreign.take_foreign_source(clinic, event_of(state))
    browser = browser_of(centre.user(Role.RADIOLOGIST, clinic.site))
    page = browser.get(f"/studies/{study.pk}/").content.decode()
    assert "has not answered since 20.11.2026 15:00" in page
    assert "connection-failed" in page
    assert ForeignHolding.objects.count() == 1


def test_the_page_of_the_site_says_how_each_pacs_answers_and_names_no_patient(
    clinic: Node, browser_of: Browser
) -> None:
    seen(region.Acquisition(images=4), clinic)
    state = ForeignSourceState(
        source="old-pacs",
        failing_since=NOW,
        last_error="move-destination-unknown: the PACS answered A801",
        quirks=["no-date-ranges"],
    )
    foreign.take_foreign_source(clinic, event_of(state))
    browser = browser_of(centre.user(Role.ENGINEER, clinic.site))
    page = browser.get(f"/sites/{clinic.site.pk}/").content.decode()
    assert "1 study listed" in page
    assert "does not know where to send the images" in page
    assert "refuses ranges of dates" in page
    foreign.take_foreign_source(clinic, event_of(state.model_copy(update={"retired": True})))
    assert "old-pacs" not in browser.get(f"/sites/{clinic.site.pk}/").content.decode()


def test_a_pacs_is_written_down_in_the_configuration_of_a_node_and_its_faults_are_named() -> None:
    source = {"name": "old-pacs", "ae_title": "OLDPACS", "host": "10.0.0.5", "port": 104, "hours": ["19:00-07:00"]}
    (kept,) = configurations.checked({"foreign": [source]})["foreign"]
    assert (kept["name"], kept["retrieve"], kept["hours"]) == ("old-pacs", "c-move", ["19:00-07:00"])
    for change, fault in (({"port": 0}, "host and port"), ({"hours": ["7"]}, "HH:MM"), ({"prot": 104}, "prot")):
        with pytest.raises(PermanentError, match=fault):
            configurations.checked({"foreign": [source | change]})

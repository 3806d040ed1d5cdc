"""A study that a person keeps from leaving its clinic: who may, what nodes are told, and what lets it go again."""

from collections.abc import Callable

import pytest
from django.test import Client

from ris_central.accounts.models import Role, User
from ris_central.audit.models import AuditEvent
from ris_central.catalogue.actions.grants import grant
from ris_central.catalogue.models import Study
from ris_central.federation.models import Command
from tests.central.place import Place
from tests.factories import region

pytestmark = pytest.mark.django_db
Browser = Callable[[User | None], Client]


@pytest.fixture
def place() -> Place:
    """An archive that does not answer: nothing is asked of it here."""
    return Place("https://127.0.0.1:9")


def test_a_study_is_held_back_with_a_name_and_a_time_and_looking_at_it_does_not_let_it_go(
    place: Place, browser_of: Browser
) -> None:
    study = region.Acquisition().arrive(place.clinic)
    place.progress(study)
    browser = browser_of(place.doctor)
    assert browser.post(f"/studies/{study.pk}/hold/").status_code == 302
    held = {"type": "delivery.hold", "study_instance_uid": study.study_instance_uid}
    assert [(one.node, one.body) for one in Command.objects.all()] == [(place.clinic, held | {"action": "hold"})]
    (row,) = AuditEvent.objects.filter(action="study.held")
    assert (row.actor, row.patient_key, row.detail) == (place.doctor, study.patient_id, {"nodes": ["clinic-a"]})
    for user, address in (
        (place.doctor, f"/studies/{study.pk}/"),
        (place.engineer, f"/sites/{place.site.pk}/mirror/"),
    ):
        page = browser_of(user).get(address).content.decode()
        assert "Held back by" in page
        assert "since" in page
        assert "Let go" in page
    assert not Command.objects.filter(type="study.send").exists(), "looking is not asking"
    browser_of(place.engineer).post(f"/sites/{place.site.pk}/mirror/send/")
    assert not Command.objects.filter(type="study.send").exists(), "nor is sending all that waits"
    browser.post(f"/studies/{study.pk}/hold/", {"do": "let-go"})
    assert Command.objects.latest("pk").body == held | {"action": "rule"}
    assert AuditEvent.objects.filter(action="study.let-go", actor=place.doctor).exists()
    assert "Held back by" not in browser.get(f"/studies/{study.pk}/proof/").content.decode()


def test_who_asks_for_a_held_study_lets_it_go_and_the_node_hears_the_last_word(
    place: Place, browser_of: Browser
) -> None:
    study = region.Acquisition().arrive(place.clinic)
    place.progress(study)
    browser = browser_of(place.doctor)
    for address in ("hold", "send", "hold", "hold", "send", "send"):
        browser.post(f"/studies/{study.pk}/{address}/")
    told = Command.objects.filter(node=place.clinic).order_by("pk").values_list("type", flat=True)
    assert list(told) == ["delivery.hold", "study.send", "delivery.hold", "study.send"]
    assert Study.objects.get(pk=study.pk).held_at is None


def test_what_a_node_says_it_holds_by_hand_is_let_go_of_here_though_this_centre_forgot_it(
    place: Place, browser_of: Browser
) -> None:
    study = region.Acquisition().arrive(place.clinic)
    place.progress(study, held=[{"reason": "held", "instances": 3}])
    browser = browser_of(place.doctor)
    page = browser.get(f"/studies/{study.pk}/").content.decode()
    assert "Held back by a person." in page
    assert "Let go" in page
    assert not Command.objects.exists(), "a centre of yesterday does not send what somebody held back"


def test_sending_all_passes_over_what_is_held_here_or_there_and_says_so(place: Place, browser_of: Browser) -> None:
    here, there, neither = (region.Acquisition().arrive(place.clinic) for _ in range(3))
    for study in (here, neither):
        place.progress(study)
    place.progress(there, held=[{"reason": "night", "instances": 1}, {"reason": "held", "instances": 2}])
    browser = browser_of(place.engineer)
    browser.post(f"/sites/{place.site.pk}/mirror/hold/{here.pk}/")
    for only in ("", "failed"):
        Command.objects.filter(type="study.send").delete()
        place.progress(neither, failed=1, last_error="source-damaged")
        page = browser.post(f"/sites/{place.site.pk}/mirror/send/", {"only": only}, follow=True).content.decode()
        asked = Command.objects.filter(type="study.send").values_list("body__study_instance_uid", flat=True)
        assert list(asked) == [neither.study_instance_uid]
        assert "Asked the node to send now: 1 studies." in page
        assert ("Held back by a person, to be let go of one by one: 2 studies." in page) == (not only), (
            "failed ones: none"
        )
    browser.post(f"/sites/{place.site.pk}/mirror/send/", {"study": there.pk})
    assert Command.objects.latest("pk").body["study_instance_uid"] == there.study_instance_uid, "one by one it goes"


def test_more_than_are_sent_at_once_are_told(
    place: Place, browser_of: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ris_central.monitoring.mirror.SENT_AT_ONCE", 2)
    for _ in range(3):
        place.progress(region.Acquisition().arrive(place.clinic))
    page = browser_of(place.engineer).post(f"/sites/{place.site.pk}/mirror/send/", follow=True).content.decode()
    assert Command.objects.filter(type="study.send").count() == 2
    assert "Not asked for yet, send again when these have gone: 1 studies." in page


def test_only_the_studys_own_site_and_the_administrator_hold_it_back(place: Place, browser_of: Browser) -> None:
    study = region.Acquisition().arrive(place.clinic)
    place.progress(study)
    elsewhere = region.person("elsewhere", Role.RADIOLOGIST, region.site("b"))
    grant(study, [elsewhere])
    browser = browser_of(elsewhere)
    page = browser.get(f"/studies/{study.pk}/proof/").content.decode()
    assert "Send now" in page
    assert "Hold back" not in page
    assert browser.post(f"/studies/{study.pk}/hold/").status_code == 403
    other = region.person("engineer-b", Role.ENGINEER, region.site("c"))
    assert browser_of(other).post(f"/sites/{place.site.pk}/mirror/hold/{study.pk}/").status_code == 404
    assert browser_of(place.doctor).post(f"/sites/{place.site.pk}/mirror/hold/{study.pk}/").status_code == 403
    assert not Command.objects.filter(type="delivery.hold").exists()
    for user, address in (
        (place.administrator, f"/studies/{study.pk}/hold/"),
        (place.engineer, f"/sites/{place.site.pk}/mirror/hold/{study.pk}/"),
    ):
        browser_of(user).post(address)
        assert Command.objects.latest("pk").type == "delivery.hold"
        browser_of(user).post(address, {"do": "let-go"})
        assert Command.objects.latest("pk").body["action"] == "rule"

"""What a node is configured to do: versions, the region's and its own, models of storage, and the pages for it."""

from collections.abc import Callable

import pytest
from django.test import Client

from ris_central.accounts.models import Role, User
from ris_central.federation import actions, configurations
from ris_central.federation.models import Command, NodeConfiguration
from ris_central.organizations import actions as organizations
from ris_central.organizations.models import Site
from standards.errors import PermanentError
from tests.central.nodes import joined, status
from tests.factories import centre

pytestmark = pytest.mark.django_db
Browser = Callable[[User | None], Client]


def test_a_version_is_pushed_rolled_back_and_told_apart_from_what_the_node_has() -> None:
    node, _ = joined()
    first = configurations.save(node, {"mirror": {"night_since": "21:00"}}, reason="later")
    second = configurations.save(node, {"mirror": {"night_since": "22:00"}})
    sent = [one.body for one in Command.objects.filter(node=node, type="configuration").order_by("pk")]
    assert [(one["version"], one["mirror"]["night_since"]) for one in sent] == [
        (first.version, "21:00"),
        (second.version, "22:00"),
    ]
    actions.record_status(node, status(configuration_version=first.version))
    node.refresh_from_db()
    assert configurations.applied(node).drifts
    third = configurations.roll_back(first)
    assert (third.restores, third.version > second.version) == (first.version, True)
    assert configurations.body_of(node)["mirror"]["night_since"] == "21:00"
    actions.record_status(node, status(configuration_version=third.version))
    node.refresh_from_db()
    assert not configurations.applied(node).drifts
    assert NodeConfiguration.objects.count() == 3, "history only grows"


def test_a_node_that_cannot_switch_a_source_off_is_not_told_of_it_until_it_can() -> None:
    node, _ = joined()
    pacs = {"ae_title": "OLD", "host": "10.0.0.5", "port": 104}
    off, on = {**pacs, "name": "old-pacs", "enabled": False}, {**pacs, "name": "other-pacs"}
    made = configurations.save(node, {"foreign": [off, on]})

    def told(after: int) -> tuple[int, list[tuple[int, list[str]]]]:
        commands = actions.take_commands(node.pk, after)
        bodies = [one.body for one in commands if one.body["type"] == "configuration"]
        return commands[-1].seq if commands else after, [
            (body["version"], [source["name"] for source in body["foreign"]]) for body in bodies
        ]

    after, first = told(0)
    assert first == [(made.version, ["other-pacs"])]
    upgraded = [*(node.understands or []), "foreign.probe"]
    for _ in range(2):
        node.refresh_from_db()
        actions.record_status(node, status(understands=upgraded))
    after, second = told(after)
    assert second == [(made.version, ["old-pacs", "other-pacs"])], "once, as soon as it says that it can"
    assert [one["name"] for one in configurations.body_of(node)["foreign"]] == ["old-pacs", "other-pacs"]


def test_the_region_decides_for_all_that_have_nothing_of_their_own() -> None:
    (one, _), (other, _) = joined(), joined("other", centre.site("b"))
    own = configurations.save(one, {"mirror": {"night_since": "21:00"}})
    region = configurations.save(None, {"mirror": {"night_since": "23:00"}})
    assert (configurations.applied(one).wanted, configurations.applied(other).wanted) == (own.version, region.version)
    configurations.follow_region(one)
    assert configurations.applied(one).wanted == region.version
    assert Command.objects.filter(node=one, type="configuration").latest("pk").body["version"] == region.version
    later, _ = joined("later", centre.site("c"))
    assert Command.objects.filter(node=later, type="configuration").get().body["version"] == region.version


def test_a_model_of_storage_becomes_the_rules_of_the_node() -> None:
    site = centre.site()
    node, _ = joined(site=site)
    assert not NodeConfiguration.objects.exists()
    organizations.set_storage_model(site, Site.StorageModel.DISTRIBUTED)
    assert [rule["when"] for rule in configurations.body_of(node)["mirror"]["rules"]] == ["on-demand"]
    late = centre.site("late")
    organizations.set_storage_model(late, Site.StorageModel.HYBRID)
    new, _ = joined("late", late)
    assert [rule["when"] for rule in configurations.body_of(new)["mirror"]["rules"]] == ["now", "night"]
    organizations.set_storage_model(site, Site.StorageModel.CENTRALISED)
    assert configurations.body_of(node)["mirror"]["rules"] == []


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"mirror": {"night_since": "25:00"}}, "mirror.night_since"),
        ({"mirrors": {}}, "mirrors: no such setting"),
        ({"mirror": {"rules": [{"whan": "now"}]}}, "mirror.rules.0.whan: no such setting"),
        ({"mirror": {"rules": [{"destinations": ["nowhere"]}]}}, "no node nowhere"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused_by_its_place(body: dict[str, object], place: str) -> None:
    node, _ = joined()
    with pytest.raises(PermanentError, match=place):
        configurations.save(node, body)
    assert not NodeConfiguration.objects.exists()


def test_who_is_slower_is_told_that_somebody_else_changed_it() -> None:
    node, _ = joined()
    configurations.save(node, {"mirror": {"night_since": "21:00"}}, based_on=0)
    with pytest.raises(PermanentError, match="configuration-changed"):
        configurations.save(node, {"mirror": {"night_since": "22:00"}}, based_on=0)


def test_a_form_changes_what_it_shows_and_keeps_what_it_does_not(browser_of: Browser) -> None:
    node, _ = joined()
    configurations.save(node, {"mirror": {"upload_hours": 7, "rules": [{"modalities": ["CT"], "when": "night"}]}})
    browser = browser_of(centre.user(Role.ADMINISTRATOR))
    address = f"/sites/nodes/{node.pk}/configuration/edit/"
    assert b'value="CT"' in browser.get(address).content
    form = {
        **{f"{name}-{part}": "0" for name in ("rates", "outside") for part in ("TOTAL_FORMS", "INITIAL_FORMS")},
        **{"rules-TOTAL_FORMS": "2", "rules-INITIAL_FORMS": "1", "night_since": "21:00", "night_until": "05:30"},
        **{"rules-0-modalities": "ct, mr", "rules-0-when": "night", "rules-0-priority": "50"},
        **{"rules-1-modalities": "", "rules-1-when": "now", "rules-1-priority": "10", "rules-1-destinations": "clinic"},
        **{"encode": "never", "checkpoints": "10.0.0.0/8", "rotate_after_days": "30", "reason": "van"},
        "based_on": str(configurations.applied(node).wanted),
    }
    assert browser.post(address, form).status_code == 302
    body = configurations.body_of(node)
    assert body["mirror"]["upload_hours"] == 7
    assert (body["mirror"]["encode"], body["mirror"]["compress"]) == ("never", False)
    assert [(rule["modalities"], rule["when"]) for rule in body["mirror"]["rules"]] == [
        (["CT", "MR"], "night"),
        ([], "now"),
    ]
    assert (body["keys"]["rotate_after_days"], body["mirror"]["checkpoints"]) == (30, ["10.0.0.0/8"])
    assert browser.post(address, form).status_code == 422, "the page that was open is of an older version"
    page = browser.get(f"/sites/nodes/{node.pk}/configuration/").content.decode()
    assert "10.0.0.0/8" in page
    assert "not applied" not in page or "van" in page
    shown = NodeConfiguration.objects.filter(node=node).last()
    assert shown is not None
    assert browser.post(f"/sites/configuration/versions/{shown.pk}/restore/").status_code == 302
    assert configurations.body_of(node)["mirror"]["rules"][0]["modalities"] == ["CT"]


def test_text_is_checked_before_it_is_sent(browser_of: Browser) -> None:
    node, _ = joined()
    browser = browser_of(centre.user(Role.ADMINISTRATOR))
    address = f"/sites/nodes/{node.pk}/configuration/text/"
    for text, why in (("{", "not JSON"), ("[]", "object"), ('{"mirror": {"x": 1}}', "mirror.x")):
        answer = browser.post(address, {"text": text, "based_on": "0"})
        assert answer.status_code == 422
        assert why in answer.content.decode()
    assert browser.post(address, {"text": '{"mirror": {"compress": false}}', "based_on": "0"}).status_code == 302
    assert configurations.body_of(node)["mirror"]["compress"] is False

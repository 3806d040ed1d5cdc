"""Alerts that are raised once, by what rule, and closed when it is over."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from ris_central.accounts.models import Role, User
from ris_central.federation.models import Node
from ris_central.monitoring import alerts
from ris_central.monitoring.models import Alert, AlertChannel, AlertMessage, NodeSample
from tests.central.nodes import heard
from tests.factories import centre

pytestmark = pytest.mark.django_db
Browser = Callable[[User | None], Client]


def opened() -> set[tuple[str, str]]:
    return set(Alert.objects.filter(closed_at=None).values_list("rule", "subject"))


def test_an_alert_is_raised_once_and_closed_when_it_is_over() -> None:
    node = heard(centre.node(centre.site()), timedelta(hours=1), oldest_waiting_seconds=10**6)
    AlertChannel.objects.create(kind="mail", target="a@example.org")
    raised, _ = alerts.watch()
    assert raised == 2
    assert alerts.watch() == (0, 0)
    assert opened() == {("node-silent", node.name), ("queue-old", node.name)}
    heard(node)
    assert alerts.watch() == (0, 2)
    assert opened() == set()
    assert AlertMessage.objects.count() == 4, "each is told when it opens and when it closes"
    heard(node, timedelta(hours=1))
    assert alerts.watch() == (1, 0), "what comes back is another alert; the first one is history"
    assert Alert.objects.count() == 3


@pytest.mark.parametrize(
    ("told", "columns", "rule"),
    [
        ({"version": "0.0.1"}, {}, "version-drift"),
        ({"commands_not_understood": 2}, {}, "commands-not-understood"),
        ({"queues": [{"destination": "a", "failed": 3}]}, {}, "mirror-failed"),
        ({"certificate_until": "2020-01-01T00:00:00+00:00"}, {}, "certificate-expiring"),
        ({"roster_until": "2020-01-01T00:00:00+00:00"}, {}, "roster-expiring"),
        ({"backed_up_at": "2020-01-01T00:00:00+00:00"}, {}, "backup-old"),
        ({"configuration_version": 7}, {}, "configuration-drift"),
        ({}, {"clock_skew_seconds": -86400}, "clock-skew"),
        ({}, {"restored_at": timezone.now()}, "centre-restored"),
        ({}, {"rotation_asked_at": timezone.now() - timedelta(days=1)}, "key-not-rotated"),
    ],
)
def test_each_rule_finds_what_it_is_for(told: dict[str, Any], columns: dict[str, object], rule: str) -> None:
    node = heard(centre.node(centre.site()), **told)
    Node.objects.filter(pk=node.pk).update(**columns)
    alerts.watch()
    assert opened() == {(rule, node.name)}
    (alert,) = Alert.objects.all()
    assert node.name in alerts.sentence(alert)
    assert alerts.advice(alert)


def test_a_filling_disk_is_an_alert(browser_of: Browser) -> None:
    node = heard(centre.node(centre.site()))
    now = timezone.now()
    for hour in range(48):
        NodeSample.objects.create(node=node, at=now - timedelta(hours=48 - hour), free_bytes=10**12 - hour * 10**10)
    alerts.watch()
    assert opened() == {("disk-filling", node.name)}
    page = browser_of(centre.user(Role.ADMINISTRATOR)).get("/sites/alerts/").content.decode()
    assert "is full in" in page
    stranger = browser_of(centre.user(Role.ENGINEER, centre.site("b"))).get("/sites/alerts/").content.decode()
    assert "is full in" not in stranger


def test_a_centre_without_a_fresh_backup_says_so() -> None:
    node = heard(centre.node(centre.site()))
    Node.objects.filter(pk=node.pk).update(joined_at=timezone.now() - timedelta(days=5))
    alerts.watch()
    assert opened() == {("backup-old", "centre")}

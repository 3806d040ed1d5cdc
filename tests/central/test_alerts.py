"""Figures of the region that a page reads without counting, and alerts that reach people."""

import csv
import email
import email.policy
import io
import json
import re
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from deploy.processes import free_port
from ris_central.accounts.models import Role, User
from ris_central.catalogue.models import Manifest, Series, Study
from ris_central.config import CentreConfig, config
from ris_central.federation.models import Node
from ris_central.monitoring import alerts, figures, region, sending, tasks
from ris_central.monitoring.models import Alert, AlertChannel, AlertMessage, NodeSample, SiteVolume, StudyCount
from ris_central.organizations.models import Site
from tests.factories import centre

pytestmark = pytest.mark.django_db
Browser = Callable[[User | None], Client]
ROOT = Path(__file__).parent.parent.parent


def study(of: Site, day: int = 0, modalities: tuple[str, ...] = ("CT",), known: int = 2, safe: int = 2) -> Study:
    """A study of so many days ago."""
    made = timezone.now() - timedelta(days=day)
    return Study.objects.create(
        patient=centre.patient(of, number=f"P{Study.objects.count()}"),
        site=of,
        study_instance_uid=f"1.2.{Study.objects.count()}",
        modalities=list(modalities),
        started_at=made,
        instances_known=known,
        instances_safe=safe,
        last_instance_at=made,
    )


def manifest(of: Study, version: int, sizes: list[int]) -> Manifest:
    series, _ = Series.objects.get_or_create(study=of, series_instance_uid=f"{of.study_instance_uid}.1")
    entries = [{"sop_instance_uid": f"1.{number}", "size": size} for number, size in enumerate(sizes)]
    return Manifest.objects.create(
        series=series, version=version, count=len(sizes), root_hash=f"{version}", entries=entries
    )


def counted(of: Site) -> dict[tuple[date, str], int]:
    rows = StudyCount.objects.filter(site=of).values_list("day", "modality", "studies")
    return {(day, modality): studies for day, modality, studies in rows}


def test_studies_are_counted_by_day_and_modality_and_only_changed_days_again() -> None:
    site = centre.site()
    today = timezone.localdate()
    study(site), study(site, 0, ("CT", "SR")), study(site, 3, ("MR",))
    figures.count_studies()
    old = today - timedelta(days=3)
    assert counted(site) == {(today, ""): 2, (today, "CT"): 2, (today, "SR"): 1, (old, ""): 1, (old, "MR"): 1}
    study(site, 0, ("MG",))
    figures.count_studies()
    assert (counted(site)[today, ""], counted(site)[today, "MG"], counted(site)[old, "MR"]) == (3, 1, 1)
    Study.objects.filter(modalities=["MR"]).delete()
    figures.count_studies()
    assert counted(site)[old, "MR"] == 1, "nothing came for that day"
    figures.count_studies(everything=True)
    assert (old, "MR") not in counted(site)


def test_a_study_at_midnight_belongs_to_the_day_of_its_site() -> None:
    east = centre.site("east", time_zone="Asia/Kamchatka")
    made = study(east)
    noon = datetime.fromisoformat("2026-11-20T12:30:00+00:00")  # half past midnight of the 21st there
    Study.objects.filter(pk=made.pk).update(started_at=noon)
    figures.count_studies()
    assert counted(east)[date(2026, 11, 21), ""] == 1


def test_volumes_follow_the_manifests_once_each() -> None:
    site, later = centre.site(), timezone.now() + timedelta(hours=1)
    one = study(site)
    manifest(one, 1, [100, 200])
    assert figures.add_volumes(later) == 1
    assert figures.add_volumes(later) == 0
    manifest(one, 2, [100, 200, 50])
    manifest(study(site), 1, [7])
    assert figures.add_volumes() == 0, "what is younger than two minutes may have one before it that is not there yet"
    assert figures.add_volumes(later) == 2
    volume = SiteVolume.objects.get(site=site)
    assert (volume.bytes, volume.instances) == (357, 4)


def test_a_disk_that_fills_is_foretold_and_one_that_does_not_is_not() -> None:
    start = timezone.now() - timedelta(days=10)
    filling = [(start + timedelta(hours=hour), 100 * 10**9 - hour * 10**8) for hour in range(240)]
    days = figures.days_until_full(filling)
    assert days is not None
    assert abs(days - 76.1 / 2.4) < 0.1
    assert figures.days_until_full([(at, 10**9) for at, _ in filling]) is None
    assert figures.days_until_full(filling[:5]) is None, "five hours foretell nothing"


@given(st.lists(st.integers(0, 10**14), max_size=50))
def test_no_samples_break_the_forecast(values: list[int]) -> None:
    start = timezone.now()
    days = figures.days_until_full([(start + timedelta(hours=n), value) for n, value in enumerate(values)])
    assert days is None or days >= 0


def heard(node: Node, ago: timedelta = timedelta(), **told: object) -> Node:
    node.last_seen_at = timezone.now() - ago
    node.status = {"free_bytes": 10**12, "version": "", **told}
    node.save()
    return node


def test_samples_are_thinned_out_and_forgotten() -> None:
    node, now = heard(centre.node(centre.site())), timezone.now().replace(minute=30, second=0, microsecond=0)
    for ago in (
        timedelta(),
        timedelta(minutes=5),
        timedelta(days=3),
        timedelta(days=3, minutes=5),
        timedelta(days=500),
    ):
        NodeSample.objects.create(node=node, at=now - ago, free_bytes=1)
    assert figures.prune(now) == 2
    assert NodeSample.objects.count() == 3
    assert figures.sample() == 1
    heard(node, timedelta(hours=1))
    assert figures.sample(timezone.now() + timedelta(seconds=1)) == 0, "a silent node has no sample"


def region_of(count: int) -> None:
    for number in range(count):
        site = centre.site(f"s{number:02}")
        centre.device(site, f"CT{number}", "CT")
        heard(centre.node(site, f"n{number}"), oldest_waiting_seconds=60)
        StudyCount.objects.create(site=site, day=timezone.localdate(), modality="", studies=300)
        StudyCount.objects.create(site=site, day=timezone.localdate(), modality="CT", studies=300)
        SiteVolume.objects.create(site=site, bytes=33 * 10**12)


def test_the_page_asks_as_much_for_fifty_sites_as_for_two_and_never_the_studies(browser_of: Browser) -> None:
    browser = browser_of(centre.user(Role.ADMINISTRATOR))
    region_of(2)
    with CaptureQueriesContext(connection) as two:
        page = browser.get("/sites/region/").content.decode()
    assert page.count("CT") >= 1
    assert "30.0" in page
    for number in range(2, 50):
        centre.site(f"s{number:02}")
    with CaptureQueriesContext(connection) as fifty:
        assert browser.get("/sites/region/").status_code == 200
    assert len(fifty) == len(two)
    assert not [query for query in fifty.captured_queries if 'FROM "catalogue_study"' in query["sql"]]


def test_people_see_the_figures_of_their_sites(browser_of: Browser) -> None:
    region_of(2)
    page = browser_of(centre.user(Role.ENGINEER, centre.site("s00"))).get("/sites/region/").content.decode()
    assert "Clinic S00" in page
    assert "Clinic S01" not in page


def test_a_table_for_spreadsheets_holds_no_formula(browser_of: Browser) -> None:
    region_of(1)
    Site.objects.update(name='=HYPERLINK("http://evil.example")')
    answer = browser_of(centre.user(Role.ADMINISTRATOR)).get("/sites/region.csv")
    rows = list(csv.reader(io.StringIO(answer.content.decode("utf-8-sig"))))
    assert {row[0] for row in rows[1:]} == {'\'=HYPERLINK("http://evil.example")'}
    assert [row[2:5] for row in rows[1:]] == [["CT", "1", "300"], ["Total", "1", "300"]]


@given(st.text())
def test_no_cell_begins_as_a_formula(text: str) -> None:
    assert region.plain(text)[:1] not in ("=", "+", "-", "@", "\t", "\r")
    assert region.plain(text).endswith(text)


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


class Receiver:
    """A web receiver that keeps what it is sent and answers what it is told to."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answer = 200
        self.delay = 0.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(outer.delay)
                outer.got.append((dict(self.headers.items()), body))
                self.send_response(outer.answer)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Be quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/hook"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


class MailHandler(socketserver.StreamRequestHandler):
    """SMTP (RFC 5321) as far as a sender of one message needs it."""

    def handle(self) -> None:
        """Talk to one client."""
        inbox: list[bytes] = self.server.inbox  # type: ignore[attr-defined]
        self._say("220 sink")
        while line := self.rfile.readline():
            word = line.split(None, 1)[0].upper().decode()
            if word == "DATA":
                self._say("354 go on")
                text = b""
                while (part := self.rfile.readline()) != b".\r\n":
                    text += part.removeprefix(b".") if part.startswith(b"..") else part
                inbox.append(text)
            if word == "QUIT":
                return self._say("221 bye")
            self._say("250 OK")

    def _say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())


class MailSink(socketserver.ThreadingTCPServer):
    """A mail server that keeps what it gets."""

    allow_reuse_address = True
    daemon_threads = True


@pytest.fixture
def mail() -> Iterator[MailSink]:
    sink = MailSink(("127.0.0.1", 0), MailHandler)
    sink.inbox = []  # type: ignore[attr-defined]
    threading.Thread(target=sink.serve_forever, daemon=True).start()
    yield sink
    sink.shutdown()
    sink.server_close()


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., CentreConfig]:
    def change(**values: Any) -> CentreConfig:
        changed = config().model_copy(update=values)
        monkeypatch.setattr(sending, "config", lambda: changed)
        return changed

    return change


def test_a_mail_says_what_is_wrong_and_what_to_do(mail: MailSink, settings_of: Callable[..., CentreConfig]) -> None:
    port = mail.server_address[1]
    settings_of(smtp_url=f"smtp://127.0.0.1:{port}", mail_from="regis@example.org")
    AlertChannel.objects.create(kind="mail", target="duty@example.org", language="ru")
    node = heard(centre.node(centre.site()), timedelta(hours=1))
    alerts.watch()
    assert sending.send_due() == 1
    heard(node)
    alerts.watch()
    assert sending.send_due() == 1
    assert sending.send_due() == 0
    first, last = [email.message_from_bytes(one, policy=email.policy.default) for one in mail.inbox]  # type: ignore[attr-defined]
    assert first["To"] == "duty@example.org"
    assert "молчит" in str(first["Subject"])
    assert "ничего не теряется" in first.get_content()
    assert "Закончилось" in str(last["Subject"])


def test_a_mail_server_that_is_away_gets_it_later(mail: MailSink, settings_of: Callable[..., CentreConfig]) -> None:
    settings_of(smtp_url=f"smtp://127.0.0.1:{free_port()}")
    AlertChannel.objects.create(kind="mail", target="duty@example.org")
    heard(centre.node(centre.site()), timedelta(hours=1))
    alerts.watch()
    assert sending.send_due() == 0
    message = AlertMessage.objects.get()
    assert (message.status, message.attempts) == ("waiting", 1)
    assert "mail-not-taken" in message.last_error
    settings_of(smtp_url=f"smtp://127.0.0.1:{mail.server_address[1]}")
    assert sending.send_due() == 0, "not before its time"
    assert sending.send_due(message.next_attempt_at) == 1
    assert len(mail.inbox) == 1  # type: ignore[attr-defined]


def test_a_webhook_is_signed_and_says_which_message_it_is(receiver: Receiver) -> None:
    AlertChannel.objects.create(kind="webhook", target=receiver.url, secret="opensesame", language="en")
    node = heard(centre.node(centre.site()), timedelta(hours=1))
    alerts.watch()
    assert sending.send_due() == 1
    ((headers, body),) = receiver.got
    told = json.loads(body)
    assert (told["event"], told["rule"], told["subject"], told["severity"]) == (
        "opened",
        "node-silent",
        node.name,
        "critical",
    )
    moment = int(re.match(r"t=(\d+),", headers["Regis-Signature"])[1])  # type: ignore[index]
    assert headers["Regis-Signature"] == sending.signature("opensesame", moment, body)
    assert headers["Regis-Message"] == str(AlertMessage.objects.get().pk)


@pytest.mark.parametrize("answer", [302, 404, 500])
def test_a_receiver_that_refuses_is_asked_again_and_given_up_in_the_end(receiver: Receiver, answer: int) -> None:
    receiver.answer = answer
    AlertChannel.objects.create(kind="webhook", target=receiver.url, secret="s")
    heard(centre.node(centre.site()), timedelta(hours=1))
    alerts.watch()
    for _ in range(sending.ATTEMPTS + 2):
        sending.send_due(timezone.now() + timedelta(days=30))
        AlertMessage.objects.update(next_attempt_at=timezone.now())
    message = AlertMessage.objects.get()
    assert (message.status, message.attempts, len(receiver.got)) == ("failed", sending.ATTEMPTS, sending.ATTEMPTS)
    assert f"HTTP {answer}" in message.last_error


def test_a_receiver_that_hangs_holds_nobody_up_for_long(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver.delay = 1.5
    monkeypatch.setattr(sending, "TIMEOUT_SECONDS", 0.3)
    AlertChannel.objects.create(kind="webhook", target=receiver.url, secret="s")
    heard(centre.node(centre.site()), timedelta(hours=1))
    alerts.watch()
    sending.send_due()
    assert "webhook-unreachable" in AlertMessage.objects.get().last_error


def test_a_channel_hears_what_it_asked_for() -> None:
    a, b = centre.site(), centre.site("b")
    heard(centre.node(a), version="0.0.1")
    heard(centre.node(b), timedelta(hours=1))
    everything = AlertChannel.objects.create(kind="mail", target="all@example.org")
    critical = AlertChannel.objects.create(kind="mail", target="critical@example.org", only_critical=True)
    of_a = AlertChannel.objects.create(kind="mail", target="a@example.org", site=a)
    AlertChannel.objects.create(kind="mail", target="off@example.org", is_active=False)
    alerts.watch()
    told: dict[AlertChannel, set[str]] = {channel: set() for channel in (everything, critical, of_a)}
    for message in AlertMessage.objects.select_related("alert", "channel"):
        assert message.alert is not None
        told[message.channel].add(message.alert.rule)
    assert list(told.values()) == [{"version-drift", "node-silent"}, {"node-silent"}, {"version-drift"}]


def test_the_administrator_adds_an_address_and_sends_a_test(
    browser_of: Browser, receiver: Receiver, django_capture_on_commit_callbacks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = browser_of(centre.user(Role.ADMINISTRATOR))
    bad = browser.post("/sites/alerts/channels/new/", {"kind": "mail", "target": "nobody", "language": "en"})
    assert bad.status_code == 422
    form = {"kind": "webhook", "target": receiver.url, "language": "en", "is_active": "on"}
    assert browser.post("/sites/alerts/channels/new/", form).status_code == 302
    channel = AlertChannel.objects.get()
    assert len(channel.secret) > 30
    monkeypatch.setattr(tasks.send, "delay", sending.send_due)
    with django_capture_on_commit_callbacks(execute=True):
        browser.post(f"/sites/alerts/channels/{channel.pk}/test/")
    assert json.loads(receiver.got[0][1])["event"] == "test"
    assert "Sent" in browser.get(f"/sites/alerts/channels/{channel.pk}/").content.decode()
    assert browser.post(f"/sites/alerts/channels/{channel.pk}/remove/").status_code == 302
    assert not AlertChannel.objects.exists()


def test_every_query_of_the_grafana_board_names_a_metric_that_is_there(client: Client) -> None:
    heard(centre.node(centre.site()))
    SiteVolume.objects.create(site=centre.site())
    text = client.get("/metrics").content.decode()
    board = json.loads((ROOT / "deploy/grafana/region.json").read_text(encoding="utf-8"))
    asked = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"regis_\w+", target["expr"])
    }
    assert len(asked) > 15
    assert {name for name in asked if not re.search(rf"^{name}(\{{|\s)", text, re.MULTILINE)} == set()


def test_metrics_are_given_to_this_machine_or_for_the_token(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.get("/metrics").status_code == 200
    assert client.get("/metrics", REMOTE_ADDR="10.0.0.9").status_code == 403
    with_token = config().model_copy(update={"metrics_token": "opensesame"})
    monkeypatch.setattr("ris_central.monitoring.metrics.config", lambda: with_token)
    assert client.get("/metrics").status_code == 403
    shown = client.get("/metrics", REMOTE_ADDR="10.0.0.9", HTTP_AUTHORIZATION="Bearer opensesame")
    assert shown.status_code == 200

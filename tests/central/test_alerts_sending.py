"""Alerts that reach people, by mail and by webhook, now or later."""

import email
import email.policy
import json
import re
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from deploy.processes import free_port
from ris_central.accounts.models import Role, User
from ris_central.config import CentreConfig, config
from ris_central.monitoring import alerts, sending, tasks
from ris_central.monitoring.models import AlertChannel, AlertMessage
from tests.central.nodes import heard
from tests.factories import centre

pytestmark = pytest.mark.django_db
Browser = Callable[[User | None], Client]


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

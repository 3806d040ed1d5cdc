"""Alerts on their way to people: by mail and by a signed POST. At least once; a message says which one it is."""

import hashlib
import hmac
import json
import ssl
import time
from datetime import datetime, timedelta
from smtplib import SMTPException
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import structlog
from django.core.mail import EmailMessage, get_connection
from django.db import transaction
from django.utils import timezone, translation
from django.utils.translation import gettext as _

from ris_central.config import config
from ris_central.monitoring import alerts
from ris_central.monitoring.models import AlertChannel, AlertMessage
from standards.errors import PermanentError, RegisError, TransientError

log = structlog.get_logger(__name__)

TIMEOUT_SECONDS = 10.0
FIRST_PAUSE = timedelta(seconds=30)
LONGEST_PAUSE = timedelta(hours=1)
ATTEMPTS = 30


def send_due(now: datetime | None = None) -> int:
    """Send what is due; how many arrived. One that fails is tried again later and stops no other."""
    sent = 0
    while (outcome := _send_one(now or timezone.now())) is not None:
        sent += outcome
    return sent


@transaction.atomic
def _send_one(now: datetime) -> int | None:
    due = AlertMessage.objects.filter(status=AlertMessage.Status.WAITING, next_attempt_at__lte=now)
    # The row stays locked while it is sent: another worker takes another one.
    message = due.select_for_update(skip_locked=True, of=("self",)).order_by("pk").first()
    if message is None:
        return None
    message.attempts += 1
    try:
        _send(message)
    except RegisError as error:
        pause = min(FIRST_PAUSE * 2 ** min(message.attempts - 1, 10), LONGEST_PAUSE)
        message.next_attempt_at, message.last_error = now + pause, str(error)[:255]
        if isinstance(error, PermanentError) or message.attempts >= ATTEMPTS:
            message.status = AlertMessage.Status.FAILED
        log.warning("alert-not-sent", message=message.pk, attempts=message.attempts, error=str(error))
    else:
        message.status, message.sent_at, message.last_error = AlertMessage.Status.SENT, timezone.now(), ""
    message.save()
    return int(message.status == AlertMessage.Status.SENT)


def _send(message: AlertMessage) -> None:
    channel = message.channel
    with translation.override(channel.language), timezone.override(config().time_zone):
        content = content_of(message)
    if channel.kind == AlertChannel.Kind.MAIL:
        _mail(channel.target, content)
    else:
        _post(channel, message, content)


def content_of(message: AlertMessage) -> dict[str, Any]:
    """What is told, in the language that is active."""
    alert = message.alert
    if alert is None:
        return {"event": "test", "title": _("This is a test of the alerts of %(region)s.") % _region(), "advice": ""}
    text = alerts.sentence(alert)
    return {
        "event": message.event,
        "rule": alert.rule,
        "subject": alert.subject,
        "site": alert.node.site.code if alert.node else None,
        "severity": alert.severity,
        "title": _("Over: %(what)s") % {"what": text} if message.event == "closed" else text,
        "advice": alerts.advice(alert),
        "facts": alert.facts,
        "opened_at": alert.opened_at.isoformat(),
        "closed_at": alert.closed_at.isoformat() if alert.closed_at else None,
        "url": f"{config().url}/sites/alerts/",
    }


def _region() -> dict[str, str]:
    return {"region": config().region_name}


def _mail(target: str, content: dict[str, Any]) -> None:
    if not config().smtp_url:
        raise TransientError("mail-not-set-up", "REGIS_CENTRE_SMTP_URL is empty")
    parts = urlsplit(config().smtp_url)
    mark = {"opened": "⚠", "closed": "✓"}.get(content["event"], "")
    lines = [content["title"], "", content["advice"], "", content.get("url", "")]
    connection = get_connection(
        "django.core.mail.backends.smtp.EmailBackend",
        host=parts.hostname or "127.0.0.1",
        port=parts.port or (465 if parts.scheme == "smtps" else 25),
        username=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        use_ssl=parts.scheme == "smtps",
        use_tls=parts.scheme == "smtp+starttls",
        timeout=TIMEOUT_SECONDS,
    )
    subject = " ".join(f"{config().region_name}: {mark} {lines[0]}".split())
    mail = EmailMessage(subject, "\n".join(lines), config().mail_from, [target], connection=connection)
    try:
        mail.send()
    except (SMTPException, OSError) as error:
        raise TransientError("mail-not-taken", f"{type(error).__name__}: {error}") from error


def signature(secret: str, moment: int, body: bytes) -> str:
    """What ``Regis-Signature`` says: HMAC-SHA-256 over ``moment``, a full stop and the body."""
    digest = hmac.new(secret.encode(), f"{moment}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={moment},v1={digest}"


def _post(channel: AlertChannel, message: AlertMessage, content: dict[str, Any]) -> None:
    body = json.dumps({"id": message.pk, **content}, ensure_ascii=False).encode()
    headers = {
        "Content-Type": "application/json",
        "Regis-Message": str(message.pk),
        "Regis-Signature": signature(channel.secret, int(time.time()), body),
    }
    context = ssl.create_default_context()
    if config().tls_ca is not None:
        context.load_verify_locations(config().tls_ca)
    try:
        with httpx.Client(verify=context, timeout=TIMEOUT_SECONDS, trust_env=False, follow_redirects=False) as client:
            answer = client.post(channel.target, content=body, headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise TransientError("webhook-unreachable", f"{type(error).__name__}: {error}") from error
    if not answer.is_success:
        raise TransientError("webhook-refused", f"HTTP {answer.status_code}")

"""What is wrong now, by rule; raised once, closed when it is over."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from cryptography import x509
from django.db import transaction
from django.db.models import Count
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.formats import date_format
from django.utils.translation import gettext as _

from gateway import VERSION
from ris_central.backups import LAST_BACKUP
from ris_central.config import config
from ris_central.federation import configurations, trust
from ris_central.federation.models import InboxEvent, Node
from ris_central.monitoring import figures
from ris_central.monitoring.models import Alert, AlertChannel, AlertMessage

log = structlog.get_logger(__name__)

CENTRE = "centre"
SETTLING = timedelta(minutes=10)
"""A configuration or a key that was asked for may take so long."""
CERTIFICATE_DAYS = 21
ROSTER_DAYS = 7
RESTORED_SHOWN = timedelta(days=7)
CRITICAL_DISK_DAYS = 3.0

WARNING, CRITICAL = Alert.Severity.WARNING, Alert.Severity.CRITICAL


@dataclass(frozen=True)
class Finding:
    """Something that is wrong now."""

    rule: str
    subject: str
    severity: str = WARNING
    node: Node | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def findings(now: datetime | None = None) -> list[Finding]:
    """All that is wrong now."""
    now = now or timezone.now()
    nodes = list(Node.objects.filter(joined_at__isnull=False, revoked_at=None).select_related("site"))
    full = figures.forecasts(nodes, now)
    applied = configurations.applied_of(nodes)
    errors = dict(
        InboxEvent.objects.exclude(error="")
        .order_by()
        .values_list("node")
        .annotate(n=Count("pk"))
        .values_list("node", "n")
    )
    found = [*_of_centre(now)]
    for node in nodes:
        found += _of_node(node, now, full[node.pk], errors.get(node.pk, 0), applied[node.pk])
    return found


def _of_node(
    node: Node, now: datetime, full_in: float | None, errors: int, applied: configurations.Applied
) -> Iterator[Finding]:
    def wrong(rule: str, severity: str = WARNING, **facts: Any) -> Finding:
        return Finding(rule, node.name, severity, node, facts)

    settings = config()
    told: dict[str, Any] = node.status or {}
    heard = node.last_seen_at or node.joined_at or now
    if now - heard > timedelta(minutes=settings.alert_silent_minutes):
        yield wrong("node-silent", CRITICAL, since=heard.isoformat())
    if (skew := node.clock_skew_seconds) is not None and abs(skew) > trust.ALARMING_SECONDS:
        yield wrong("clock-skew", CRITICAL if abs(skew) > 300 else WARNING, seconds=skew)
    if (waiting := int(told.get("oldest_waiting_seconds") or 0)) > settings.alert_queue_minutes * 60:
        yield wrong("queue-old", seconds=waiting, deliveries=told.get("deliveries_waiting"))
    if failed := sum(int(queue.get("failed") or 0) for queue in told.get("queues") or []):
        yield wrong("mirror-failed", failed=failed)
    if full_in is not None and full_in < settings.alert_disk_days:
        yield wrong("disk-filling", CRITICAL if full_in < CRITICAL_DISK_DAYS else WARNING, days=round(full_in, 1))
    if told.get("version") and told["version"] != VERSION:
        yield wrong("version-drift", version=told["version"], ours=VERSION)
    if told.get("commands_not_understood"):
        yield wrong("commands-not-understood", count=told["commands_not_understood"])
    if applied.drifts and (applied.since is None or now - applied.since > SETTLING):
        yield wrong("configuration-drift", wanted=applied.wanted, told=applied.told)
    if node.rotation_asked_at is not None and now - node.rotation_asked_at > timedelta(hours=1):
        yield wrong("key-not-rotated", since=node.rotation_asked_at.isoformat())
    if node.restored_at is not None and now - node.restored_at < RESTORED_SHOWN:
        yield wrong("centre-restored", at=node.restored_at.isoformat())
    if errors:
        yield wrong("events-in-error", count=errors)
    yield from (
        wrong(rule, until=until.isoformat())
        for rule, name, days in (
            ("certificate-expiring", "certificate_until", CERTIFICATE_DAYS),
            ("roster-expiring", "roster_until", ROSTER_DAYS),
        )
        if (until := _moment(told.get(name))) is not None and until - now < timedelta(days=days)
    )
    if "backed_up_at" in told:
        backed_up = _moment(told["backed_up_at"])
        if _is_old(backed_up or node.joined_at or now, now):
            yield wrong("backup-old", at=backed_up.isoformat() if backed_up else None)


def _of_centre(now: datetime) -> Iterator[Finding]:
    certificate = config().tls_certificate
    if certificate is not None and certificate.is_file():
        until = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
        if until - now < timedelta(days=CERTIFICATE_DAYS):
            yield Finding("certificate-expiring", CENTRE, CRITICAL, facts={"until": until.isoformat()})
    backed_up = last_backup(config().data_dir)
    first = Node.objects.exclude(joined_at=None).order_by("joined_at").values_list("joined_at", flat=True).first()
    if _is_old(backed_up or first or now, now):
        yield Finding("backup-old", CENTRE, CRITICAL, facts={"at": backed_up.isoformat() if backed_up else None})


def last_backup(data_dir: Path) -> datetime | None:
    """When the centre was backed up last; None: never, as far as this data folder knows."""
    try:
        return _moment(json.loads((data_dir / LAST_BACKUP).read_text(encoding="utf-8")).get("at"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _is_old(at: datetime, now: datetime) -> bool:
    return now - at > timedelta(hours=config().alert_backup_hours)


def _moment(text: object) -> datetime | None:
    return parse_datetime(text) if isinstance(text, str) else None


@transaction.atomic
def watch(now: datetime | None = None) -> tuple[int, int]:
    """Raise what is new, close what is over; how many of each. Two at once do no harm: the database raises once."""
    now = now or timezone.now()
    present = {(one.rule, one.subject): one for one in findings(now)}
    open_alerts = {
        (alert.rule, alert.subject): alert for alert in Alert.objects.select_for_update().filter(closed_at=None)
    }
    raised = 0
    for key, one in present.items():
        if key in open_alerts:
            alert = open_alerts[key]
            if (alert.facts, alert.severity) != (one.facts, one.severity):
                alert.facts, alert.severity = one.facts, one.severity
                alert.save(update_fields=["facts", "severity"])
            continue
        alert, is_new = Alert.objects.get_or_create(
            rule=one.rule,
            subject=one.subject,
            closed_at=None,
            defaults={"node": one.node, "severity": one.severity, "facts": one.facts, "opened_at": now},
        )
        if is_new:
            raised += 1
            _tell(alert, "opened", now)
    over = [alert for key, alert in open_alerts.items() if key not in present]
    for alert in over:
        alert.closed_at = now
        alert.save(update_fields=["closed_at"])
        _tell(alert, "closed", now)
    if raised or over:
        log.info("alerts", raised=raised, closed=len(over))
    return raised, len(over)


def _tell(alert: Alert, event: str, now: datetime) -> None:
    channels = AlertChannel.objects.filter(is_active=True)
    if alert.severity != CRITICAL:
        channels = channels.filter(only_critical=False)
    for channel in channels:
        if channel.site_id is not None and (alert.node is None or alert.node.site_id != channel.site_id):
            continue
        AlertMessage.objects.get_or_create(alert=alert, channel=channel, event=event, defaults={"next_attempt_at": now})


def sentence(alert: Alert) -> str:
    """What is wrong, in the reader's language."""
    facts = {"name": _("the centre") if alert.subject == CENTRE else alert.subject, **alert.facts}
    for name in ("since", "at", "until"):
        if name in facts:
            facts[name] = _shown(facts[name])
    facts["minutes"] = abs(int(facts.get("seconds") or 0)) // 60
    texts = {
        "node-silent": _("%(name)s is silent since %(since)s."),
        "clock-skew": _("The clock of %(name)s is off by %(seconds)s s."),
        "queue-old": _("At %(name)s something waits for %(minutes)s minutes to be mirrored."),
        "mirror-failed": _("At %(name)s %(failed)s instances cannot be mirrored."),
        "disk-filling": _("The disk of %(name)s is full in %(days)s days."),
        "version-drift": _("%(name)s runs version %(version)s, the centre %(ours)s."),
        "commands-not-understood": _("%(name)s keeps %(count)s commands aside that it does not understand."),
        "configuration-drift": _("%(name)s has configuration %(told)s, not %(wanted)s."),
        "key-not-rotated": _("%(name)s was asked for a new key at %(since)s and has not made one."),
        "centre-restored": _("%(name)s had orders that the centre does not know: the centre was restored (%(at)s)."),
        "events-in-error": _("%(count)s events of %(name)s could not be applied."),
        "certificate-expiring": _("The certificate of %(name)s ends at %(until)s."),
        "roster-expiring": _("The list of people of %(name)s ends at %(until)s."),
        "backup-old": _("%(name)s has no fresh backup; the last one: %(at)s."),
    }
    text = texts.get(alert.rule)
    return text % SimpleDefault(facts) if text else alert.rule


def advice(alert: Alert) -> str:
    """What to do next, in the reader's language."""
    texts = {
        "node-silent": _("Look whether the node and its link run. It works on alone meanwhile; nothing is lost."),
        "clock-skew": _("Set the clock of the machine (NTP). Until then the node signs by the centre's time."),
        "queue-old": _("Look at the site's mirror page: link, night rules, limits."),
        "mirror-failed": _("The site's mirror page names each and why; try again there."),
        "disk-filling": _("Add space, or let old studies leave the disk (REGIS_NODE_TIER_BELOW)."),
        "version-drift": _("Upgrade the older side; neighbours one version apart work together."),
        "commands-not-understood": _("Upgrade the node: it applies them at its next start."),
        "configuration-drift": _("Look whether the node is in touch; see its configuration page."),
        "key-not-rotated": _("Look whether the node is in touch and upgraded."),
        "centre-restored": _("Reports and bookings since the backup are gone; the studies come again by themselves."),
        "events-in-error": _("Give the reason on the node's page to support; they are kept and can be applied again."),
        "certificate-expiring": _("Renew the certificate file and restart the process."),
        "roster-expiring": _("Bring the node in touch: it gets a new list by itself."),
        "backup-old": _("Run the backup command, and look why its timer did not."),
    }
    return texts.get(alert.rule, "")


class SimpleDefault(dict[str, Any]):
    """Facts of an alert that an older version wrote may lack what a text names."""

    def __missing__(self, key: str) -> str:
        return "—"


def _shown(text: object) -> str:
    at = _moment(text)
    return date_format(timezone.localtime(at), "d.m.Y H:i") if at else "—"

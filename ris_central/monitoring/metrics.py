"""``/metrics``: the figures of the centre and of its nodes as Prometheus text; no names of people, no identifiers."""

import hmac
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

import redis
from django.db.models import Count, Sum
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from ris_central.audit.actions import address_of
from ris_central.audit.models import AuditEvent
from ris_central.config import config
from ris_central.federation import configurations
from ris_central.federation.models import Command, InboxEvent, Node
from ris_central.monitoring import alerts, figures, queries
from ris_central.monitoring.models import Alert, AlertMessage, SiteVolume

Values = Iterable[tuple[str, object]]


@require_GET
def metrics(request: HttpRequest) -> HttpResponse:
    """To this machine, or to who shows the token (``REGIS_CENTRE_METRICS_TOKEN``) as ``Authorization: Bearer``."""
    if not _may(request):
        return HttpResponse("The metrics are given to this machine, or for the token.\n", status=403)
    lines: list[str] = []

    def metric(name: str, about: str, values: Values) -> None:
        lines.extend([f"# HELP regis_{name} {about}", f"# TYPE regis_{name} gauge"])
        lines.extend(f"regis_{name}{labels} {'NaN' if value is None else value}" for labels, value in values)

    parts = queries.health()
    metric("up", "Whether a part answers", [(f'{{part="{part}"}}', int(up)) for part, up in parts.items()])
    if parts["database"]:
        _of_region(metric)
        _of_nodes(metric)
    if parts["redis"]:
        try:
            metric("tasks_waiting", "Tasks waiting for a worker", [("", queries.queue_length())])
        except redis.RedisError:
            metric("tasks_waiting", "Tasks waiting for a worker", [("", None)])
    return HttpResponse("\n".join(lines) + "\n", content_type="text/plain; version=0.0.4; charset=utf-8")


def _may(request: HttpRequest) -> bool:
    token = config().metrics_token
    if token:
        return hmac.compare_digest(request.headers.get("Authorization", "").encode(), f"Bearer {token}".encode())
    try:
        return ip_address(address_of(request)).is_loopback
    except ValueError:
        return False


def _of_region(metric: Any) -> None:
    totals = SiteVolume.objects.aggregate(
        known=Sum("instances_known"), safe=Sum("instances_safe"), studies=Sum("studies"), behind=Sum("behind")
    )
    metric("studies", "Studies in the catalogue", [("", totals["studies"] or 0)])
    metric("instances_known", "Instances known to the region", [("", totals["known"] or 0)])
    metric("instances_safe", "Instances safe at the archive", [("", totals["safe"] or 0)])
    metric("studies_behind", "Studies not wholly safe at the archive", [("", totals["behind"] or 0)])
    volumes = list(SiteVolume.objects.select_related("site"))
    metric(
        "site_bytes", "Size of the complete studies", [(f'{{site="{one.site.code}"}}', one.bytes) for one in volumes]
    )
    metric("site_studies", "Studies of the site", [(f'{{site="{one.site.code}"}}', one.studies) for one in volumes])
    metric("audit_unsealed", "Audit rows not chained yet", [("", AuditEvent.objects.filter(sequence=None).count())])
    opened = dict(Alert.objects.filter(closed_at=None).order_by().values_list("severity").annotate(n=Count("pk")))
    metric("alerts", "Open alerts", [(f'{{severity="{name}"}}', opened.get(name, 0)) for name in Alert.Severity.values])
    waiting = AlertMessage.objects.filter(status=AlertMessage.Status.WAITING).count()
    metric("alert_messages_waiting", "Alerts on their way to people", [("", waiting)])
    backed_up = alerts.last_backup(config().data_dir)
    metric(
        "backup_timestamp_seconds", "Last backup of the centre", [("", backed_up.timestamp() if backed_up else None)]
    )


def _of_nodes(metric: Any) -> None:
    nodes = list(Node.objects.filter(revoked_at=None).exclude(joined_at=None))
    states = [queries.state_of(node) for node in nodes]
    full = figures.forecasts(nodes)
    applied = configurations.applied_of(nodes)
    errors = dict(InboxEvent.objects.exclude(error="").order_by().values_list("node").annotate(n=Count("pk")))
    queued = dict(Command.objects.filter(seq=None).order_by().values_list("node").annotate(n=Count("pk")))
    for name, about, value in (
        ("node_up", "Whether the node was heard of lately", lambda s: int(s.state in ("ok", "warn"))),
        ("node_events_waiting", "Events waiting at the node", lambda s: s.events_waiting),
        ("node_deliveries_waiting", "Deliveries waiting at the node", lambda s: s.deliveries_waiting),
        ("node_oldest_waiting_seconds", "Age of the oldest waiting", lambda s: s.oldest_waiting_seconds),
        ("node_free_bytes", "Free disk of the node", lambda s: s.free_bytes),
        ("node_stored_instances", "Instances the node holds", lambda s: s.stored),
        ("node_clock_skew_seconds", "How far the node's clock is ahead", lambda s: s.clock_skew),
        ("node_disk_full_days", "Days until the disk is full", lambda s: full[s.node.pk]),
        ("node_events_in_error", "Events that could not be applied", lambda s: errors.get(s.node.pk, 0)),
        ("node_commands_waiting", "Commands not taken by the node", lambda s: queued.get(s.node.pk, 0)),
        (
            "node_configuration_drift",
            "Whether the node has another configuration than the newest",
            lambda s: int(applied[s.node.pk].drifts),
        ),
    ):
        metric(name, about, [(f'{{node="{state.node.name}"}}', value(state)) for state in states])
    metric(
        "node_version_info",
        "Which version the node runs",
        [(f'{{node="{state.node.name}",version="{_label(state.version)}"}}', 1) for state in states],
    )


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

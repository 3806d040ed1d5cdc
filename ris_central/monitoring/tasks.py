"""The worker's heartbeat, the figures of the region, and the watch over it."""

from datetime import UTC, datetime

from celery import shared_task
from celery.schedules import crontab
from django.core.cache import cache

from ris_central.monitoring import alerts, figures, sending
from ris_central.monitoring.queries import HEARTBEAT_KEY, HEARTBEAT_SECONDS

PERIODIC = {
    "monitoring-heartbeat": {
        "task": "monitoring.heartbeat",
        "schedule": float(HEARTBEAT_SECONDS),
        "options": {"expires": 3 * HEARTBEAT_SECONDS},
    },
    "monitoring-watch": {"task": "monitoring.watch", "schedule": 20.0, "options": {"expires": 20}},
    "monitoring-sample": {
        "task": "monitoring.sample",
        "schedule": float(figures.SAMPLE_SECONDS),
        "options": {"expires": figures.SAMPLE_SECONDS},
    },
    "monitoring-count": {"task": "monitoring.count", "schedule": 120.0, "options": {"expires": 120}},
    "monitoring-recount": {"task": "monitoring.recount", "schedule": crontab(hour="1", minute="20")},
}


@shared_task(name="monitoring.heartbeat")
def heartbeat() -> None:
    """Say that scheduled tasks are carried out: beat sent this and a worker ran it."""
    cache.set(HEARTBEAT_KEY, datetime.now(UTC).timestamp(), 10 * HEARTBEAT_SECONDS)


@shared_task(name="monitoring.watch")
def watch() -> None:
    """Raise and close alerts, and send what is due."""
    alerts.watch()
    sending.send_due()


@shared_task(name="monitoring.send")
def send() -> None:
    """Send what is due, at once."""
    sending.send_due()


@shared_task(name="monitoring.sample")
def sample() -> None:
    """Take down how nodes are."""
    figures.sample()


@shared_task(name="monitoring.count")
def count() -> None:
    """Bring the figures of the region up to date."""
    figures.count_studies()
    while figures.add_volumes() == figures.MANIFESTS_AT_ONCE:
        pass
    figures.measure_mirrors()


@shared_task(name="monitoring.recount")
def recount() -> None:
    """Count every day anew, and volumes that drifted; thin out what was taken down."""
    figures.count_studies(everything=True)
    figures.mend_volumes()
    figures.prune()

"""The worker's heartbeat."""

from datetime import UTC, datetime

from celery import shared_task
from django.core.cache import cache

from ris_central.monitoring.queries import HEARTBEAT_KEY, HEARTBEAT_SECONDS

PERIODIC = {
    "monitoring-heartbeat": {
        "task": "monitoring.heartbeat",
        "schedule": float(HEARTBEAT_SECONDS),
        "options": {"expires": 3 * HEARTBEAT_SECONDS},
    }
}


@shared_task(name="monitoring.heartbeat")
def heartbeat() -> None:
    """Say that scheduled tasks are carried out: beat sent this and a worker ran it."""
    cache.set(HEARTBEAT_KEY, datetime.now(UTC).timestamp(), 10 * HEARTBEAT_SECONDS)

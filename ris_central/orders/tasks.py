"""Keep what nodes hold of their people from running out."""

from celery import shared_task
from django.db import transaction

from ris_central.orders import accessions, node_feed

PERIODIC = {"orders-refresh-rosters": {"task": "orders.refresh_rosters", "schedule": 24 * 3600.0}}


@shared_task(name="orders.refresh_rosters")
def refresh_rosters() -> None:
    """Once a day; a roster lasts 30. Nodes of before there were blocks of accession numbers get theirs."""
    with transaction.atomic():
        node_feed.refresh_rosters()
        accessions.ensure_blocks()

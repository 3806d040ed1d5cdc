"""Nodes in the state that a test of the centre needs."""

from datetime import timedelta

from django.utils import timezone

from ris_central.federation.models import Node


def heard(node: Node, ago: timedelta = timedelta(), **told: object) -> Node:
    node.last_seen_at = timezone.now() - ago
    node.status = {"free_bytes": 10**12, "version": "", **told}
    node.save()
    return node

"""Seal the trail every few seconds."""

from celery import shared_task

from ris_central.audit import sealer

PERIODIC = {"audit-seal": {"task": "audit.seal", "schedule": 3.0, "options": {"expires": 30}}}


@shared_task(name="audit.seal")
def seal() -> None:
    """Chain the rows written since the last time."""
    sealer.seal()

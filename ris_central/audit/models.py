"""The audit trail: rows are inserted in the transaction of what they record; a sealer chains them within 5 s."""

from django.conf import settings
from django.db import models


class AuditEvent(models.Model):
    """One thing that a person or a system did, saw or was refused. Never updated but by the sealer, never deleted."""

    class Outcome(models.TextChoices):
        SUCCESS = "success"
        REFUSED = "refused"
        FAILURE = "failure"

    occurred_at = models.DateTimeField(db_index=True)
    actor = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+")
    actor_name = models.CharField(max_length=150, blank=True)
    action = models.CharField(max_length=64, db_index=True)
    outcome = models.CharField(max_length=8, choices=Outcome, default=Outcome.SUCCESS)
    entity_type = models.CharField(max_length=64, blank=True)
    entity_id = models.CharField(max_length=128, blank=True, db_index=True)
    patient_key = models.BigIntegerField(null=True, db_index=True)
    address = models.CharField(max_length=64, blank=True)
    detail = models.JSONField(default=dict)
    sequence = models.PositiveBigIntegerField(null=True, unique=True)
    previous_hash = models.CharField(max_length=64, blank=True)
    hash = models.CharField(max_length=64, blank=True)

    class Meta:
        ordering = ["-id"]

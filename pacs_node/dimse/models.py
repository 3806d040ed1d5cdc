"""Storage commitments, asked of this node and by it. A row is there before its request is answered."""

from django.db import models


class Commitment(models.Model):
    """One storage commitment transaction. ``instances``: (SOP class, SOP instance) pairs.

    ``result``: ``{"committed": [[class, instance], …], "failed": [[class, instance, reason], …]}``, None until known.
    As SCP: waiting, checked (result known, to be reported), done. As SCU: waiting, asked, done. Or given up: failed.
    """

    class Role(models.TextChoices):
        SCP = "scp"
        SCU = "scu"

    class Status(models.TextChoices):
        WAITING = "waiting"
        CHECKED = "checked"
        ASKED = "asked"
        DONE = "done"
        FAILED = "failed"

    role = models.CharField(max_length=3, choices=Role)
    ae_title = models.CharField(max_length=16)
    transaction_uid = models.CharField(max_length=64)
    instances = models.JSONField()
    instances_sha256 = models.CharField(max_length=64)
    status = models.CharField(max_length=8, choices=Status, default=Status.WAITING)
    result = models.JSONField(null=True)
    attempts = models.PositiveIntegerField(default=0)
    next_attempt_at = models.DateTimeField()
    last_error = models.CharField(max_length=255, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    done_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["role", "ae_title", "transaction_uid", "instances_sha256"], name="commitment_once"
            )
        ]
        indexes = [models.Index(fields=["status", "next_attempt_at"], name="commitment_due")]

"""The gateway's own tables in a node's database: outbox, numbered events, ledger, receipts, trust."""

from django.db import models


class JoinState(models.Model):
    """How this node is joined to the centre: one row at most. The private key lies in a file, never here.

    ``backfill_after`` is the instance key up to which everything held was announced and put on the ledger again,
    after joining, a new epoch or other destinations; null when there is nothing to catch up with.
    """

    name = models.CharField(max_length=64)
    centre_url = models.URLField()
    epoch = models.CharField(max_length=36)
    last_command_seq = models.PositiveBigIntegerField(default=0)
    acknowledged_seq = models.PositiveBigIntegerField(default=0)
    backfill_after = models.BigIntegerField(null=True)
    directory = models.JSONField(default=dict)
    configuration = models.JSONField(default=dict)
    centre_seen_at = models.DateTimeField(null=True)
    last_error = models.CharField(max_length=255, blank=True)
    joined_at = models.DateTimeField(auto_now_add=True)


class OutboxEntry(models.Model):
    """Something to tell the centre, written in the transaction of what happened; the relay numbers it after commit."""

    kind = models.CharField(max_length=32)
    series_key = models.BigIntegerField(null=True)
    instance_key = models.BigIntegerField(null=True)
    body = models.JSONField(default=dict)
    occurred_at = models.DateTimeField(auto_now_add=True)


class NumberedEvent(models.Model):
    """An event with its place in the gapless sequence of this node's epoch; kept 30 days after acknowledgement."""

    epoch = models.CharField(max_length=36)
    seq = models.PositiveBigIntegerField()
    occurred_at = models.DateTimeField(db_index=True)
    body = models.JSONField()
    acknowledged_at = models.DateTimeField(null=True, db_index=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["epoch", "seq"], name="event_numbered_once")]


class Delivery(models.Model):
    """The ledger: one instance on its way to one destination. Done only by a verified receipt.

    ``released_at``: when a node with zero retention let go of its own copy.
    """

    class Status(models.TextChoices):
        WAITING = "waiting"
        RECEIPTED = "receipted"
        FAILED = "failed"

    instance_key = models.BigIntegerField()
    series_key = models.BigIntegerField()
    study_instance_uid = models.CharField(max_length=64, db_index=True)
    sop_instance_uid = models.CharField(max_length=64)
    dataset_sha256 = models.CharField(max_length=64)
    destination = models.CharField(max_length=64)
    status = models.CharField(max_length=10, choices=Status, default=Status.WAITING)
    priority = models.PositiveSmallIntegerField(default=50)
    attempts = models.PositiveIntegerField(default=0)
    next_attempt_at = models.DateTimeField()
    last_error = models.CharField(max_length=255, blank=True)
    receipt = models.JSONField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)
    receipted_at = models.DateTimeField(null=True)
    released_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["instance_key", "destination"], name="delivery_once_per_destination")
        ]
        indexes = [models.Index(fields=["status", "priority", "next_attempt_at"])]


class StudyPriority(models.Model):
    """A study the centre asked to have before others; also for instances of it that arrive later."""

    study_instance_uid = models.CharField(max_length=64, unique=True)
    priority = models.PositiveSmallIntegerField()


class IssuedReceipt(models.Model):
    """A receipt this node gave as receiver; asked again, it gives the same one."""

    sender = models.CharField(max_length=64)
    sop_instance_uid = models.CharField(max_length=64)
    dataset_sha256 = models.CharField(max_length=64)
    receipt = models.JSONField()
    issued_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["sender", "sop_instance_uid", "dataset_sha256"], name="receipt_once_per_sender"
            )
        ]

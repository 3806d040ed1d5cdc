"""The gateway's own tables in a node's database: outbox, numbered events, ledger, receipts, trust."""

from typing import ClassVar

from django.db import models


class JoinState(models.Model):
    """How this node is joined to the centre: one row at most. The private key lies in a file, never here.

    ``backfill_after`` is the instance key up to which everything held was announced and put on the ledger again,
    after joining, a new epoch or other destinations; null when there is nothing to catch up with. ``ledger_after`` is
    the same for the ledger alone, after other rules of the mirror. ``clock_offset_seconds``: how far the centre's
    clock is ahead. ``rotate_key_at``: when the centre asked for another key. ``audit_told``: up to which row of its
    own audit trail the centre was told.
    """

    name = models.CharField(max_length=64)
    centre_url = models.URLField()
    epoch = models.CharField(max_length=36)
    last_command_seq = models.PositiveBigIntegerField(default=0)
    acknowledged_seq = models.PositiveBigIntegerField(default=0)
    backfill_after = models.BigIntegerField(null=True)
    ledger_after = models.BigIntegerField(null=True)
    directory = models.JSONField(default=dict)
    configuration = models.JSONField(default=dict)
    centre_seen_at = models.DateTimeField(null=True)
    clock_offset_seconds = models.IntegerField(default=0)
    rotate_key_at = models.DateTimeField(null=True)
    audit_told = models.PositiveBigIntegerField(default=0)
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
    """The ledger: one instance on its way to one destination. Done only by a proof, and ``proof`` names which.

    A peer's signed receipt makes it ``receipted``; whatever a place outside the region can prove makes it
    ``delivered``, which nobody may take for a copy that the region can fetch back. ``size``, ``modality`` are what
    rules and figures need. ``held_by`` and ``held_until`` say which rule keeps it back (``envelope.Held``).
    ``wire_bytes`` are those of the bodies that carried it so far. ``released_at``: when a node with zero retention let
    go of its copy.
    """

    class Status(models.TextChoices):
        WAITING = "waiting"
        RECEIPTED = "receipted"
        DELIVERED = "delivered"
        FAILED = "failed"

    class Proof(models.TextChoices):
        """Rising strength."""

        STORED = "stored"
        COMMITTED = "committed"
        READ_BACK = "read-back"
        RECEIPT = "receipt"

    CLOSED: ClassVar = (Status.RECEIPTED, Status.DELIVERED)

    instance_key = models.BigIntegerField()
    series_key = models.BigIntegerField()
    study_instance_uid = models.CharField(max_length=64, db_index=True)
    sop_instance_uid = models.CharField(max_length=64)
    dataset_sha256 = models.CharField(max_length=64)
    destination = models.CharField(max_length=64)
    status = models.CharField(max_length=10, choices=Status, default=Status.WAITING)
    proof = models.CharField(max_length=10, choices=Proof, blank=True, default="")
    priority = models.PositiveSmallIntegerField(default=50)
    size = models.BigIntegerField(default=0)
    modality = models.CharField(max_length=16, blank=True, default="")
    held_by = models.CharField(max_length=10, blank=True, default="")
    held_until = models.DateTimeField(null=True)
    attempts = models.PositiveIntegerField(default=0)
    next_attempt_at = models.DateTimeField()
    last_error = models.CharField(max_length=255, blank=True)
    failing_since = models.DateTimeField(null=True)
    wire_bytes = models.BigIntegerField(default=0)
    receipt = models.JSONField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)
    receipted_at = models.DateTimeField(null=True)
    released_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["instance_key", "destination"], name="delivery_once_per_destination")
        ]
        indexes = [
            models.Index(fields=["status", "priority", "next_attempt_at"]),
            models.Index(
                fields=["destination", "priority", "id"],
                condition=models.Q(status="waiting", held_by=""),
                name="delivery_to_go",
            ),
            models.Index(
                fields=["destination", "held_by", "modality"],
                condition=models.Q(status__in=["waiting", "failed"]),
                name="delivery_open",
            ),
        ]


class StudyPriority(models.Model):
    """What somebody asked for a study, also for instances of it that arrive later: to go before others, or to stay."""

    study_instance_uid = models.CharField(max_length=64, unique=True)
    priority = models.PositiveSmallIntegerField()
    is_held = models.BooleanField(default=False)


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


class ParkedCommand(models.Model):
    """A command that this node did not understand or could not apply: tried again when its program is another."""

    seq = models.PositiveBigIntegerField(unique=True)
    schema_version = models.PositiveIntegerField()
    type = models.CharField(max_length=64)
    body = models.JSONField()
    reason = models.CharField(max_length=255)
    received_at = models.DateTimeField(auto_now_add=True)


class KeyRotation(models.Model):
    """A change of this node's key, as it was stated by both keys (``envelope.KeyChange``)."""

    old_key = models.CharField(max_length=64)
    new_key = models.CharField(max_length=64, unique=True)
    statement = models.JSONField()
    made_at = models.DateTimeField()
    announced_at = models.DateTimeField(null=True)

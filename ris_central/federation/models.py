"""Nodes, join codes, the inbox of events and the outbox of commands."""

from django.db import models

from ris_central.organizations.models import Site


class Node(models.Model):
    """A joined node of the region."""

    class Kind(models.TextChoices):
        ARCHIVE = "archive"
        CLINIC = "clinic"
        GATEWAY = "gateway"

    site = models.ForeignKey(Site, on_delete=models.PROTECT, related_name="nodes")
    name = models.SlugField(unique=True)
    kind = models.CharField(max_length=8, choices=Kind)
    ae_title = models.CharField(max_length=16, blank=True)
    public_key = models.CharField(max_length=64, blank=True)
    url = models.URLField(blank=True)
    browser_url = models.URLField(blank=True)
    host = models.CharField(max_length=255, blank=True)
    dicom_port = models.PositiveIntegerField(default=0)
    joined_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)
    epoch = models.CharField(max_length=36, blank=True)
    cursor = models.PositiveBigIntegerField(default=0)
    last_command_seq = models.PositiveBigIntegerField(default=0)
    applied_command_seq = models.PositiveBigIntegerField(default=0)
    last_seen_at = models.DateTimeField(null=True)
    status = models.JSONField(default=dict)
    key_since = models.DateTimeField(null=True)
    rotation_asked_at = models.DateTimeField(null=True)
    understands = models.JSONField(null=True)
    clock_skew_seconds = models.IntegerField(null=True)
    """How far the node's own clock is ahead of ours, when we last heard it."""
    clock_heard_at = models.DateTimeField(null=True)
    restored_at = models.DateTimeField(null=True)
    """When we noticed that this node had commands of us that we do not know: we were restored from a backup."""

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class FormerKey(models.Model):
    """A public key that a node had. Kept for ever: what it signed while it counted stays provable.

    ``rotated``: the node itself changed it, stated by both keys; else the node was joined anew with another key.
    """

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="former_keys")
    public_key = models.CharField(max_length=64, unique=True)
    rotated = models.BooleanField()
    statement = models.JSONField(default=dict)
    since = models.DateTimeField(null=True)
    until = models.DateTimeField()
    """Requests signed with it count until then."""


class NodeConfiguration(models.Model):
    """A version of what the region decided for a node, or without a node for all that have none of their own.

    Versions count through the whole region, so that a number a node tells names one row.
    """

    node = models.ForeignKey(Node, null=True, on_delete=models.CASCADE, related_name="configurations")
    version = models.PositiveIntegerField(unique=True)
    body = models.JSONField()
    follows_region = models.BooleanField(default=False)
    """From this version on the node has what all have: the body is empty."""
    reason = models.CharField(max_length=255, blank=True)
    restores = models.PositiveIntegerField(null=True)
    made_by = models.CharField(max_length=150)
    made_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-version"]


class NodeAuditRow(models.Model):
    """A row of a node's own audit trail as it was chained there. ``whole``: it fits its hash and the row before."""

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="audit_rows")
    sequence = models.PositiveBigIntegerField()
    occurred_at = models.DateTimeField(db_index=True)
    actor = models.CharField(max_length=150)
    action = models.CharField(max_length=64)
    outcome = models.CharField(max_length=16)
    entity = models.CharField(max_length=255, blank=True)
    address = models.CharField(max_length=64, blank=True)
    detail = models.JSONField(default=dict)
    previous_hash = models.CharField(max_length=64, blank=True)
    hash = models.CharField(max_length=64)
    whole = models.BooleanField()
    received_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-sequence"]
        constraints = [models.UniqueConstraint(fields=["node", "sequence", "hash"], name="node_audit_row_once")]


class JoinCode(models.Model):
    """A one-time code with which a node joins. Only its SHA-256 is kept."""

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="join_codes")
    digest = models.CharField(max_length=64, unique=True)
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)
    used_by_key = models.CharField(max_length=64, blank=True)


class InboxEvent(models.Model):
    """An event of a node, taken once. ``error`` is set when applying it failed; neighbours went on."""

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="events")
    epoch = models.CharField(max_length=36)
    seq = models.PositiveBigIntegerField()
    type = models.CharField(max_length=32)
    occurred_at = models.DateTimeField()
    received_at = models.DateTimeField(auto_now_add=True)
    body = models.JSONField()
    error = models.TextField(blank=True)
    tried_with = models.CharField(max_length=16, blank=True)
    """The vocabulary with which it could not be understood last (``intake.VOCABULARY``)."""

    class Meta:
        constraints = [models.UniqueConstraint(fields=["node", "epoch", "seq"], name="inbox_event_once")]
        indexes = [
            models.Index(fields=["node"], condition=~models.Q(error=""), name="inbox_event_in_error"),
            models.Index(fields=["received_at"], name="inbox_event_received"),
        ]


class Command(models.Model):
    """Something a node is to do or know; written in the transaction of its cause.

    ``seq`` is given when the node asks, after that transaction: writers of commands never wait for each other.
    """

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="commands")
    seq = models.PositiveBigIntegerField(null=True)
    type = models.CharField(max_length=32)
    body = models.JSONField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["node", "seq"], name="command_once")]
        indexes = [models.Index(fields=["node"], condition=models.Q(seq=None), name="command_not_numbered")]
        ordering = ["seq"]


class DeliveryState(models.Model):
    """The latest word of a node on how far its ledger is with a study towards a destination."""

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="deliveries")
    study_instance_uid = models.CharField(max_length=64, db_index=True)
    destination = models.CharField(max_length=64)
    total = models.PositiveIntegerField()
    receipted = models.PositiveIntegerField()
    failed = models.PositiveIntegerField()
    last_error = models.CharField(max_length=255, blank=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["node", "study_instance_uid", "destination"], name="delivery_state_once_per_study"
            )
        ]

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

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


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

    class Meta:
        constraints = [models.UniqueConstraint(fields=["node", "epoch", "seq"], name="inbox_event_once")]


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

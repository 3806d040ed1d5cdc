"""What is watched: refused peers, how nodes and sites fare over time, and what people are alarmed of."""

from django.db import models
from django.utils.translation import gettext_lazy as _

from ris_central.federation.models import Node
from ris_central.organizations.models import Site


class RefusedAssociation(models.Model):
    """A peer that a node turned away, counted; an engineer admits it by connecting it as a device."""

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="refused_associations")
    calling_ae_title = models.CharField(max_length=16)
    called_ae_title = models.CharField(max_length=16, blank=True)
    address = models.CharField(max_length=64, blank=True)
    reason = models.CharField(max_length=255)
    count = models.PositiveIntegerField(default=1)
    first_at = models.DateTimeField()
    last_at = models.DateTimeField()
    admitted_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-last_at"]
        constraints = [
            models.UniqueConstraint(fields=["node", "calling_ae_title", "address"], name="refused_once_per_peer")
        ]


class NodeSample(models.Model):
    """How a node was at a moment; thinned out as it gets older (``figures.prune``)."""

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="samples")
    at = models.DateTimeField()
    free_bytes = models.BigIntegerField(null=True)
    stored_bytes = models.BigIntegerField(null=True)
    stored_instances = models.PositiveBigIntegerField(default=0)
    events_waiting = models.PositiveIntegerField(default=0)
    deliveries_waiting = models.PositiveIntegerField(default=0)
    oldest_waiting_seconds = models.PositiveIntegerField(default=0)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["node", "at"], name="node_sample_once")]
        indexes = [models.Index(fields=["at"], name="node_sample_at")]


class StudyCount(models.Model):
    """Studies of a site on a day (of the site's zone) by modality; ``modality`` "" counts each study once."""

    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="study_counts")
    day = models.DateField()
    modality = models.CharField(max_length=16, blank=True)
    studies = models.PositiveIntegerField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["site", "day", "modality"], name="study_count_once")]


class SiteVolume(models.Model):
    """How much the complete studies of a site take, from their manifests, and how far its mirror is."""

    site = models.OneToOneField(Site, on_delete=models.CASCADE, related_name="volume")
    bytes = models.BigIntegerField(default=0)
    instances = models.BigIntegerField(default=0)
    studies = models.PositiveBigIntegerField(default=0)
    instances_known = models.BigIntegerField(default=0)
    instances_safe = models.BigIntegerField(default=0)
    behind = models.PositiveIntegerField(default=0)
    """Studies with instances that are not safe at the archive."""
    behind_since = models.DateTimeField(null=True)
    """When the oldest of those was last added to."""


class Progress(models.Model):
    """How far a calculation that goes on and on has come."""

    name = models.CharField(max_length=32, unique=True)
    position = models.BigIntegerField(default=0)
    at = models.DateTimeField(null=True)


class Alert(models.Model):
    """Something is wrong: raised once, closed when it is over, kept as history."""

    class Severity(models.TextChoices):
        WARNING = "warning", _("Warning")
        CRITICAL = "critical", _("Critical")

    rule = models.CharField(max_length=32)
    subject = models.CharField(max_length=64)
    """What it is about: the name of a node, or ``centre``."""
    node = models.ForeignKey(Node, null=True, on_delete=models.CASCADE, related_name="alerts")
    severity = models.CharField(max_length=8, choices=Severity)
    facts = models.JSONField(default=dict)
    opened_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-opened_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["rule", "subject"], condition=models.Q(closed_at=None), name="alert_open_once"
            )
        ]
        indexes = [models.Index(fields=["-opened_at"], name="alert_opened")]


class AlertChannel(models.Model):
    """Where alerts go: a mail address or a web address. ``secret`` signs what is posted."""

    class Kind(models.TextChoices):
        MAIL = "mail", _("Mail")
        WEBHOOK = "webhook", _("Webhook")

    kind = models.CharField(max_length=8, choices=Kind)
    target = models.CharField(max_length=255)
    secret = models.CharField(max_length=64, blank=True)
    only_critical = models.BooleanField(default=False)
    site = models.ForeignKey(Site, null=True, on_delete=models.CASCADE, related_name="+")
    """Only of this site's nodes; without one everything."""
    language = models.CharField(max_length=2, default="ru")
    is_active = models.BooleanField(default=True)

    class Meta:
        ordering = ["kind", "target"]

    def __str__(self) -> str:
        return self.target


class AlertMessage(models.Model):
    """What a channel is to be told; written with what it tells of, sent until the other side has it."""

    class Status(models.TextChoices):
        WAITING = "waiting", _("Waiting")
        SENT = "sent", _("Sent")
        FAILED = "failed", _("Given up")

    alert = models.ForeignKey(Alert, null=True, on_delete=models.CASCADE, related_name="messages")
    """None: a test that a person asked for."""
    channel = models.ForeignKey(AlertChannel, on_delete=models.CASCADE, related_name="messages")
    event = models.CharField(max_length=8)
    """``opened``, ``closed`` or ``test``."""
    status = models.CharField(max_length=8, choices=Status, default=Status.WAITING)
    attempts = models.PositiveSmallIntegerField(default=0)
    next_attempt_at = models.DateTimeField()
    last_error = models.CharField(max_length=255, blank=True)
    sent_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["alert", "channel", "event"], name="alert_message_once")]
        indexes = [
            models.Index(fields=["next_attempt_at"], condition=models.Q(status="waiting"), name="alert_message_due")
        ]

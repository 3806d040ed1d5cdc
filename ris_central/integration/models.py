"""HL7 v2 messages that came and that leave."""

from django.db import models
from django.utils.translation import gettext_lazy as _


class Hl7Message(models.Model):
    """A received message and the answer it got. The same MSH-10 of the same sender gets the same answer again."""

    sending_application = models.CharField(max_length=180, blank=True)
    sending_facility = models.CharField(max_length=180, blank=True)
    message_control_id = models.CharField(max_length=199)
    message_type = models.CharField(max_length=16, blank=True)
    raw = models.BinaryField()
    raw_sha256 = models.CharField(max_length=64)
    acknowledgment_code = models.CharField(max_length=2)
    answer = models.BinaryField()
    error = models.TextField(blank=True)
    received_at = models.DateTimeField(auto_now_add=True, db_index=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["sending_application", "sending_facility", "message_control_id"], name="hl7_message_once"
            )
        ]


class Hl7Receiver(models.Model):
    """Where results are sent (ORU^R01 over MLLP)."""

    name = models.CharField(_("name"), max_length=64, unique=True)
    host = models.CharField(_("host"), max_length=255)
    port = models.PositiveIntegerField(_("port"))
    character_set = models.CharField(_("character set"), max_length=32, default="UNICODE UTF-8")
    application = models.CharField(_("application (MSH-5)"), max_length=64, blank=True)
    facility = models.CharField(_("facility (MSH-6)"), max_length=64, blank=True)
    is_active = models.BooleanField(_("in use"), default=True)


class Hl7Outgoing(models.Model):
    """A message on its way to a receiver: the outbox. Delivered when the receiver's ACK says AA."""

    receiver = models.ForeignKey(Hl7Receiver, on_delete=models.CASCADE, related_name="outgoing")
    key = models.CharField(max_length=64)
    """What it tells of, e.g. ``report:17:1``; once per receiver."""
    message_control_id = models.CharField(max_length=20, unique=True)
    payload = models.BinaryField()
    attempts = models.PositiveIntegerField(default=0)
    next_attempt_at = models.DateTimeField(auto_now_add=True, db_index=True)
    last_error = models.CharField(max_length=255, blank=True)
    delivered_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["receiver", "key"], name="outgoing_once_per_receiver")]

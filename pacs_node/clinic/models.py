"""AE registry, refused attempts, cached Modality Worklist and the roster of a node."""

from django.conf import settings
from django.db import models


class ApplicationEntity(models.Model):
    """A peer that may talk to this node. ``origin``: who said so; the centre never removes what a person admitted.

    ``address``: where it may call from, addresses and networks parted by commas; empty: anywhere. ``host`` and
    ``port``: where it listens, for C-MOVE and storage commitment. Transfer syntaxes are UIDs parted by commas.
    """

    class Origin(models.TextChoices):
        CENTRE = "centre"
        LOCAL = "local"

    class Quirk(models.TextChoices):
        """What a device needs that the standard does not ask for."""

        UNCOMPRESSED_ONLY = "uncompressed-only"
        REQUIRED_KEYS_ONLY = "required-keys-only"
        COMMIT_ON_SAME_ASSOCIATION = "commit-on-same-association"
        WRITES_WINDOWS_1251 = "writes-windows-1251"
        WRITES_KOI8_R = "writes-koi8-r"
        WRITES_UTF_8 = "writes-utf-8"
        WRITES_CP866 = "writes-cp866"

    ae_title = models.CharField(max_length=16, unique=True)
    origin = models.CharField(max_length=8, choices=Origin, default=Origin.LOCAL)
    modality = models.CharField(max_length=16, blank=True)
    character_set = models.CharField(max_length=64, default="ISO_IR 192")
    issuer_of_patient_id = models.CharField(max_length=64, blank=True)
    time_zone = models.CharField(max_length=64, default="Europe/Moscow")
    address = models.CharField(max_length=255, blank=True)
    host = models.CharField(max_length=255, blank=True)
    port = models.PositiveIntegerField(default=0)
    uses_tls = models.BooleanField(default=False)
    may_store = models.BooleanField(default=True)
    may_query = models.BooleanField(default=True)
    may_retrieve = models.BooleanField(default=True)
    may_commit = models.BooleanField(default=True)
    may_worklist = models.BooleanField(default=True)
    preferred_transfer_syntaxes = models.CharField(max_length=1024, blank=True)
    forbidden_transfer_syntaxes = models.CharField(max_length=1024, blank=True)
    maximum_pdu_bytes = models.PositiveIntegerField(default=0)
    quirks = models.JSONField(default=list)


class RefusedAssociation(models.Model):
    """A peer that was turned away, and why. One row per (AE, address, reason), counted."""

    calling_ae_title = models.CharField(max_length=16)
    called_ae_title = models.CharField(max_length=16)
    address = models.CharField(max_length=64)
    reason = models.CharField(max_length=64)
    attempts = models.PositiveIntegerField(default=1)
    first_at = models.DateTimeField(auto_now_add=True)
    last_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["calling_ae_title", "called_ae_title", "address", "reason"], name="refusal_counted_once"
            )
        ]


class WorklistEntry(models.Model):
    """A cached Scheduled Procedure Step; ``item`` is a worklist.feed.WorklistItem."""

    scheduled_procedure_step_id = models.CharField(max_length=16, unique=True)
    scheduled_station_ae_title = models.CharField(max_length=16, db_index=True)
    starts_at = models.DateTimeField(db_index=True)
    item = models.JSONField()
    updated_at = models.DateTimeField(auto_now=True)


class RosterMember(models.Model):
    """A local user who came by the roster of the site, and until when that holds."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    role = models.CharField(max_length=32)
    expires_at = models.DateTimeField()


class LoginGuard(models.Model):
    """Wrong guesses at one name's password, whether or not such a person exists."""

    username = models.CharField(max_length=150, unique=True)
    wrong_guesses = models.PositiveIntegerField(default=0)
    locked_until = models.DateTimeField(null=True)
    last_at = models.DateTimeField(auto_now=True)


class AuditEntry(models.Model):
    """Who saw or changed what at this node; chained by the sealer (``clinic.audit``), uploaded to the centre later."""

    occurred_at = models.DateTimeField(auto_now_add=True)
    actor = models.CharField(max_length=150)
    action = models.CharField(max_length=64)
    outcome = models.CharField(max_length=16, default="success")
    entity = models.CharField(max_length=255, blank=True)
    address = models.CharField(max_length=64, blank=True)
    detail = models.JSONField(default=dict)
    sequence = models.PositiveBigIntegerField(null=True, unique=True)
    previous_hash = models.CharField(max_length=64, blank=True)
    hash = models.CharField(max_length=64, blank=True)

    class Meta:
        indexes = [models.Index(fields=["actor", "action", "entity"])]

"""Devices, service requests and scheduled procedure steps."""

from django.conf import settings
from django.contrib.postgres.constraints import ExclusionConstraint
from django.contrib.postgres.fields import DateTimeRangeField, RangeOperators
from django.db import models
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from ris_central.federation.models import Node
from ris_central.organizations.models import Site
from ris_central.patients.models import Patient


class Int8Range(models.Func):
    """``int8range(x, x, '[]')``: lets a plain key take part in a GiST exclusion without btree_gist."""

    function = "INT8RANGE"
    template = "%(function)s(%(expressions)s, %(expressions)s, '[]')"


class Device(models.Model):
    """A modality: where it stands, how it calls itself, what it can read."""

    site = models.ForeignKey(Site, on_delete=models.PROTECT, related_name="devices")
    node = models.ForeignKey(Node, null=True, on_delete=models.PROTECT, related_name="devices")
    name = models.CharField(max_length=64)
    ae_title = models.CharField(max_length=16)
    modality = models.CharField(max_length=16, blank=True)
    """Empty: not a modality (a workstation, another archive); it is not on the schedule."""
    character_set = models.CharField(max_length=64, default="ISO_IR 192")
    address = models.CharField(max_length=64, blank=True)
    """Where it must call from; empty: from anywhere."""
    host = models.CharField(max_length=255, blank=True)
    port = models.PositiveIntegerField(default=0)
    """Where it listens, as a destination of C-MOVE."""
    slot_minutes = models.PositiveSmallIntegerField(default=30)
    is_active = models.BooleanField(default=True)

    class Meta:
        ordering = ["site", "name"]
        constraints = [models.UniqueConstraint(fields=["node", "ae_title"], name="ae_title_once_per_node")]

    def __str__(self) -> str:
        return self.name


class ServiceRequest(models.Model):
    """An imaging order. Accession numbers are at most 16 characters with the site's prefix."""

    class Status(models.TextChoices):
        ACTIVE = "active", _("Active")
        COMPLETED = "completed", _("Completed")
        REVOKED = "revoked", pgettext_lazy("examination", "Cancelled")

    class Priority(models.TextChoices):
        ROUTINE = "routine", _("Routine")
        URGENT = "urgent", _("Urgent")
        STAT = "stat", _("Emergency")

    patient = models.ForeignKey(Patient, on_delete=models.PROTECT, related_name="service_requests")
    site = models.ForeignKey(Site, on_delete=models.PROTECT, related_name="service_requests")
    accession_number = models.CharField(max_length=16, unique=True)
    placer_order_number = models.CharField(max_length=64, blank=True)
    placer_issuer = models.CharField(max_length=64, blank=True)
    study_instance_uid = models.CharField(max_length=64, unique=True)
    description = models.CharField(max_length=64)
    reason = models.TextField(blank=True)
    referring_physician_name = models.CharField(max_length=128, blank=True)
    priority = models.CharField(max_length=8, choices=Priority, default=Priority.ROUTINE)
    status = models.CharField(max_length=10, choices=Status, default=Status.ACTIVE)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["placer_issuer", "placer_order_number"],
                condition=~models.Q(placer_order_number=""),
                name="placer_order_once",
            )
        ]


class ScheduledProcedureStep(models.Model):
    """A booked slot on a device. Two live steps never overlap on one device: the database forbids it."""

    class Status(models.TextChoices):
        SCHEDULED = "SCHEDULED", _("Scheduled")
        IN_PROGRESS = "IN PROGRESS", pgettext_lazy("examination", "In progress")
        COMPLETED = "COMPLETED", _("Completed")
        CANCELLED = "CANCELLED", pgettext_lazy("examination", "Cancelled")
        REBOOK = "REBOOK", _("Needs rebooking")
        """Its time was taken by an examination that a node did on its own: a registrar finds another."""

    service_request = models.ForeignKey(ServiceRequest, on_delete=models.CASCADE, related_name="steps")
    device = models.ForeignKey(Device, on_delete=models.PROTECT, related_name="steps")
    scheduled_procedure_step_id = models.CharField(max_length=16, unique=True)
    slot = DateTimeRangeField()
    status = models.CharField(max_length=12, choices=Status, default=Status.SCHEDULED)
    node_revision = models.PositiveIntegerField(default=0)
    """The highest revision of the node's own changes of this step that was taken in; 0: the node changed nothing."""

    class Meta:
        constraints = [
            ExclusionConstraint(
                name="no_double_booking",
                expressions=[
                    (Int8Range("device"), RangeOperators.OVERLAPS),
                    ("slot", RangeOperators.OVERLAPS),
                ],
                condition=~models.Q(status__in=["CANCELLED", "REBOOK"]),
            )
        ]


class AccessionCounter(models.Model):
    """The next number of a site's accession numbers; taken with a row lock."""

    site = models.OneToOneField(Site, on_delete=models.CASCADE)
    next_number = models.PositiveBigIntegerField(default=1)


class AccessionBlock(models.Model):
    """Accession numbers that only this node gives; the site's own counter has passed them."""

    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="+")
    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="accession_blocks")
    first = models.PositiveBigIntegerField()
    last = models.PositiveBigIntegerField()
    reserved_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            ExclusionConstraint(
                name="accession_blocks_apart",
                expressions=[
                    (Int8Range("site"), RangeOperators.OVERLAPS),
                    (
                        models.Func("first", "last", models.Value("[]"), function="INT8RANGE"),
                        RangeOperators.OVERLAPS,
                    ),
                ],
            )
        ]


class ReturnDifference(models.Model):
    """Something that node and centre saw differently when the node came back: what was kept, and by which rule.

    ``rule`` and ``field`` name a row of ``orders.rules``. ``kept``: whose side holds now. Both values stay here, so
    that a person can decide otherwise at any time.
    """

    class State(models.TextChoices):
        OPEN = "open", _("Needs a decision")
        BY_RULE = "by-rule", _("Decided by rule")
        BY_PERSON = "by-person", _("Decided by a person")

    class Side(models.TextChoices):
        NODE = "node", _("the node")
        CENTRE = "centre", _("the centre")
        BOTH = "both", _("both")

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="+")
    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="+")
    service_request = models.ForeignKey(ServiceRequest, null=True, on_delete=models.CASCADE, related_name="differences")
    patient = models.ForeignKey(Patient, null=True, on_delete=models.CASCADE, related_name="+")
    rule = models.CharField(max_length=32)
    field = models.CharField(max_length=32, blank=True)
    before = models.TextField(blank=True)
    node_value = models.TextField(blank=True)
    centre_value = models.TextField(blank=True)
    kept = models.CharField(max_length=6, choices=Side)
    state = models.CharField(max_length=9, choices=State, default=State.BY_RULE)
    detail = models.JSONField(default=dict)
    seen_at = models.DateTimeField(auto_now_add=True)
    decided_at = models.DateTimeField(null=True)
    decided_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+")

    class Meta:
        indexes = [models.Index(fields=["site", "state", "-seen_at"])]

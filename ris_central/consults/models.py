"""Consults between clinics and the reference centre. Statuses are FHIR Task.status."""

from django.conf import settings
from django.contrib.postgres.constraints import ExclusionConstraint
from django.contrib.postgres.fields import DateTimeRangeField, RangeOperators
from django.db import models
from django.utils.translation import gettext_lazy as _

from ris_central.catalogue.models import Study
from ris_central.orders.models import Int8Range
from ris_central.organizations.models import Site


class Consult(models.Model):
    """A question of a clinic to a reference centre about a study, and its signed answer."""

    class Status(models.TextChoices):
        REQUESTED = "requested", _("Requested")
        ACCEPTED = "accepted", _("Slot taken")
        IN_PROGRESS = "in-progress", _("In progress")
        COMPLETED = "completed", _("Concluded")
        REJECTED = "rejected", _("Rejected")
        CANCELLED = "cancelled", _("Cancelled")

    study = models.ForeignKey(Study, on_delete=models.PROTECT, related_name="consults")
    requesting_site = models.ForeignKey(Site, on_delete=models.PROTECT, related_name="+")
    reference_site = models.ForeignKey(Site, on_delete=models.PROTECT, related_name="consults")
    requester = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    question = models.TextField()
    is_urgent = models.BooleanField(default=False)
    status = models.CharField(max_length=12, choices=Status, default=Status.REQUESTED)
    expert = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+")
    slot = DateTimeRangeField(null=True)
    opinion = models.TextField(blank=True)
    version = models.PositiveIntegerField(default=0)
    """Rises with every save of the opinion; a save that names an older one is refused."""
    requested_at = models.DateTimeField(auto_now_add=True)
    images_ready_at = models.DateTimeField(null=True)
    signed_at = models.DateTimeField(null=True)
    content_sha256 = models.CharField(max_length=64, blank=True)
    reason = models.TextField(blank=True)
    """Why it was rejected or cancelled."""

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["study", "reference_site"],
                condition=models.Q(status__in=["requested", "accepted", "in-progress"]),
                name="one_open_consult_per_study_and_site",
            ),
            ExclusionConstraint(
                name="expert_takes_one_consult_at_a_time",
                expressions=[
                    (Int8Range("expert"), RangeOperators.OVERLAPS),
                    ("slot", RangeOperators.OVERLAPS),
                ],
                condition=models.Q(slot__isnull=False, expert__isnull=False, status__in=["accepted", "in-progress"]),
            ),
        ]

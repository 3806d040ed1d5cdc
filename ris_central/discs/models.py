"""Disc jobs."""

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from ris_central.catalogue.models import Study
from ris_central.organizations.models import Site
from ris_central.patients.models import Patient


class DiscJob(models.Model):
    """An order for a patient disc: built by a worker, read back and compared before it is done."""

    class Status(models.TextChoices):
        REQUESTED = "requested", _("Waiting")
        COLLECTING = "collecting", _("Collecting images")
        BUILDING = "building", _("Building")
        VERIFYING = "verifying", _("Verifying")
        COMPLETED = "completed", _("Ready")
        FAILED = "failed", _("Failed")
        CANCELLED = "cancelled", _("Cancelled")

    class Medium(models.TextChoices):
        CD = "cd", _("CD, 700 MB")
        DVD = "dvd", _("DVD, 4.7 GB")
        USB = "usb", _("USB stick")

    patient = models.ForeignKey(Patient, on_delete=models.PROTECT, related_name="disc_jobs")
    site = models.ForeignKey(Site, on_delete=models.PROTECT, related_name="disc_jobs")
    studies = models.ManyToManyField(Study, related_name="disc_jobs")
    medium = models.CharField(max_length=3, choices=Medium, default=Medium.CD)
    with_reports = models.BooleanField(default=True)
    status = models.CharField(max_length=10, choices=Status, default=Status.REQUESTED)
    done = models.PositiveIntegerField(default=0)
    total = models.PositiveIntegerField(default=0)
    error_code = models.CharField(max_length=64, blank=True)
    error_detail = models.TextField(blank=True)
    image_path = models.CharField(max_length=255, blank=True)
    image_bytes = models.PositiveBigIntegerField(default=0)
    image_sha256 = models.CharField(max_length=64, blank=True)
    report = models.JSONField(default=dict)
    requested_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    requested_at = models.DateTimeField(auto_now_add=True)
    attempts = models.PositiveIntegerField(default=0)
    next_attempt_at = models.DateTimeField(auto_now_add=True, db_index=True)
    """When a worker may take the job; while one works it is the end of its lease, so a dead worker holds nothing up."""
    verified_at = models.DateTimeField(null=True)

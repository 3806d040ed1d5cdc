"""What this node saw at foreign PACS, and what it fetches from them."""

from django.db import models
from django.db.models import Q


class ForeignPacs(models.Model):
    """How a foreign PACS answers. ``quirks``: what it was found not to do, so that it is not asked again and again.

    ``told_epoch``: under which the centre was told of all its studies; another epoch begins anew.
    """

    name = models.CharField(max_length=64, unique=True)
    polled_at = models.DateTimeField(null=True)
    swept_at = models.DateTimeField(null=True)
    next_poll_at = models.DateTimeField()
    failing_since = models.DateTimeField(null=True)
    last_error = models.CharField(max_length=255, blank=True)
    failures = models.PositiveIntegerField(default=0)
    quirks = models.JSONField(default=list)
    retired_at = models.DateTimeField(null=True)
    told_epoch = models.CharField(max_length=36, blank=True)
    told_at = models.DateTimeField(null=True)
    untold = models.BooleanField(default=True)
    probe_asked_at = models.DateTimeField(null=True)
    """A person wants to know whether it answers; null when that was tried."""
    probe = models.JSONField(null=True)
    """The last ``envelope.Probe``."""


class ForeignStudy(models.Model):
    """A study that a foreign PACS lists. ``described``: an envelope.ForeignStudySeen without its counts.

    ``missed``: how many times in a row it was looked for and not listed; ``gone_at`` is set at the second.
    """

    source = models.CharField(max_length=64)
    study_instance_uid = models.CharField(max_length=64)
    study_date = models.CharField(max_length=8, blank=True)
    described = models.JSONField()
    fingerprint = models.CharField(max_length=64)
    series_count = models.PositiveIntegerField(null=True)
    instance_count = models.PositiveIntegerField(null=True)
    may_fetch = models.BooleanField(default=True)
    first_seen_at = models.DateTimeField(auto_now_add=True)
    seen_at = models.DateTimeField()
    changed_at = models.DateTimeField()
    missed = models.PositiveSmallIntegerField(default=0)
    gone_at = models.DateTimeField(null=True)
    untold = models.BooleanField(default=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["source", "study_instance_uid"], name="foreign_study_once_per_source")
        ]
        indexes = [
            models.Index(fields=["source", "study_date"], name="foreign_study_by_date"),
            models.Index(fields=["id"], condition=Q(untold=True), name="foreign_study_untold"),
        ]


class Retrieval(models.Model):
    """A study to fetch from a foreign PACS: a job that outlives the process. ``expected`` is null where the PACS does
    not list its instances; ``missing`` names the first of ``missing_count``."""

    class Status(models.TextChoices):
        WAITING = "waiting"
        DONE = "done"
        FAILED = "failed"

    source = models.CharField(max_length=64)
    study_instance_uid = models.CharField(max_length=64)
    at_night = models.BooleanField(default=False)
    by_person = models.BooleanField(default=False)
    priority = models.PositiveSmallIntegerField(default=50)
    status = models.CharField(max_length=8, choices=Status, default=Status.WAITING)
    expected = models.PositiveIntegerField(null=True)
    held = models.PositiveIntegerField(default=0)
    missing = models.JSONField(default=list)
    missing_count = models.PositiveIntegerField(default=0)
    unlisted_count = models.PositiveIntegerField(default=0)
    attempts = models.PositiveIntegerField(default=0)
    next_attempt_at = models.DateTimeField()
    last_error = models.CharField(max_length=255, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    done_at = models.DateTimeField(null=True)
    untold = models.BooleanField(default=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["source", "study_instance_uid"], name="foreign_retrieval_once_per_source")
        ]
        indexes = [
            models.Index(fields=["status", "next_attempt_at"], name="foreign_retrieval_due"),
            models.Index(fields=["id"], condition=Q(untold=True), name="foreign_retrieval_untold"),
        ]

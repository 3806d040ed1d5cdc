"""Reserved accession numbers, steps made or changed at this node, and drafts of reports written here."""

from django.conf import settings
from django.db import models
from django.db.models import F, Q


class AccessionBlock(models.Model):
    """Accession numbers that are this node's alone: ``prefix`` and a number from ``first`` to ``last``.

    ``is_emergency``: a series the node makes itself when all that the centre reserved is spent; it never ends.
    """

    prefix = models.CharField(max_length=11)
    first = models.PositiveBigIntegerField()
    last = models.PositiveBigIntegerField()
    next_number = models.PositiveBigIntegerField()
    mark = models.CharField(max_length=3, blank=True)
    is_emergency = models.BooleanField(default=False)
    received_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["prefix", "first"], name="accession_block_once"),
            models.CheckConstraint(
                condition=Q(next_number__gte=F("first")) & Q(next_number__lte=F("last") + 1),
                name="accession_number_within_block",
            ),
        ]


class LocalStep(models.Model):
    """A scheduled step that was made or changed at this node; what devices are told is its ``WorklistEntry``.

    ``item``: the step as the node has it (worklist.feed.WorklistItem). ``changed``: its fields that were changed here
    and that the centre has not taken in yet: it does not overwrite them. ``request_key``: of the form that made it, so
    that a form sent twice makes one.
    """

    scheduled_procedure_step_id = models.CharField(max_length=16, unique=True)
    accession_number = models.CharField(max_length=16, db_index=True)
    study_instance_uid = models.CharField(max_length=64, db_index=True)
    made_here = models.BooleanField()
    request_key = models.CharField(max_length=36, null=True, unique=True)  # noqa: DJ001  null: not made by a form
    item = models.JSONField()
    changed = models.JSONField(default=list)
    revision = models.PositiveIntegerField(default=0)
    settled_revision = models.PositiveIntegerField(default=0)
    is_cancelled = models.BooleanField(default=False)
    unknown_patient = models.BooleanField(default=False)
    emergency_number = models.BooleanField(default=False)
    changed_by = models.CharField(max_length=150)
    made_at = models.DateTimeField(auto_now_add=True)
    changed_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["accession_number"], condition=Q(made_here=True), name="accession_number_used_once"
            ),
            models.UniqueConstraint(
                fields=["study_instance_uid"], condition=Q(made_here=True), name="study_uid_used_once"
            ),
        ]

    @property
    def waits(self) -> bool:
        """Whether the centre has not taken in the newest change yet."""
        return self.settled_revision < self.revision


class ReportDraft(models.Model):
    """The text of a report as its author has it here. ``told_version``: what was given to the relay for the centre."""

    study_instance_uid = models.CharField(max_length=64)
    patient_id = models.CharField(max_length=64, blank=True)
    author = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    findings = models.TextField(blank=True)
    conclusion = models.TextField(blank=True)
    version = models.PositiveIntegerField(default=0)
    told_version = models.PositiveIntegerField(default=0)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["study_instance_uid", "patient_id", "author"], name="draft_once_per_author"
            ),
        ]


class DraftRevision(models.Model):
    """Every text that was saved, so that no sentence is lost."""

    draft = models.ForeignKey(ReportDraft, on_delete=models.CASCADE, related_name="revisions")
    version = models.PositiveIntegerField()
    findings = models.TextField(blank=True)
    conclusion = models.TextField(blank=True)
    saved_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["draft", "version"], name="draft_revision_once")]

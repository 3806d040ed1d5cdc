"""Reports, their revisions, signatures and addenda. Statuses are FHIR DiagnosticReport.status."""

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from ris_central.catalogue.models import Study
from ris_central.federation.models import Node
from ris_central.orders.models import ReturnDifference


class Report(models.Model):
    """The report on a study. A final one never changes; corrections are addenda."""

    class Status(models.TextChoices):
        PARTIAL = "partial", _("Draft")
        PRELIMINARY = "preliminary", _("Preliminary")
        FINAL = "final", _("Signed")
        APPENDED = "appended", _("Signed, with addendum")
        CANCELLED = "cancelled", _("Cancelled")

    study = models.ForeignKey(Study, on_delete=models.PROTECT, related_name="reports")
    status = models.CharField(max_length=12, choices=Status, default=Status.PARTIAL)
    author = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    findings = models.TextField(blank=True)
    conclusion = models.TextField(blank=True)
    version = models.PositiveIntegerField(default=0)
    """Rises with every save; a save that names an older one is refused and both texts are shown."""
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)
    signed_at = models.DateTimeField(null=True)
    signed_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+")
    content_sha256 = models.CharField(max_length=64, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["study"], condition=~models.Q(status="cancelled"), name="one_live_report_per_study"
            )
        ]


class ReportRevision(models.Model):
    """Every saved text, so that a radiologist never loses a sentence."""

    report = models.ForeignKey(Report, on_delete=models.CASCADE, related_name="revisions")
    version = models.PositiveIntegerField()
    author = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    findings = models.TextField(blank=True)
    conclusion = models.TextField(blank=True)
    saved_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["report", "version"], name="report_revision_once")]


class Addendum(models.Model):
    """A signed correction or addition to a signed report."""

    report = models.ForeignKey(Report, on_delete=models.PROTECT, related_name="addenda")
    author = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    text = models.TextField()
    signed_at = models.DateTimeField(auto_now_add=True)


class ReportDocument(models.Model):
    """A rendering of a signed report: its bytes, and whether the archive has it as a DICOM object.

    ``number`` counts the renderings: 1 for the report as signed, then one for each addendum.
    """

    class Kind(models.TextChoices):
        PDF = "pdf"
        SR = "sr"

    report = models.ForeignKey(Report, on_delete=models.PROTECT, related_name="documents")
    kind = models.CharField(max_length=3, choices=Kind)
    number = models.PositiveIntegerField()
    sop_instance_uid = models.CharField(max_length=64, unique=True)
    series_instance_uid = models.CharField(max_length=64)
    content = models.BinaryField()
    sha256 = models.CharField(max_length=64)
    created_at = models.DateTimeField(auto_now_add=True)
    attempts = models.PositiveIntegerField(default=0)
    next_attempt_at = models.DateTimeField(auto_now_add=True, db_index=True)
    stored_at = models.DateTimeField(null=True)
    """When the archive answered that it has the object. Until then the row is on its way: this is its outbox."""
    last_error = models.CharField(max_length=255, blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["report", "kind", "number"], name="report_document_once")]


class NodeDraft(models.Model):
    """A draft that was written at a node, as last heard of. Its text stays here whatever becomes of it.

    ``report_version``: the version of the report that this text became; while nobody has written since, a newer text
    of the node follows it. ``author_name`` is the user name at the node; ``author`` who that is here.
    """

    class State(models.TextChoices):
        WAITING = "waiting", _("The study is not here yet")
        TAKEN = "taken", _("Is in the report")
        BESIDE = "beside", _("Stands beside the report")
        FOREIGN = "foreign", _("Its author may not report here")
        SETTLED = "settled", _("Dealt with")

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="+")
    study = models.ForeignKey(Study, null=True, on_delete=models.CASCADE, related_name="node_drafts")
    study_instance_uid = models.CharField(max_length=64, db_index=True)
    dicom_patient_id = models.CharField(max_length=64, blank=True)
    author_name = models.CharField(max_length=150)
    author = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+")
    version = models.PositiveIntegerField()
    findings = models.TextField(blank=True)
    conclusion = models.TextField(blank=True)
    saved_at = models.DateTimeField()
    state = models.CharField(max_length=8, choices=State, default=State.WAITING)
    report_version = models.PositiveIntegerField(default=0)
    difference = models.ForeignKey(ReturnDifference, null=True, on_delete=models.SET_NULL, related_name="+")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["node", "study_instance_uid", "dicom_patient_id", "author_name"], name="node_draft_once"
            )
        ]

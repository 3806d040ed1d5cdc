"""Studies of the region, their series, manifests and holders.

While a series is incomplete its instances are rows (SeriesInstance, InstanceHolding); when its study is complete they
become one versioned Manifest a series with holders per manifest, and the rows go.
"""

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.utils.translation import gettext_lazy as _
from guardian.models import GroupObjectPermissionBase, UserObjectPermissionBase

from ris_central.accounts.models import User
from ris_central.federation.models import Node
from ris_central.orders.models import ServiceRequest
from ris_central.organizations.models import Site
from ris_central.patients.models import Patient


class Study(models.Model):
    """A study of a patient, of the site where it was made."""

    patient = models.ForeignKey(Patient, on_delete=models.PROTECT, related_name="studies")
    site = models.ForeignKey(Site, on_delete=models.PROTECT, related_name="studies")
    service_request = models.ForeignKey(ServiceRequest, null=True, on_delete=models.SET_NULL, related_name="studies")
    study_instance_uid = models.CharField(max_length=64, db_index=True)
    dicom_patient_id = models.CharField(max_length=64, blank=True, db_index=True)
    """Patient ID (0010,0020) as the device wrote it; ``patient_id`` is the key of the person."""
    issuer_of_patient_id = models.CharField(max_length=64, blank=True)
    study_date = models.CharField(max_length=8, blank=True, db_index=True)
    study_time = models.CharField(max_length=16, blank=True)
    started_at = models.DateTimeField(null=True, db_index=True)
    accession_number = models.CharField(max_length=64, blank=True, db_index=True)
    study_id = models.CharField(max_length=64, blank=True)
    study_description = models.CharField(max_length=256, blank=True)
    referring_physician_name = models.CharField(max_length=324, blank=True)
    institution_name = models.CharField(max_length=256, blank=True)
    modalities = ArrayField(models.CharField(max_length=16), default=list)
    instances_known = models.PositiveIntegerField(default=0)
    instances_safe = models.PositiveIntegerField(default=0)
    """How many of the known instances the archive holds with equal digests."""
    first_seen_at = models.DateTimeField(auto_now_add=True)
    last_instance_at = models.DateTimeField(db_index=True)
    complete_at = models.DateTimeField(null=True)
    held_at = models.DateTimeField(null=True)
    """Since when a person has its nodes keep it back, until it is let go of or asked for."""
    held_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["study_instance_uid", "patient"], name="catalogue_study_once_per_patient")
        ]
        permissions = [("consult_study", "May see the study because of a consult or a share")]


class StudyUserObjectPermission(UserObjectPermissionBase):
    """A grant on one study to one user (an open consult, a share)."""

    content_object = models.ForeignKey(Study, on_delete=models.CASCADE)


class StudyGroupObjectPermission(GroupObjectPermissionBase):
    """Guardian wants the group table beside the user one; Regis grants to users."""

    content_object = models.ForeignKey(Study, on_delete=models.CASCADE)


class Series(models.Model):
    """A series of a study as the region knows it."""

    study = models.ForeignKey(Study, on_delete=models.CASCADE, related_name="series")
    series_instance_uid = models.CharField(max_length=64, db_index=True)
    modality = models.CharField(max_length=16, blank=True)
    series_number = models.IntegerField(null=True)
    series_description = models.CharField(max_length=256, blank=True)
    series_date = models.CharField(max_length=8, blank=True)
    series_time = models.CharField(max_length=16, blank=True)
    body_part_examined = models.CharField(max_length=64, blank=True)
    station_name = models.CharField(max_length=64, blank=True)
    instance_count = models.PositiveIntegerField(default=0)
    instances_safe = models.PositiveIntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["study", "series_instance_uid"], name="catalogue_series_once_per_study")
        ]


class SeriesInstance(models.Model):
    """An instance of a series that is not complete yet."""

    series = models.ForeignKey(Series, on_delete=models.CASCADE, related_name="instances")
    sop_instance_uid = models.CharField(max_length=64)
    sop_class_uid = models.CharField(max_length=64)
    transfer_syntax_uid = models.CharField(max_length=64, blank=True)
    dataset_sha256 = models.CharField(max_length=64)
    pixel_sha256 = models.CharField(max_length=64, blank=True)
    frames_sha256 = models.CharField(max_length=64, blank=True)
    instance_number = models.IntegerField(null=True)
    number_of_frames = models.PositiveIntegerField(default=1)
    size = models.PositiveBigIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["series", "sop_instance_uid", "dataset_sha256"], name="series_instance_once"
            )
        ]


class InstanceHolding(models.Model):
    """A node holds an instance (only while the series is incomplete)."""

    instance = models.ForeignKey(SeriesInstance, on_delete=models.CASCADE, related_name="holdings")
    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="+")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["instance", "node"], name="holding_once")]


class Manifest(models.Model):
    """All instances of a complete series, as one value. ``entries``: list of InstanceDescription dicts."""

    series = models.ForeignKey(Series, on_delete=models.CASCADE, related_name="manifests")
    version = models.PositiveIntegerField()
    count = models.PositiveIntegerField()
    root_hash = models.CharField(max_length=64)
    entries = models.JSONField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["series", "version"], name="manifest_version_once")]


class SeriesHolder(models.Model):
    """What a node says it holds of a series now; equal root hash means all of it, digest by digest."""

    series = models.ForeignKey(Series, on_delete=models.CASCADE, related_name="holders")
    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="+")
    count = models.PositiveIntegerField(default=0)
    root_hash = models.CharField(max_length=64, blank=True)
    identity = models.CharField(max_length=64, blank=True)
    """Digest of who the study is of, as the node told it last (``gateway.envelope.holdings.identity_sha256``)."""
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["series", "node"], name="holder_once")]


class ParkedEvent(models.Model):
    """What the archive told of a study that its clinic has not announced yet; applied when it does, or later."""

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="+")
    study_instance_uid = models.CharField(max_length=64, db_index=True)
    patient_id = models.CharField(max_length=64, blank=True)
    body = models.JSONField()
    occurred_at = models.DateTimeField()
    parked_at = models.DateTimeField(auto_now_add=True)


class DeliveryState(models.Model):
    """How far a node says it is with delivering a study to a destination: for people to see, never taken as proof."""

    study = models.ForeignKey(Study, on_delete=models.CASCADE, related_name="deliveries")
    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="+")
    destination = models.CharField(max_length=64)
    total = models.PositiveIntegerField(default=0)
    receipted = models.PositiveIntegerField(default=0)
    failed = models.PositiveIntegerField(default=0)
    last_error = models.TextField(blank=True)
    told = models.JSONField(default=dict)
    """All of ``DeliveryProgress``: bytes, proofs, what is held by which rule, errors, time left."""
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["study", "node", "destination"], name="delivery_state_once")]


class StudyConflict(models.Model):
    """A used SOP Instance UID came with other content at a node; both were kept. Shown to the engineer."""

    study_instance_uid = models.CharField(max_length=64, db_index=True)
    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="+")
    sop_instance_uid = models.CharField(max_length=64)
    kept_sha256 = models.CharField(max_length=64)
    variant_sha256 = models.CharField(max_length=64)
    source_ae_title = models.CharField(max_length=16, blank=True)
    seen_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["node", "sop_instance_uid", "variant_sha256"], name="conflict_once")
        ]


class HoldingsRound(models.Model):
    """When a node and the centre last compared what the node holds, and what came of it."""

    node = models.OneToOneField(Node, on_delete=models.CASCADE, related_name="+")
    begun_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    series = models.PositiveIntegerField(default=0)
    differing = models.PositiveIntegerField(default=0)


class Difference(models.Model):
    """What a node holds of a series was not what the centre believed. Mended by itself, or shown until somebody acts.

    The series is named by UIDs and the device's patient id: of what is extra or lost there may be no row.
    """

    class Kind(models.TextChoices):
        LOST = "lost", _("no longer there")
        EXTRA = "extra", _("not known here")
        COUNT = "count", _("another number of images")
        CONTENT = "content", _("other content")
        IDENTITY = "identity", _("other patient or study data")

    class Resolution(models.TextChoices):
        TOLD_AGAIN = "told-again", _("told again and taken over")
        ELSEWHERE = "elsewhere", _("the images are safe elsewhere")
        PROVED_AGAIN = "proved-again", _("delivered to the archive again")
        TAKEN_OVER = "taken-over", _("the data of the node were taken over")
        ACCEPTED = "accepted", _("accepted by a person")

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="+")
    study = models.ForeignKey(Study, null=True, on_delete=models.SET_NULL, related_name="differences")
    study_instance_uid = models.CharField(max_length=64, db_index=True)
    dicom_patient_id = models.CharField(max_length=64, blank=True)
    series_instance_uid = models.CharField(max_length=64)
    kind = models.CharField(max_length=8, choices=Kind)
    believed = models.PositiveIntegerField(default=0)
    found = models.PositiveIntegerField(default=0)
    told = models.JSONField(default=dict)
    """The patient and study blocks as the node has them, where those differ."""
    is_told = models.BooleanField(default=False)
    """The node has told the series again in full: from then on it can be judged whether it is mended."""
    found_at = models.DateTimeField(auto_now_add=True)
    mended_at = models.DateTimeField(null=True)
    resolution = models.CharField(max_length=12, choices=Resolution, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["node", "study_instance_uid", "dicom_patient_id", "series_instance_uid", "kind"],
                condition=models.Q(mended_at=None),
                name="difference_open_once",
            )
        ]
        indexes = [models.Index(fields=["node", "mended_at"], name="differences_of_node")]


class ForeignPacs(models.Model):
    """A PACS outside the region that a node looks over, and how it answers."""

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="foreign_pacs")
    source = models.CharField(max_length=64)
    polled_at = models.DateTimeField(null=True)
    failing_since = models.DateTimeField(null=True)
    last_error = models.CharField(max_length=255, blank=True)
    studies = models.PositiveIntegerField(default=0)
    quirks = models.JSONField(default=list)
    retired = models.BooleanField(default=False)
    probe_asked_at = models.DateTimeField(null=True)
    probe = models.JSONField(null=True)
    """What came of the last one (``envelope.Probe``); that of an earlier question while the node has not answered."""
    told_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["node", "source"], name="foreign_pacs_once")]


class ForeignHolding(models.Model):
    """A PACS outside the region lists this study, and a node can fetch it. It proves nothing and counts no instances.

    ``expected`` to ``last_error``: how the node's fetching goes (``envelope.ForeignRetrieval``).
    """

    class Fetching(models.TextChoices):
        WAITING = "waiting", _("being fetched")
        DONE = "done", _("fetched")
        FAILED = "failed", _("could not be fetched")

    study = models.ForeignKey(Study, on_delete=models.CASCADE, related_name="foreign_holdings")
    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="+")
    source = models.CharField(max_length=64)
    series_count = models.PositiveIntegerField(null=True)
    instance_count = models.PositiveIntegerField(null=True)
    may_fetch = models.BooleanField(default=True)
    seen_at = models.DateTimeField()
    gone_at = models.DateTimeField(null=True)
    asked_at = models.DateTimeField(null=True)
    fetching = models.CharField(max_length=8, choices=Fetching, blank=True)
    expected = models.PositiveIntegerField(null=True)
    held = models.PositiveIntegerField(default=0)
    missing_count = models.PositiveIntegerField(default=0)
    missing = models.JSONField(default=list)
    unlisted_count = models.PositiveIntegerField(default=0)
    attempts = models.PositiveIntegerField(default=0)
    next_attempt_at = models.DateTimeField(null=True)
    last_error = models.CharField(max_length=255, blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["study", "node", "source"], name="foreign_holding_once")]

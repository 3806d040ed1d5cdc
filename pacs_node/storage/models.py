"""Where and how instances lie when that is not simply the received file on the main storage, and what verify found.

A plain instance has no row here: what is common costs nothing.
"""

from django.db import models


class Holding(models.Model):
    """Copies of an instance on the node's own tiers. Copies at an archive are proved by the gateway's ledger.

    ``away_at``: since when the main storage is without it; it is fetched back when somebody asks for it.
    ``institution_verified_at``: when the copy at the institution's storage was last read back and hashed.
    """

    instance = models.OneToOneField(
        "study_index.Instance", on_delete=models.CASCADE, primary_key=True, related_name="holding"
    )
    away_at = models.DateTimeField(null=True, db_index=True)
    institution_verified_at = models.DateTimeField(null=True)


class Recompression(models.Model):
    """An instance stored in another lossless encoding than it came in, or (``left_alone``) why it is not.

    ``stored_sha256`` is the digest of the data set as it lies now; that of the original stays at the instance.
    ``former_path``: the original's file until readers that may still hold its path are done.
    """

    instance = models.OneToOneField(
        "study_index.Instance", on_delete=models.CASCADE, primary_key=True, related_name="recompression"
    )
    left_alone = models.CharField(max_length=255, blank=True)
    stored_sha256 = models.CharField(max_length=64, blank=True)
    original_transfer_syntax_uid = models.CharField(max_length=64, blank=True)
    original_size = models.PositiveBigIntegerField(default=0)
    former_path = models.CharField(max_length=400, blank=True)
    at = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["at"], name="originals_to_remove", condition=~models.Q(former_path=""))]


class StudyRetention(models.Model):
    """What a person or a recall said of a study: pinned, or here again since ``recalled_at``."""

    study_instance_uid = models.CharField(max_length=64, unique=True)
    pinned = models.BooleanField(default=False)
    reason = models.CharField(max_length=255, blank=True)
    recalled_at = models.DateTimeField(null=True)


class VerifyRound(models.Model):
    """How far the walk over all stored files is: one row, so that it goes on after a restart."""

    after = models.CharField(max_length=80, blank=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    files = models.PositiveBigIntegerField(default=0)
    size = models.PositiveBigIntegerField(default=0)


class Finding(models.Model):
    """Something verify found that is not as it should be; ``resolved_at`` when it is mended or explained."""

    class Kind(models.TextChoices):
        DAMAGED = "damaged"
        MISSING = "missing"
        ORPHAN = "orphan"
        FOREIGN = "foreign"
        COPY = "copy"

    kind = models.CharField(max_length=8, choices=Kind)
    path = models.CharField(max_length=400)
    detail = models.CharField(max_length=500, blank=True)
    resolution = models.CharField(max_length=255, blank=True)
    first_at = models.DateTimeField(auto_now_add=True)
    last_at = models.DateTimeField(auto_now=True)
    resolved_at = models.DateTimeField(null=True, db_index=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "path"], condition=models.Q(resolved_at=None), name="finding_open_once"
            )
        ]

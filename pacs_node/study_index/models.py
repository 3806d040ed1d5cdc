"""Patient-study, series and instance rows of a node. Surrogate keys; DICOM UIDs are attributes.

``*_fold`` and ``*_sort`` columns are made by ``standards.person_names``: matching and ordering need no collation.
``attributes`` hold the level's remaining attributes in the DICOM JSON Model (PS3.18 F) for QIDO and C-FIND returns.
"""

from django.db import models


class Study(models.Model):
    """A study of one patient. A reused Study Instance UID under another patient is another row."""

    study_instance_uid = models.CharField(max_length=64)
    patient_id = models.CharField(max_length=64)
    issuer_of_patient_id = models.CharField(max_length=64, blank=True)
    patient_name = models.CharField(max_length=324, blank=True)
    patient_name_fold = models.CharField(max_length=324, blank=True)
    patient_name_ideographic_fold = models.CharField(max_length=100, blank=True)
    patient_name_phonetic_fold = models.CharField(max_length=100, blank=True)
    patient_name_latin = models.CharField(max_length=400, blank=True)
    patient_name_sort = models.CharField(max_length=324, blank=True)
    patient_birth_date = models.CharField(max_length=8, blank=True)
    patient_sex = models.CharField(max_length=16, blank=True)
    study_date = models.CharField(max_length=8, blank=True)
    study_time = models.CharField(max_length=16, blank=True)
    timezone_offset_from_utc = models.CharField(max_length=5, blank=True)
    accession_number = models.CharField(max_length=64, blank=True)
    study_id = models.CharField(max_length=64, blank=True)
    study_description = models.CharField(max_length=256, blank=True)
    referring_physician_name = models.CharField(max_length=324, blank=True)
    referring_physician_name_fold = models.CharField(max_length=324, blank=True)
    referring_physician_name_latin = models.CharField(max_length=400, blank=True)
    institution_name = models.CharField(max_length=256, blank=True)
    attributes = models.JSONField(default=dict)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["study_instance_uid", "patient_id", "issuer_of_patient_id"], name="study_once_per_patient"
            )
        ]
        indexes = [
            # With date, time and key: what an index leads to is sorted without a look at the table.
            *(
                models.Index(fields=[*columns, "study_date", "study_time", "id"], name=name)
                for name, columns in {
                    "study_by_date": (),
                    "study_by_patient": ("patient_id", "issuer_of_patient_id"),
                    "study_by_name": ("patient_name_fold",),
                    "study_by_latin_name": ("patient_name_latin",),
                    "study_by_ideographic_name": ("patient_name_ideographic_fold",),
                    "study_by_phonetic_name": ("patient_name_phonetic_fold",),
                    "study_by_birth_date": ("patient_birth_date",),
                    "study_by_accession_number": ("accession_number",),
                }.items()
            ),
        ]


class Series(models.Model):
    """A series of a study. ``instances_count``: of its instances, those held here that are no variants."""

    study = models.ForeignKey(Study, on_delete=models.CASCADE, related_name="series", db_index=False)
    series_instance_uid = models.CharField(max_length=64)
    modality = models.CharField(max_length=16, blank=True)
    series_number = models.IntegerField(null=True)
    series_description = models.CharField(max_length=256, blank=True)
    series_date = models.CharField(max_length=8, blank=True)
    series_time = models.CharField(max_length=16, blank=True)
    body_part_examined = models.CharField(max_length=64, blank=True)
    station_name = models.CharField(max_length=64, blank=True)
    attributes = models.JSONField(default=dict)
    instances_count = models.PositiveIntegerField(default=0)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["study", "series_instance_uid"], name="series_once_per_study")]
        indexes = [
            models.Index(fields=["study", "modality", "instances_count"], name="series_of_study"),
            models.Index(fields=["series_instance_uid"], name="series_by_uid"),
            models.Index(fields=["modality"], name="series_by_modality"),
        ]


class Instance(models.Model):
    """A stored SOP instance. ``(sop_instance_uid, dataset_sha256)`` is its identity; a conflicting one is a variant.

    ``variant_sha256`` is "" for the current content of a UID and the data set's digest for a variant, so that one index
    holds there to be one current instance and each variant once.

    Of the three digests the first is known when the instance is answered for. The others cost a second reading: who
    needs them first has them computed (``actions.ensure_digests``), and ``digests_done`` says that they are final.
    """

    # Its own index would be the beginning of that on series and number: each index costs every instance a page.
    series = models.ForeignKey(Series, on_delete=models.CASCADE, related_name="instances", db_index=False)
    sop_instance_uid = models.CharField(max_length=64)
    sop_class_uid = models.CharField(max_length=64)
    transfer_syntax_uid = models.CharField(max_length=64)
    dataset_sha256 = models.CharField(max_length=64)
    pixel_sha256 = models.CharField(max_length=64, null=True)  # noqa: DJ001  null: no pixels, "" would be a lie
    frames_sha256 = models.CharField(max_length=64, null=True)  # noqa: DJ001  null: not decodable without loss
    digests_done = models.BooleanField(default=False)
    is_variant = models.BooleanField(default=False)
    variant_sha256 = models.CharField(max_length=64, blank=True)
    instance_number = models.IntegerField(null=True)
    number_of_frames = models.PositiveIntegerField(default=1)
    rows = models.PositiveIntegerField(null=True)
    columns = models.PositiveIntegerField(null=True)
    size = models.PositiveBigIntegerField()
    path = models.CharField(max_length=320, unique=True)
    source_ae_title = models.CharField(max_length=64, blank=True)
    attributes = models.JSONField(default=dict)
    released_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["sop_instance_uid", "variant_sha256"], name="one_current_instance_per_uid"),
        ]
        indexes = [models.Index(fields=["series", "instance_number"])]

"""Columns and indexes that queries are answered by; in PostgreSQL texts in code point order, as names are folded."""

import django.db.models.deletion
from django.db import migrations, models

from standards.matching import normal_form
from standards.person_names import folds, rough_name

DATES = ("patient_birth_date", "study_date")


def fill(apps, schema_editor):
    """What the new columns say of the studies that are here, and dates that are dates."""
    study = apps.get_model("study_index", "Study")
    names = ("patient_name", "referring_physician_name", "study_time", *DATES)
    for row in study.objects.only(*names).iterator(chunk_size=500):
        alphabetic, ideographic, phonetic = folds(row.patient_name)
        values = {
            "patient_name_fold": alphabetic[:324],
            "patient_name_ideographic_fold": ideographic[:100],
            "patient_name_phonetic_fold": phonetic[:100],
            "patient_name_latin": rough_name(row.patient_name)[:400],
            "referring_physician_name_fold": folds(row.referring_physician_name)[0][:324],
            "referring_physician_name_latin": rough_name(row.referring_physician_name)[:400],
            **{name: normal_form(getattr(row, name), "DA") for name in DATES},
        }
        time = row.study_time.replace(":", "")
        values["study_time"] = time if normal_form(time, "TM") else ""
        study.objects.filter(pk=row.pk).update(**values)


def order_by_code_points(apps, schema_editor):
    """Ranges and sorting by code point need no other collation, and LIKE can use the indexes then."""
    if schema_editor.connection.vendor != "postgresql":
        return
    for name in ("Study", "Series"):
        model = apps.get_model("study_index", name)
        changes = ", ".join(
            f'ALTER COLUMN "{field.column}" TYPE varchar({field.max_length}) COLLATE "C"'
            for field in model._meta.get_fields()
            if isinstance(field, models.CharField)
        )
        schema_editor.execute(f'ALTER TABLE "{model._meta.db_table}" {changes}')


class Migration(migrations.Migration):
    dependencies = [
        ("study_index", "0002_counts_and_digests"),
    ]

    operations = [
        migrations.AddField(
            model_name="study",
            name="patient_name_ideographic_fold",
            field=models.CharField(blank=True, max_length=100),
        ),
        migrations.AddField(
            model_name="study",
            name="patient_name_phonetic_fold",
            field=models.CharField(blank=True, max_length=100),
        ),
        migrations.AddField(
            model_name="study",
            name="referring_physician_name_fold",
            field=models.CharField(blank=True, max_length=324),
        ),
        migrations.AddField(
            model_name="study",
            name="referring_physician_name_latin",
            field=models.CharField(blank=True, max_length=400),
        ),
        migrations.AlterField(
            model_name="series",
            name="modality",
            field=models.CharField(blank=True, max_length=16),
        ),
        migrations.AlterField(
            model_name="series",
            name="series_instance_uid",
            field=models.CharField(max_length=64),
        ),
        migrations.AlterField(
            model_name="series",
            name="study",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="series",
                to="study_index.study",
            ),
        ),
        migrations.AlterField(
            model_name="study",
            name="accession_number",
            field=models.CharField(blank=True, max_length=64),
        ),
        migrations.AlterField(
            model_name="study",
            name="patient_id",
            field=models.CharField(max_length=64),
        ),
        migrations.AlterField(
            model_name="study",
            name="patient_name_fold",
            field=models.CharField(blank=True, max_length=324),
        ),
        migrations.AlterField(
            model_name="study",
            name="patient_name_latin",
            field=models.CharField(blank=True, max_length=400),
        ),
        migrations.AlterField(
            model_name="study",
            name="study_date",
            field=models.CharField(blank=True, max_length=8),
        ),
        migrations.AlterField(
            model_name="study",
            name="study_instance_uid",
            field=models.CharField(max_length=64),
        ),
        migrations.RunPython(fill, migrations.RunPython.noop),
        migrations.RunPython(order_by_code_points, migrations.RunPython.noop),
        migrations.AddIndex(
            model_name="series",
            index=models.Index(fields=["study", "modality", "instances_count"], name="series_of_study"),
        ),
        migrations.AddIndex(
            model_name="series",
            index=models.Index(fields=["series_instance_uid"], name="series_by_uid"),
        ),
        migrations.AddIndex(
            model_name="series",
            index=models.Index(fields=["modality"], name="series_by_modality"),
        ),
        migrations.AddIndex(
            model_name="study",
            index=models.Index(fields=["study_date", "study_time"], name="study_by_date"),
        ),
        migrations.AddIndex(
            model_name="study",
            index=models.Index(fields=["patient_id", "issuer_of_patient_id"], name="study_by_patient"),
        ),
        migrations.AddIndex(
            model_name="study",
            index=models.Index(
                fields=[
                    "patient_name_fold",
                    "patient_name_latin",
                    "patient_name_ideographic_fold",
                    "patient_name_phonetic_fold",
                ],
                name="study_by_name",
            ),
        ),
        migrations.AddIndex(
            model_name="study",
            index=models.Index(fields=["patient_name_latin"], name="study_by_latin_name"),
        ),
        migrations.AddIndex(
            model_name="study",
            index=models.Index(fields=["patient_name_ideographic_fold"], name="study_by_ideographic_name"),
        ),
        migrations.AddIndex(
            model_name="study",
            index=models.Index(fields=["patient_name_phonetic_fold"], name="study_by_phonetic_name"),
        ),
        migrations.AddIndex(
            model_name="study",
            index=models.Index(fields=["patient_birth_date"], name="study_by_birth_date"),
        ),
        migrations.AddIndex(
            model_name="study",
            index=models.Index(fields=["accession_number"], name="study_by_accession_number"),
        ),
    ]

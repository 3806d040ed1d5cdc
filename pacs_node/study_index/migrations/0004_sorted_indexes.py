"""Indexes of studies that hold date and time too: what they lead to is sorted without a look at the table."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("study_index", "0003_query_columns_and_indexes"),
    ]

    operations = [
        migrations.RemoveIndex(
            model_name="study",
            name="study_by_patient",
        ),
        migrations.RemoveIndex(
            model_name="study",
            name="study_by_name",
        ),
        migrations.RemoveIndex(
            model_name="study",
            name="study_by_latin_name",
        ),
        migrations.RemoveIndex(
            model_name="study",
            name="study_by_ideographic_name",
        ),
        migrations.RemoveIndex(
            model_name="study",
            name="study_by_phonetic_name",
        ),
        migrations.RemoveIndex(
            model_name="study",
            name="study_by_birth_date",
        ),
        migrations.RemoveIndex(
            model_name="study",
            name="study_by_accession_number",
        ),
        migrations.AddIndex(
            model_name="study",
            index=models.Index(
                fields=["patient_id", "issuer_of_patient_id", "study_date", "study_time"], name="study_by_patient"
            ),
        ),
        migrations.AddIndex(
            model_name="study",
            index=models.Index(fields=["patient_name_fold", "study_date", "study_time"], name="study_by_name"),
        ),
        migrations.AddIndex(
            model_name="study",
            index=models.Index(fields=["patient_name_latin", "study_date", "study_time"], name="study_by_latin_name"),
        ),
        migrations.AddIndex(
            model_name="study",
            index=models.Index(
                fields=["patient_name_ideographic_fold", "study_date", "study_time"], name="study_by_ideographic_name"
            ),
        ),
        migrations.AddIndex(
            model_name="study",
            index=models.Index(
                fields=["patient_name_phonetic_fold", "study_date", "study_time"], name="study_by_phonetic_name"
            ),
        ),
        migrations.AddIndex(
            model_name="study",
            index=models.Index(fields=["patient_birth_date", "study_date", "study_time"], name="study_by_birth_date"),
        ),
        migrations.AddIndex(
            model_name="study",
            index=models.Index(
                fields=["accession_number", "study_date", "study_time"], name="study_by_accession_number"
            ),
        ),
    ]

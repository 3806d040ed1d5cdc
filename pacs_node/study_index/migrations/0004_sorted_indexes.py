"""Indexes of studies that hold date, time and key too: what they lead to is sorted without a look at the table."""

from django.db import migrations, models

INDEXES = {
    "study_by_date": (),
    "study_by_patient": ("patient_id", "issuer_of_patient_id"),
    "study_by_name": ("patient_name_fold",),
    "study_by_latin_name": ("patient_name_latin",),
    "study_by_ideographic_name": ("patient_name_ideographic_fold",),
    "study_by_phonetic_name": ("patient_name_phonetic_fold",),
    "study_by_birth_date": ("patient_birth_date",),
    "study_by_accession_number": ("accession_number",),
}


class Migration(migrations.Migration):
    dependencies = [("study_index", "0003_query_columns_and_indexes")]

    operations = [
        *(migrations.RemoveIndex("study", name) for name in INDEXES),
        *(
            migrations.AddIndex("study", models.Index(fields=[*columns, "study_date", "study_time", "id"], name=name))
            for name, columns in INDEXES.items()
        ),
    ]

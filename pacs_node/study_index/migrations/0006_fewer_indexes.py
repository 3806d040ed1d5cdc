"""One unique index for current and variant contents of a UID instead of three; none twice for the series."""

import django.db.models.deletion
from django.db import migrations, models

VARIANTS = "UPDATE study_index_instance SET variant_sha256 = dataset_sha256 WHERE is_variant"


class Migration(migrations.Migration):
    dependencies = [("study_index", "0005_longer_paths")]

    operations = [
        migrations.AddField("instance", "variant_sha256", models.CharField(blank=True, default="", max_length=64)),
        migrations.RunSQL(VARIANTS, migrations.RunSQL.noop),
        migrations.AlterField("instance", "variant_sha256", models.CharField(blank=True, max_length=64)),
        migrations.RemoveConstraint("instance", "instance_once_by_content"),
        migrations.RemoveConstraint("instance", "one_current_instance_per_uid"),
        migrations.AddConstraint(
            "instance",
            models.UniqueConstraint(
                fields=("sop_instance_uid", "variant_sha256"), name="one_current_instance_per_uid"
            ),
        ),
        migrations.AlterField(
            "instance",
            "series",
            models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="instances",
                to="study_index.series",
            ),
        ),
    ]

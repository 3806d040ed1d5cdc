"""Series count their instances; the pixel digest may come later, as the frames digest does."""

from django.db import migrations, models

COUNT = """
    UPDATE study_index_series SET instances_count = (
        SELECT COUNT(*) FROM study_index_instance
        WHERE series_id = study_index_series.id AND NOT is_variant AND released_at IS NULL
    )
"""


class Migration(migrations.Migration):
    dependencies = [("study_index", "0001_initial")]

    operations = [
        migrations.AddField("series", "instances_count", models.PositiveIntegerField(default=0)),
        migrations.RenameField("instance", "frames_digest_done", "digests_done"),
        migrations.RunSQL(COUNT, migrations.RunSQL.noop),
    ]

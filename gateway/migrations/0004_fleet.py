from django.db import migrations, models


class Migration(migrations.Migration):
    """Keys that rotate, clocks that differ, commands kept aside, an audit trail that is uploaded."""

    dependencies = [
        ("gateway", "0003_mirror_rules"),
    ]

    operations = [
        migrations.AddField("joinstate", "clock_offset_seconds", models.IntegerField(default=0)),
        migrations.AddField("joinstate", "rotate_key_at", models.DateTimeField(null=True)),
        migrations.AddField("joinstate", "audit_told", models.PositiveBigIntegerField(default=0)),
        migrations.CreateModel(
            name="ParkedCommand",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("seq", models.PositiveBigIntegerField(unique=True)),
                ("schema_version", models.PositiveIntegerField()),
                ("type", models.CharField(max_length=64)),
                ("body", models.JSONField()),
                ("reason", models.CharField(max_length=255)),
                ("received_at", models.DateTimeField(auto_now_add=True)),
            ],
        ),
        migrations.CreateModel(
            name="KeyRotation",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("old_key", models.CharField(max_length=64)),
                ("new_key", models.CharField(max_length=64, unique=True)),
                ("statement", models.JSONField()),
                ("made_at", models.DateTimeField()),
                ("announced_at", models.DateTimeField(null=True)),
            ],
        ),
    ]

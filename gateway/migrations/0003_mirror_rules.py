"""Proofs, rules and figures on the ledger."""

from typing import Any

from django.db import migrations, models


def look_again(apps: Any, schema_editor: Any) -> None:
    """What is on the ledger already learns its size, modality and proof when everything held is laid on it again."""
    apps.get_model("gateway", "JoinState").objects.update(ledger_after=0)
    apps.get_model("gateway", "Delivery").objects.filter(status="receipted").update(proof="receipt")


class Migration(migrations.Migration):
    """See the module."""

    dependencies = [
        ("gateway", "0002_configuration"),
    ]

    operations = [
        migrations.AddField("joinstate", "ledger_after", models.BigIntegerField(null=True)),
        migrations.AddField("studypriority", "is_held", models.BooleanField(default=False)),
        migrations.AddField(
            "delivery",
            "proof",
            models.CharField(
                blank=True,
                choices=[
                    ("stored", "Stored"),
                    ("committed", "Committed"),
                    ("read-back", "Read Back"),
                    ("receipt", "Receipt"),
                ],
                default="",
                max_length=10,
            ),
        ),
        migrations.AddField("delivery", "size", models.BigIntegerField(default=0)),
        migrations.AddField("delivery", "modality", models.CharField(blank=True, default="", max_length=16)),
        migrations.AddField("delivery", "held_by", models.CharField(blank=True, default="", max_length=10)),
        migrations.AddField("delivery", "held_until", models.DateTimeField(null=True)),
        migrations.AddField("delivery", "wire_bytes", models.BigIntegerField(default=0)),
        migrations.AlterField(
            "delivery",
            "status",
            models.CharField(
                choices=[
                    ("waiting", "Waiting"),
                    ("receipted", "Receipted"),
                    ("delivered", "Delivered"),
                    ("failed", "Failed"),
                ],
                default="waiting",
                max_length=10,
            ),
        ),
        migrations.AddIndex(
            "delivery",
            models.Index(
                condition=models.Q(("held_by", ""), ("status", "waiting")),
                fields=["destination", "priority", "id"],
                name="delivery_to_go",
            ),
        ),
        migrations.AddIndex(
            "delivery",
            models.Index(
                condition=models.Q(("status__in", ["waiting", "failed"])),
                fields=["destination", "held_by", "modality"],
                name="delivery_open",
            ),
        ),
        migrations.RunPython(look_again, migrations.RunPython.noop),
    ]

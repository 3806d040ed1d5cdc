"""Since when an instance fails to arrive, for whoever looks why."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("gateway", "0004_fleet")]

    operations = [
        migrations.AddField(model_name="delivery", name="failing_since", field=models.DateTimeField(null=True)),
    ]



import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('catalogue', '0002_reconciliation'),
        ('federation', '0002_fleet'),
    ]

    operations = [
        migrations.CreateModel(
            name='ForeignHolding',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('source', models.CharField(max_length=64)),
                ('series_count', models.PositiveIntegerField(null=True)),
                ('instance_count', models.PositiveIntegerField(null=True)),
                ('may_fetch', models.BooleanField(default=True)),
                ('seen_at', models.DateTimeField()),
                ('gone_at', models.DateTimeField(null=True)),
                ('asked_at', models.DateTimeField(null=True)),
                ('fetching', models.CharField(blank=True, choices=[('waiting', 'being fetched'), ('done', 'fetched'), ('failed', 'could not be fetched')], max_length=8)),
                ('expected', models.PositiveIntegerField(null=True)),
                ('held', models.PositiveIntegerField(default=0)),
                ('missing_count', models.PositiveIntegerField(default=0)),
                ('missing', models.JSONField(default=list)),
                ('unlisted_count', models.PositiveIntegerField(default=0)),
                ('attempts', models.PositiveIntegerField(default=0)),
                ('next_attempt_at', models.DateTimeField(null=True)),
                ('last_error', models.CharField(blank=True, max_length=255)),
                ('node', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='+', to='federation.node')),
                ('study', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='foreign_holdings', to='catalogue.study')),
            ],
            options={
                'constraints': [models.UniqueConstraint(fields=('study', 'node', 'source'), name='foreign_holding_once')],
            },
        ),
        migrations.CreateModel(
            name='ForeignPacs',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('source', models.CharField(max_length=64)),
                ('polled_at', models.DateTimeField(null=True)),
                ('failing_since', models.DateTimeField(null=True)),
                ('last_error', models.CharField(blank=True, max_length=255)),
                ('studies', models.PositiveIntegerField(default=0)),
                ('quirks', models.JSONField(default=list)),
                ('retired', models.BooleanField(default=False)),
                ('told_at', models.DateTimeField(auto_now=True)),
                ('node', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='foreign_pacs', to='federation.node')),
            ],
            options={
                'constraints': [models.UniqueConstraint(fields=('node', 'source'), name='foreign_pacs_once')],
            },
        ),
    ]

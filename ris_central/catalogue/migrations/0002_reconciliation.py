import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('catalogue', '0001_initial'),
        ('federation', '0001_initial'),
    ]

    operations = [
        migrations.AddField(
            model_name='deliverystate',
            name='told',
            field=models.JSONField(default=dict),
        ),
        migrations.AddField(
            model_name='seriesholder',
            name='identity',
            field=models.CharField(blank=True, max_length=64),
        ),
        migrations.CreateModel(
            name='HoldingsRound',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('begun_at', models.DateTimeField()),
                ('ended_at', models.DateTimeField(null=True)),
                ('series', models.PositiveIntegerField(default=0)),
                ('differing', models.PositiveIntegerField(default=0)),
                ('node', models.OneToOneField(on_delete=django.db.models.deletion.CASCADE, related_name='+', to='federation.node')),
            ],
        ),
        migrations.CreateModel(
            name='Difference',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('study_instance_uid', models.CharField(db_index=True, max_length=64)),
                ('dicom_patient_id', models.CharField(blank=True, max_length=64)),
                ('series_instance_uid', models.CharField(max_length=64)),
                ('kind', models.CharField(choices=[('lost', 'no longer there'), ('extra', 'not known here'), ('count', 'another number of images'), ('content', 'other content'), ('identity', 'other patient or study data')], max_length=8)),
                ('believed', models.PositiveIntegerField(default=0)),
                ('found', models.PositiveIntegerField(default=0)),
                ('told', models.JSONField(default=dict)),
                ('is_told', models.BooleanField(default=False)),
                ('found_at', models.DateTimeField(auto_now_add=True)),
                ('mended_at', models.DateTimeField(null=True)),
                ('resolution', models.CharField(blank=True, choices=[('told-again', 'told again and taken over'), ('elsewhere', 'the images are safe elsewhere'), ('proved-again', 'delivered to the archive again'), ('taken-over', 'the data of the node were taken over'), ('accepted', 'accepted by a person')], max_length=12)),
                ('node', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='+', to='federation.node')),
                ('study', models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='differences', to='catalogue.study')),
            ],
            options={
                'indexes': [models.Index(fields=['node', 'mended_at'], name='differences_of_node')],
                'constraints': [models.UniqueConstraint(condition=models.Q(('mended_at', None)), fields=('node', 'study_instance_uid', 'dicom_patient_id', 'series_instance_uid', 'kind'), name='difference_open_once')],
            },
        ),
    ]

"""Patients, their issuer-scoped identifiers, and care links."""

from django.conf import settings
from django.db import models

from ris_central.organizations.models import Site
from standards.person_names import display


class Patient(models.Model):
    """A person. ``name`` is a DICOM PN (carets kept); fold, latin and sort keys come from standards.person_names."""

    name = models.CharField(max_length=324)
    name_fold = models.CharField(max_length=324, db_index=True)
    name_latin = models.CharField(max_length=400, db_index=True)
    name_sort = models.CharField(max_length=324, db_index=True)
    birth_date = models.DateField(null=True)
    sex = models.CharField(max_length=1, blank=True)
    phone = models.CharField(max_length=64, blank=True)
    merged_into = models.ForeignKey("self", null=True, on_delete=models.PROTECT, related_name="+")
    """The same person under another row, which has all that was here; until the merge is undone."""
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["name_sort", "id"]

    def __str__(self) -> str:
        return display(self.name)


class SiteRegistration(models.Model):
    """A patient is on file at a site: its people may see the patient (which studies, the catalogue says)."""

    patient = models.ForeignKey(Patient, on_delete=models.CASCADE, related_name="registrations")
    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["patient", "site"], name="registration_once")]


class PatientIdentifier(models.Model):
    """An identifier as its issuer gave it. ``(issuer, value)`` names one patient; a bare value names nobody."""

    patient = models.ForeignKey(Patient, on_delete=models.CASCADE, related_name="identifiers")
    issuer = models.CharField(max_length=64, blank=True)
    value = models.CharField(max_length=64)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["issuer", "value"], name="identifier_once_per_issuer")]


class CareLink(models.Model):
    """A clinician treats a patient until a date, and so sees the patient's priors of all sites."""

    patient = models.ForeignKey(Patient, on_delete=models.CASCADE, related_name="care_links")
    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="+")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.CASCADE, related_name="+")
    """Null: every clinician (radiologist) of the site, because the patient is booked there."""
    reason = models.CharField(max_length=128)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()


class PatientMerge(models.Model):
    """Two rows turned out to be one person. ``moved``: keys by model and field, so that it can be undone exactly."""

    source = models.ForeignKey(Patient, on_delete=models.CASCADE, related_name="+")
    target = models.ForeignKey(Patient, on_delete=models.CASCADE, related_name="+")
    moved = models.JSONField(default=dict)
    merged_at = models.DateTimeField(auto_now_add=True)
    undone_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["source"], condition=models.Q(undone_at=None), name="merged_once_at_a_time")
        ]

"""Sites and memberships."""

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _


class Site(models.Model):
    """A clinic, the centre's archive site, or a reference centre."""

    class Kind(models.TextChoices):
        OWN_PACS = "own_pacs", _("Clinic with its own node")
        GATEWAY = "gateway", _("Clinic with a gateway only")
        CONSULTANT = "consultant", _("Reference centre")
        CENTRE = "centre", _("Centre")

    class StorageModel(models.TextChoices):
        """Where the images of a clinic lie by rule; a region may mix them."""

        CENTRALISED = "centralised", _("Everything goes to the archive at once")
        DISTRIBUTED = "distributed", _("Images stay at the clinic, the archive gets them on demand")
        HYBRID = "hybrid", _("Small studies go at once, large ones at night")

    code = models.SlugField(unique=True)
    name = models.CharField(max_length=128)
    kind = models.CharField(max_length=16, choices=Kind)
    address = models.CharField(max_length=255, blank=True)
    phone = models.CharField(max_length=64, blank=True)
    time_zone = models.CharField(max_length=64, default="Europe/Moscow")
    accession_prefix = models.CharField(max_length=4, unique=True)
    issuer_of_patient_id = models.CharField(max_length=64, blank=True)
    storage_model = models.CharField(max_length=12, choices=StorageModel, default=StorageModel.CENTRALISED)

    class Meta:
        ordering = ["code"]

    def __str__(self) -> str:
        return self.name


class Membership(models.Model):
    """A user belongs to a site."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships")
    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="memberships")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["user", "site"], name="membership_once")]

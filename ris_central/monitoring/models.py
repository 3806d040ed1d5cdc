"""What is watched: peers that were refused at a node's DICOM port."""

from django.db import models

from ris_central.federation.models import Node


class RefusedAssociation(models.Model):
    """A peer that a node turned away, counted; an engineer admits it by connecting it as a device."""

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="refused_associations")
    calling_ae_title = models.CharField(max_length=16)
    called_ae_title = models.CharField(max_length=16, blank=True)
    address = models.CharField(max_length=64, blank=True)
    reason = models.CharField(max_length=255)
    count = models.PositiveIntegerField(default=1)
    first_at = models.DateTimeField()
    last_at = models.DateTimeField()
    admitted_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-last_at"]
        constraints = [
            models.UniqueConstraint(fields=["node", "calling_ae_title", "address"], name="refused_once_per_peer")
        ]

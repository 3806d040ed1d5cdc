"""Sites over REST."""

from django.db.models import QuerySet
from rest_framework import serializers, viewsets

from ris_central.accounts.permissions import Capability, may
from ris_central.organizations import queries
from ris_central.organizations.models import Site


class SiteSerializer(serializers.ModelSerializer[Site]):
    """A site."""

    class Meta:
        model = Site
        fields = ["id", "code", "name", "kind", "address", "phone", "time_zone", "issuer_of_patient_id"]


class SiteViewSet(viewsets.ReadOnlyModelViewSet[Site]):
    """The sites of who asks; all of them for the administrator."""

    permission_classes = [may(Capability.ENTER)]
    serializer_class = SiteSerializer
    queryset = Site.objects.none()

    def get_queryset(self) -> QuerySet[Site]:
        """Sites that who asks may see."""
        return queries.visible_to(self.request.user)

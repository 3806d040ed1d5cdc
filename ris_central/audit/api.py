"""The audit trail over REST."""

from django.db.models import QuerySet
from rest_framework import mixins, serializers, viewsets
from rest_framework.request import Request
from rest_framework.response import Response

from ris_central.accounts.permissions import Capability, may
from ris_central.audit import queries
from ris_central.audit.actions import record
from ris_central.audit.models import AuditEvent


class AuditEventSerializer(serializers.ModelSerializer[AuditEvent]):
    """One row of the trail; ``sequence`` and ``hash`` are empty until it is sealed."""

    class Meta:
        model = AuditEvent
        fields = [
            "id",
            "occurred_at",
            "actor_name",
            "action",
            "outcome",
            "entity_type",
            "entity_id",
            "patient_key",
            "address",
            "detail",
            "sequence",
            "previous_hash",
            "hash",
        ]


class AuditEventViewSet(mixins.ListModelMixin, viewsets.GenericViewSet[AuditEvent]):
    """Newest first; ``who``, ``what``, ``patient``, ``outcome`` narrow it. Reading is recorded."""

    permission_classes = [may(Capability.READ_AUDIT)]
    serializer_class = AuditEventSerializer
    queryset = AuditEvent.objects.none()

    def get_queryset(self) -> QuerySet[AuditEvent]:
        """Rows that who asks may read."""
        asked = self.request.query_params
        return queries.narrowed(
            queries.visible_to(self.request.user),  # type: ignore[arg-type]
            who=asked.get("who", ""),
            what=asked.get("what", ""),
            patient=asked.get("patient", ""),
            outcome=asked.get("outcome", ""),
        )

    def list(self, request: Request, *args: object, **kwargs: object) -> Response:
        """Rows, newest first."""
        record("audit.read", request=request, detail={"api": True})
        return super().list(request)

"""Patients over REST."""

from datetime import date
from typing import Any

from django.db.models import QuerySet
from rest_framework import mixins, serializers, viewsets
from rest_framework.request import Request
from rest_framework.response import Response

from ris_central.accounts.permissions import Capability, may_by_method
from ris_central.audit.actions import record_view
from ris_central.organizations.models import Site
from ris_central.organizations.queries import visible_to
from ris_central.patients import actions, queries
from ris_central.patients.models import Patient, PatientIdentifier


class IdentifierSerializer(serializers.ModelSerializer[PatientIdentifier]):
    """A number and who gave it."""

    class Meta:
        model = PatientIdentifier
        fields = ["issuer", "value"]


class PatientSerializer(serializers.ModelSerializer[Patient]):
    """A patient; ``name`` is a DICOM PN. When made, ``patient_id`` is the site's own number for them."""

    identifiers = IdentifierSerializer(many=True, read_only=True)
    site = serializers.SlugRelatedField(slug_field="code", queryset=Site.objects.none(), write_only=True)
    patient_id = serializers.CharField(max_length=64, required=False, allow_blank=True, write_only=True)

    class Meta:
        model = Patient
        fields = ["id", "name", "birth_date", "sex", "phone", "identifiers", "site", "patient_id"]

    def get_fields(self) -> dict[str, Any]:
        """A patient is registered at a site of who asks."""
        fields: dict[str, Any] = super().get_fields()
        if request := self.context.get("request"):
            fields["site"].queryset = visible_to(request.user)
        return fields

    def validate_birth_date(self, value: date | None) -> date | None:
        """Nobody is born tomorrow."""
        if value is not None and value > date.today():
            raise serializers.ValidationError("This cannot be a birth date.")
        return value

    def create(self, validated_data: dict[str, Any]) -> Patient:
        """Through the action."""
        return actions.create(request=self.context["request"], **validated_data)


class PatientViewSet(
    mixins.CreateModelMixin, mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet[Patient]
):
    """Patients of who asks; ``?q=`` searches as the page does."""

    permission_classes = [may_by_method(GET=Capability.SEE_PATIENTS, POST=Capability.BOOK)]
    serializer_class = PatientSerializer
    queryset = Patient.objects.none()

    def get_queryset(self) -> QuerySet[Patient]:
        """Patients that who asks may see."""
        found = queries.visible_to(self.request.user).prefetch_related("identifiers")
        return queries.search(found, self.request.query_params.get("q", ""))

    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """One patient; the look is recorded."""
        found = self.get_object()
        record_view("patient.viewed", request=request, entity=found, patient_key=found.pk)
        return Response(self.get_serializer(found).data)

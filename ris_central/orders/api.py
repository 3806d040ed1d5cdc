"""Orders and devices over REST."""

from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from ris_central.accounts.permissions import Capability, may, may_by_method
from ris_central.audit.actions import record_view
from ris_central.federation.models import Node
from ris_central.orders import actions, queries
from ris_central.orders.models import Device, ScheduledProcedureStep, ServiceRequest
from ris_central.organizations.models import Site
from ris_central.patients import queries as patients
from ris_central.patients.models import Patient


class DeviceSerializer(serializers.ModelSerializer[Device]):
    """A device."""

    site = serializers.SlugRelatedField[Site](slug_field="code", read_only=True)
    node = serializers.SlugRelatedField[Node](slug_field="name", read_only=True)

    class Meta:
        model = Device
        fields = ["id", "site", "node", "name", "ae_title", "modality", "character_set", "slot_minutes", "is_active"]


class DeviceViewSet(viewsets.ReadOnlyModelViewSet[Device]):
    """Devices of the sites of who asks."""

    permission_classes = [may(Capability.SEE_SCHEDULE, Capability.CONNECT)]
    serializer_class = DeviceSerializer
    queryset = Device.objects.none()

    def get_queryset(self) -> QuerySet[Device]:
        """Devices that who asks may see."""
        return queries.devices_visible_to(self.request.user)


class StepSerializer(serializers.ModelSerializer[ScheduledProcedureStep]):
    """A booked place; times are ISO 8601 with their offset."""

    starts_at = serializers.DateTimeField(source="slot.lower", read_only=True)
    ends_at = serializers.DateTimeField(source="slot.upper", read_only=True)

    class Meta:
        model = ScheduledProcedureStep
        fields = ["id", "scheduled_procedure_step_id", "device", "starts_at", "ends_at", "status"]


class OrderSerializer(serializers.ModelSerializer[ServiceRequest]):
    """An order with its steps."""

    site = serializers.SlugRelatedField[Site](slug_field="code", read_only=True)
    steps = StepSerializer(many=True, read_only=True)

    class Meta:
        model = ServiceRequest
        fields = [
            "id",
            "patient",
            "site",
            "accession_number",
            "placer_order_number",
            "study_instance_uid",
            "description",
            "reason",
            "referring_physician_name",
            "priority",
            "status",
            "created_at",
            "steps",
        ]


class BookingSerializer(serializers.Serializer[ServiceRequest]):
    """What to book: patient and device by id, ``starts_at`` in ISO 8601 with its offset."""

    patient = serializers.PrimaryKeyRelatedField(queryset=Patient.objects.none())
    device = serializers.PrimaryKeyRelatedField(queryset=Device.objects.none())
    starts_at = serializers.DateTimeField()
    minutes = serializers.IntegerField(min_value=1, max_value=600, required=False)
    description = serializers.CharField(max_length=64)
    priority = serializers.ChoiceField(ServiceRequest.Priority.choices, default=ServiceRequest.Priority.ROUTINE)
    reason = serializers.CharField(max_length=1000, required=False, allow_blank=True, default="")
    referring_physician_name = serializers.CharField(max_length=128, required=False, allow_blank=True, default="")

    def get_fields(self) -> dict[str, Any]:
        """Patients and devices that who asks may see."""
        fields = super().get_fields()
        if request := self.context.get("request"):
            fields["patient"].queryset = patients.visible_to(request.user)  # type: ignore[attr-defined]
            fields["device"].queryset = queries.devices_visible_to(request.user)  # type: ignore[attr-defined]
        return fields


class CancelSerializer(serializers.Serializer[ServiceRequest]):
    """Why."""

    reason = serializers.CharField(max_length=500, required=False, allow_blank=True, default="")


class OrderViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet[ServiceRequest]):
    """Orders of the sites of who asks; ``?accession_number=`` and ``?patient=`` narrow them."""

    permission_classes = [may_by_method(GET=Capability.SEE_SCHEDULE, POST=Capability.BOOK)]
    serializer_class = OrderSerializer
    queryset = ServiceRequest.objects.none()

    def get_queryset(self) -> QuerySet[ServiceRequest]:
        """Orders that who asks may see."""
        found = queries.visible_to(self.request.user).select_related("site").prefetch_related("steps").order_by("-pk")
        if number := self.request.query_params.get("accession_number"):
            found = found.filter(accession_number=number)
        patient = self.request.query_params.get("patient", "")
        return found.filter(patient=int(patient)) if patient.isdecimal() else found

    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """One order; the look is recorded."""
        order = self.get_object()
        record_view("order.viewed", request=request, entity=order, patient_key=order.patient_id)
        return Response(OrderSerializer(order).data)

    @extend_schema(request=BookingSerializer, responses={201: OrderSerializer})
    def create(self, request: Request) -> Response:
        """Book; 409 ``slot-taken`` when somebody was quicker."""
        asked = BookingSerializer(data=request.data, context=self.get_serializer_context())
        asked.is_valid(raise_exception=True)
        order = actions.book(request=request, **asked.validated_data)
        return Response(OrderSerializer(order).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=CancelSerializer, responses={200: OrderSerializer})
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str | None = None) -> Response:
        """Cancel; 409 ``state-conflict`` when the examination has begun."""
        asked = CancelSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        order = actions.cancel(self.get_object(), request=request, **asked.validated_data)
        return Response(OrderSerializer(order).data)

"""REST: studies, and image tokens with which nodes are asked for images."""

from typing import Any
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db.models import QuerySet
from rest_framework import serializers, viewsets
from rest_framework.exceptions import PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from gateway.envelope import HoldingsQuestion
from ris_central.accounts.permissions import Capability, can, may
from ris_central.audit.actions import record, record_view
from ris_central.catalogue import queries
from ris_central.catalogue.actions.reconciling import compare
from ris_central.catalogue.models import Series, Study
from ris_central.federation.api import signed_view
from ris_central.federation.keys import image_token

AUDIENCE = "regis-nodes"
"""Every node of the region takes tokens for this audience; the proxy uses a node's own name instead."""


class SeriesSerializer(serializers.ModelSerializer[Series]):
    """A series with its counts."""

    class Meta:
        model = Series
        fields = (
            "series_instance_uid",
            "modality",
            "series_number",
            "series_description",
            "instance_count",
            "instances_safe",
        )


class StudySerializer(serializers.ModelSerializer[Study]):
    """A study as lists show it."""

    site = serializers.SlugRelatedField[Any](slug_field="code", read_only=True)
    patient = serializers.PrimaryKeyRelatedField[Any](read_only=True)
    patient_name = serializers.CharField(source="patient.name", read_only=True)
    patient_birth_date = serializers.DateField(source="patient.birth_date", read_only=True)
    patient_id = serializers.CharField(source="dicom_patient_id", read_only=True)
    report_status = serializers.SerializerMethodField()

    class Meta:
        model = Study
        fields = (
            "id",
            "study_instance_uid",
            "site",
            "patient",
            "patient_name",
            "patient_birth_date",
            "patient_id",
            "issuer_of_patient_id",
            "study_date",
            "study_time",
            "started_at",
            "accession_number",
            "study_id",
            "study_description",
            "referring_physician_name",
            "modalities",
            "instances_known",
            "instances_safe",
            "last_instance_at",
            "complete_at",
            "report_status",
        )

    def get_report_status(self, study: Study) -> str | None:
        """FHIR DiagnosticReport.status of the report, null without one."""
        return getattr(study, "report_status", None)


class StudyDetailSerializer(StudySerializer):
    """A study with its series and holders."""

    series = SeriesSerializer(many=True, read_only=True)
    holders = serializers.SerializerMethodField()
    foreign = serializers.SerializerMethodField()

    class Meta(StudySerializer.Meta):
        fields = (*StudySerializer.Meta.fields, "series", "holders", "foreign")  # type: ignore[assignment]

    def get_holders(self, study: Study) -> list[dict[str, Any]]:
        """Nodes that hold images of the study now."""
        return [
            {"node": entry["node"].name, "kind": entry["node"].kind, "held": entry["held"]}
            for entry in queries.holders(study)
        ]

    def get_foreign(self, study: Study) -> list[dict[str, Any]]:
        """PACS outside the region that list the study, and how its images are fetched from them."""
        return [
            {
                "node": one.node.name,
                "source": one.source,
                "series": one.series_count,
                "instances": one.instance_count,
                "gone_at": one.gone_at,
                "fetching": one.fetching,
                "missing": one.missing_count,
                "last_error": one.last_error,
            }
            for one in study.foreign_holdings.select_related("node").order_by("source")
        ]


class StudyViewSet(viewsets.ReadOnlyModelViewSet[Study]):
    """Studies that the user may see.

    Filters: text, modality, status, since, until, study_instance_uid, patient, accession_number.
    """

    permission_classes = [may(Capability.SEE_STUDIES)]
    queryset = Study.objects.none()
    serializer_class = StudySerializer

    def get_serializer_class(self) -> type[StudySerializer]:
        """Lists are short, one study is told in full."""
        return StudyDetailSerializer if self.action == "retrieve" else StudySerializer

    def get_queryset(self) -> QuerySet[Study]:
        """Visible studies, narrowed."""
        if getattr(self, "swagger_fake_view", False):
            return Study.objects.none()
        given = self.request.query_params
        studies = queries.worklist(self.request.user, given.dict(), ZoneInfo(settings.TIME_ZONE))  # type: ignore[arg-type]
        for name in ("study_instance_uid", "accession_number"):
            if value := given.get(name):
                studies = studies.filter(**{name: value})
        if (patient := given.get("patient", "")).isdecimal():
            studies = studies.filter(patient=int(patient))
        return studies.prefetch_related("series") if self.action == "retrieve" else studies

    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """One study; the look is audited."""
        study = self.get_object()
        record_view("study.viewed", request=request, entity=study, patient_key=study.patient_id)
        return Response(self.get_serializer(study).data)


class ImageTokenSerializer(serializers.Serializer[Any]):
    """Studies asked for, by UID, and what for."""

    studies = serializers.ListField(child=serializers.RegexField(r"\A[0-9.]{1,64}\Z"), min_length=1, max_length=200)
    operations = serializers.ListField(child=serializers.ChoiceField(["read", "store"]), required=False)


class ImageTokenView(APIView):
    """``POST {"studies": […]}`` gives ``{"token", "expires"}``, good at every node for these studies alone."""

    permission_classes = [may(Capability.SEE_STUDIES, Capability.CONNECT, Capability.ADMINISTER)]
    serializer_class = ImageTokenSerializer

    def post(self, request: Request) -> Response:
        """A token to read; who administers or connects devices may also store, studies yet unknown included."""
        asked = ImageTokenSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        studies: list[str] = sorted(set(asked.validated_data["studies"]))
        user: Any = request.user
        may_store = can(user, Capability.CONNECT) or can(user, Capability.ADMINISTER)
        operations: list[str] = asked.validated_data.get("operations") or []
        if "store" in operations and not may_store:
            self._refuse(request, studies, "Your role may not store images.")
        visible = set(
            queries.visible_to(user).filter(study_instance_uid__in=studies).values_list("study_instance_uid", flat=True)
        )
        known = set(Study.objects.filter(study_instance_uid__in=studies).values_list("study_instance_uid", flat=True))
        closed = set(studies) - visible
        if can(user, Capability.ADMINISTER):
            closed &= known
        if closed and (not may_store or "read" in operations):
            self._refuse(request, sorted(closed), "At least one of these studies is not open to you.")
        if not operations:
            # Images of a study that is not open are stored without being seen.
            operations = ["store"] if closed else ["read", "store"] if may_store else ["read"]
        token, expires = image_token(user.username, studies, operations, AUDIENCE)
        record("image-token.issued", request=request, detail={"studies": studies[:20], "operations": operations})
        return Response({"token": token, "expires": expires.isoformat()})

    def _refuse(self, request: Request, studies: list[str], sentence: str) -> None:
        record("image-token.issued", request=request, outcome="refused", detail={"studies": studies[:20]})
        raise PermissionDenied(sentence)


holdings = signed_view(HoldingsQuestion, compare)
"""``/federation/v1/holdings``: a node compares what it holds with what is believed of it here."""

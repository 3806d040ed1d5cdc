"""REST: reports, read and written as on the study page."""

from typing import Any

from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from rest_framework import mixins, serializers, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from ris_central.accounts.permissions import Capability, may_by_method
from ris_central.audit.actions import record_view
from ris_central.catalogue.models import Study
from ris_central.catalogue.queries import visible_to as visible_studies
from ris_central.catalogue.views import the_user
from ris_central.reporting import actions, queries
from ris_central.reporting.models import Addendum, Report, ReportDocument


class AddendumSerializer(serializers.ModelSerializer[Addendum]):
    """A signed addendum."""

    author = serializers.StringRelatedField[Any]()

    class Meta:
        model = Addendum
        fields = ("id", "author", "text", "signed_at")


class ReportDocumentSerializer(serializers.ModelSerializer[ReportDocument]):
    """A rendering of the report and when the archive got it."""

    class Meta:
        model = ReportDocument
        fields = ("kind", "number", "sop_instance_uid", "series_instance_uid", "sha256", "stored_at", "last_error")


class ReportSerializer(serializers.ModelSerializer[Report]):
    """A report with its addenda and documents."""

    study = serializers.PrimaryKeyRelatedField[Any](read_only=True)
    study_instance_uid = serializers.CharField(source="study.study_instance_uid", read_only=True)
    author = serializers.StringRelatedField[Any]()
    signed_by = serializers.StringRelatedField[Any]()
    addenda = AddendumSerializer(many=True, read_only=True)
    documents = ReportDocumentSerializer(many=True, read_only=True)

    class Meta:
        model = Report
        fields = (
            "id",
            "study",
            "study_instance_uid",
            "status",
            "version",
            "author",
            "findings",
            "conclusion",
            "created_at",
            "updated_at",
            "signed_at",
            "signed_by",
            "content_sha256",
            "addenda",
            "documents",
        )
        read_only_fields = fields


class DraftSerializer(serializers.Serializer[Any]):
    """A text to save over ``version``; 0 when there is no report yet. ``sign`` signs it at once."""

    study = serializers.IntegerField()
    version = serializers.IntegerField(min_value=0, default=0)
    findings = serializers.CharField(allow_blank=True, default="", trim_whitespace=False)
    conclusion = serializers.CharField(allow_blank=True, default="", trim_whitespace=False)
    sign = serializers.BooleanField(default=False)


class AddendumTextSerializer(serializers.Serializer[Any]):
    """The text of an addendum."""

    text = serializers.CharField()


class ReportViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet[Report]):
    """Reports of visible studies. ``POST`` saves (and signs) a text; a version that is not the newest gets 409."""

    permission_classes = [may_by_method(GET=Capability.SEE_STUDIES, POST=Capability.REPORT)]
    queryset = Report.objects.none()
    serializer_class = ReportSerializer

    def get_queryset(self) -> QuerySet[Report]:
        """Visible reports, newest first; ``?study=`` and ``?status=`` narrow."""
        if getattr(self, "swagger_fake_view", False):
            return Report.objects.none()
        reports = queries.visible_to(self.request.user).select_related("study", "author", "signed_by")
        given = self.request.query_params
        if (study := given.get("study", "")).isdecimal():
            reports = reports.filter(study=int(study))
        if status := given.get("status"):
            reports = reports.filter(status=status)
        return reports.prefetch_related("addenda__author", "documents").order_by("-pk")

    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """One report; the look is audited."""
        report = self.get_object()
        record_view("report.read", request=request, entity=report, patient_key=report.study.patient_id)
        return Response(self.get_serializer(report).data)

    def create(self, request: Request) -> Response:
        """Save a text, and sign it if asked."""
        draft = DraftSerializer(data=request.data)
        draft.is_valid(raise_exception=True)
        typed = dict(draft.validated_data)
        visible = visible_studies(request.user)
        study = get_object_or_404(
            Study.objects.select_related("patient", "site"), pk__in=visible, pk=typed.pop("study")
        )
        write = actions.sign if typed.pop("sign") else actions.save_draft
        report = write(study, the_user(request), request=request, **typed)
        return Response(ReportSerializer(self.get_queryset().get(pk=report.pk)).data, status=201)

    @action(detail=True, methods=["post"])
    def addenda(self, request: Request, pk: str | None = None) -> Response:
        """Sign an addendum."""
        text = AddendumTextSerializer(data=request.data)
        text.is_valid(raise_exception=True)
        report = self.get_object()
        made = actions.add_addendum(report, the_user(request), text.validated_data["text"], request=request)
        return Response(AddendumSerializer(made).data, status=201)

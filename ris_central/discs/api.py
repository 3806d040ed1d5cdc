"""REST: disc jobs, listed and ordered."""

from typing import Any

from django.db.models import QuerySet
from django.http import Http404
from rest_framework import mixins, serializers, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse

from ris_central.accounts.permissions import Capability, may_by_method
from ris_central.catalogue.queries import visible_to as visible_studies
from ris_central.catalogue.views import the_user
from ris_central.discs import actions, queries
from ris_central.discs.models import DiscJob


class DiscJobSerializer(serializers.ModelSerializer[DiscJob]):
    """A job, its progress, and where its image can be downloaded once it is verified."""

    patient = serializers.PrimaryKeyRelatedField[Any](read_only=True)
    studies = serializers.PrimaryKeyRelatedField[Any](many=True, read_only=True)
    site = serializers.SlugRelatedField[Any](slug_field="code", read_only=True)
    requested_by = serializers.StringRelatedField[Any]()
    download = serializers.SerializerMethodField()

    class Meta:
        model = DiscJob
        fields = (
            "id",
            "patient",
            "site",
            "studies",
            "medium",
            "with_reports",
            "status",
            "done",
            "total",
            "error_code",
            "error_detail",
            "image_bytes",
            "image_sha256",
            "report",
            "requested_by",
            "requested_at",
            "verified_at",
            "download",
        )
        read_only_fields = fields

    def get_download(self, job: DiscJob) -> str | None:
        """Path of the image, null until it is there."""
        return reverse("disc_download", args=[job.pk]) if job.status == DiscJob.Status.COMPLETED else None


class OrderDiscSerializer(serializers.Serializer[Any]):
    """Studies by key, medium, and whether signed reports go along."""

    studies = serializers.ListField(child=serializers.IntegerField(), min_length=1)
    medium = serializers.ChoiceField(DiscJob.Medium.choices, default=DiscJob.Medium.CD)
    with_reports = serializers.BooleanField(default=True)


class DiscJobViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet[DiscJob]):
    """Disc jobs of the clerk's sites. ``POST`` orders; ``cancel`` and ``retry`` act on one."""

    permission_classes = [may_by_method(GET=Capability.BURN, POST=Capability.BURN)]
    queryset = DiscJob.objects.none()
    serializer_class = DiscJobSerializer

    def get_queryset(self) -> QuerySet[DiscJob]:
        """Visible jobs, newest first."""
        if getattr(self, "swagger_fake_view", False):
            return DiscJob.objects.none()
        jobs = queries.visible_to(self.request.user)
        return jobs.select_related("site", "requested_by").prefetch_related("studies").order_by("-requested_at")

    def create(self, request: Request) -> Response:
        """Order a disc."""
        asked = OrderDiscSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        given = asked.validated_data
        studies = list(visible_studies(request.user).filter(pk__in=given["studies"]))
        if len(studies) != len(set(given["studies"])):
            raise Http404
        user = the_user(request)
        job = actions.order(studies, user, medium=given["medium"], with_reports=given["with_reports"], request=request)
        return Response(self.get_serializer(job).data, status=201)

    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str | None = None) -> Response:
        """Give up a job."""
        user = the_user(request)
        return Response(self.get_serializer(actions.cancel(self.get_object(), user, request=request)).data)

    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: str | None = None) -> Response:
        """Try a failed job again; ``{"medium": …}`` changes the medium."""
        user = the_user(request)
        if not isinstance(request.data, dict):
            raise serializers.ValidationError("An object is expected.")
        medium = str(request.data.get("medium", ""))
        return Response(
            self.get_serializer(actions.retry(self.get_object(), user, medium=medium, request=request)).data
        )

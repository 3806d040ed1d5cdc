"""REST: consults, as on the desk."""

from typing import Any

from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from rest_framework import mixins, serializers, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from ris_central.accounts.permissions import Capability, may
from ris_central.catalogue.queries import visible_to as visible_studies
from ris_central.catalogue.views import the_user
from ris_central.consults import actions, queries
from ris_central.consults.models import Consult


class ConsultSerializer(serializers.ModelSerializer[Consult]):
    """A consult with how far its images are."""

    study = serializers.PrimaryKeyRelatedField[Any](read_only=True)
    study_instance_uid = serializers.CharField(source="study.study_instance_uid", read_only=True)
    instances_known = serializers.IntegerField(source="study.instances_known", read_only=True)
    instances_safe = serializers.IntegerField(source="study.instances_safe", read_only=True)
    requesting_site = serializers.SlugRelatedField[Any](slug_field="code", read_only=True)
    reference_site = serializers.SlugRelatedField[Any](slug_field="code", read_only=True)
    requester = serializers.StringRelatedField[Any]()
    expert = serializers.StringRelatedField[Any]()
    slot = serializers.SerializerMethodField()

    class Meta:
        model = Consult
        fields = (
            "id",
            "study",
            "study_instance_uid",
            "requesting_site",
            "reference_site",
            "requester",
            "question",
            "is_urgent",
            "status",
            "expert",
            "slot",
            "opinion",
            "version",
            "requested_at",
            "images_ready_at",
            "instances_known",
            "instances_safe",
            "signed_at",
            "content_sha256",
            "reason",
        )
        read_only_fields = fields

    def get_slot(self, consult: Consult) -> dict[str, str] | None:
        """Begin and end of the expert's slot."""
        slot = consult.slot
        return {"starts_at": slot.lower.isoformat(), "ends_at": slot.upper.isoformat()} if slot else None

    def to_representation(self, instance: Consult) -> dict[str, Any]:
        """An opinion that is not signed is its expert's alone."""
        shown: dict[str, Any] = super().to_representation(instance)
        request = self.context.get("request")
        mine = request is not None and instance.expert_id == request.user.pk
        if instance.status != Consult.Status.COMPLETED and not mine:
            shown["opinion"] = ""
        return shown


class AskSerializer(serializers.Serializer[Any]):
    """A question: study key, site code of the reference centre."""

    study = serializers.IntegerField()
    reference_site = serializers.CharField()
    question = serializers.CharField()
    is_urgent = serializers.BooleanField(default=False)


class TakeSerializer(serializers.Serializer[Any]):
    """A slot; without a time it begins now."""

    starts_at = serializers.DateTimeField(required=False)
    minutes = serializers.IntegerField(default=30)


class OpinionSerializer(serializers.Serializer[Any]):
    """An opinion typed over ``version``."""

    version = serializers.IntegerField(min_value=0, default=0)
    opinion = serializers.CharField(allow_blank=True, trim_whitespace=False)


class ConsultViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet[Consult]):
    """Consults of the user's sites. ``POST`` asks; ``take``, ``opinion`` and ``conclude`` are the expert's."""

    permission_classes = [may(Capability.CONSULT, Capability.OPINE)]
    queryset = Consult.objects.none()
    serializer_class = ConsultSerializer

    def get_queryset(self) -> QuerySet[Consult]:
        """Visible consults in the desk's order; ``?status=`` and ``?study=`` narrow."""
        if getattr(self, "swagger_fake_view", False):
            return Consult.objects.none()
        consults = queries.desk(the_user(self.request))
        given = self.request.query_params
        if status := given.get("status"):
            consults = consults.filter(status=status)
        if (study := given.get("study", "")).isdecimal():
            consults = consults.filter(study=int(study))
        return consults

    def create(self, request: Request) -> Response:
        """Ask."""
        asked = AskSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        given = asked.validated_data
        study = get_object_or_404(visible_studies(request.user), pk=given["study"])
        site = get_object_or_404(queries.reference_sites(), code=given["reference_site"])
        made = actions.ask(
            study,
            the_user(request),
            reference_site=site,
            question=given["question"],
            is_urgent=given["is_urgent"],
            request=request,
        )
        return self._shown(made, 201)

    @action(detail=True, methods=["post"])
    def take(self, request: Request, pk: str | None = None) -> Response:
        """Take a slot."""
        asked = TakeSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        return self._shown(
            actions.take_slot(self.get_object(), the_user(request), request=request, **asked.validated_data)
        )

    @action(detail=True, methods=["post"])
    def opinion(self, request: Request, pk: str | None = None) -> Response:
        """Save the opinion."""
        typed = OpinionSerializer(data=request.data)
        typed.is_valid(raise_exception=True)
        return self._shown(
            actions.save_opinion(self.get_object(), the_user(request), request=request, **typed.validated_data)
        )

    @action(detail=True, methods=["post"])
    def conclude(self, request: Request, pk: str | None = None) -> Response:
        """Sign the opinion."""
        typed = OpinionSerializer(data=request.data)
        typed.is_valid(raise_exception=True)
        return self._shown(
            actions.conclude(self.get_object(), the_user(request), request=request, **typed.validated_data)
        )

    def _shown(self, consult: Consult, status: int = 200) -> Response:
        return Response(self.get_serializer(consult).data, status=status)

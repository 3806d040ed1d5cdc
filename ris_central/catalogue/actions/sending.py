"""Having nodes send a study before others, because somebody opened it or pressed the button; or keep it back."""

from collections.abc import Iterable

from django.core.cache import cache
from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone

from gateway.envelope import HoldDelivery, SendStudy
from ris_central.audit.actions import record
from ris_central.catalogue.models import DeliveryState, SeriesHolder, Study
from ris_central.federation.actions import send_command
from ris_central.federation.models import Command, Node

CONSULT = 10
HURRY_SECONDS = 60
_OF_A_STUDY = ("study.send", "delivery.hold")
"""Of these the last one counts."""
_BY_A_PERSON = [{"reason": "held"}]
"""What ``DeliveryProgress.held`` contains of a study that somebody holds back."""


def hurry(study: Study, nodes: Iterable[Node]) -> None:
    """Somebody looks at a study that is not all at the archive: have the nodes that hold it deliver it first.

    What a person holds back stays where it is: looking at it is not asking for it.
    """
    asked = [node for node in _clinics(nodes) if cache.add(f"catalogue:hurry:{study.pk}:{node.pk}", 1, HURRY_SECONDS)]
    if asked and not is_held(study):
        ask(study, asked, CONSULT)


def is_held(study: Study) -> bool:
    """Whether a person holds the study back, as this centre knows or as a node tells."""
    return held_of(Study.objects.filter(pk=study.pk)).exists()


def held_of(studies: QuerySet[Study]) -> QuerySet[Study]:
    """Those of these that a person holds back, as this centre knows or as a node tells."""
    told = DeliveryState.objects.filter(study=OuterRef("pk"), told__held__contains=_BY_A_PERSON)
    return studies.filter(Q(held_at__isnull=False) | Exists(told))


def nodes_of(study: Study) -> QuerySet[Node]:
    """The nodes that hold some of the study or have it to deliver; a revoked one is told nothing."""
    holding = SeriesHolder.objects.filter(series__study=study, count__gt=0).values("node")
    delivering = study.deliveries.values("node")
    return Node.objects.filter(Q(pk__in=delivering) | Q(pk__in=holding), revoked_at=None)


def ask(study: Study, nodes: Iterable[Node], priority: int) -> list[str]:
    """Have these nodes deliver the study with this priority, even if somebody held it back; the names of those asked.

    A node that is away finds the request when it is back; asking twice leaves one.
    """
    _same_uid(study).exclude(held_at=None).update(held_at=None, held_by=None)
    return _tell(nodes, SendStudy(study_instance_uid=study.study_instance_uid, priority=priority))


@transaction.atomic
def send_now(study: Study, nodes: Iterable[Node], *, request: HttpRequest) -> int:
    """Ask these nodes for the study, failed and held-back images included; how many were asked."""
    asked = ask(study, nodes, CONSULT)
    record("study.asked-for", request=request, entity=study, patient_key=study.patient_id, detail={"nodes": asked})
    return len(asked)


@transaction.atomic
def hold(study: Study, nodes: Iterable[Node], *, request: HttpRequest) -> int:
    """Have these nodes keep the study back until it is let go of or asked for; how many were told."""
    told = _tell(nodes, HoldDelivery(study_instance_uid=study.study_instance_uid))
    if told:
        _same_uid(study).update(held_at=timezone.now(), held_by=request.user)
        record("study.held", request=request, entity=study, patient_key=study.patient_id, detail={"nodes": told})
    return len(told)


@transaction.atomic
def let_go(study: Study, nodes: Iterable[Node], *, request: HttpRequest) -> int:
    """Have the rules of the mirror decide again of a study that was held back; how many nodes were told."""
    told = _tell(nodes, HoldDelivery(study_instance_uid=study.study_instance_uid, action="rule"))
    _same_uid(study).update(held_at=None, held_by=None)
    record("study.let-go", request=request, entity=study, patient_key=study.patient_id, detail={"nodes": told})
    return len(told)


def _tell(nodes: Iterable[Node], body: SendStudy | HoldDelivery) -> list[str]:
    told = _clinics(nodes)
    for node in told:
        waiting = Command.objects.filter(
            node=node, seq=None, type__in=_OF_A_STUDY, body__study_instance_uid=body.study_instance_uid
        )
        last = waiting.order_by("-pk").first()
        if last is None or last.body != body.model_dump(mode="json"):
            send_command(node, body)
    return [node.name for node in told]


def _clinics(nodes: Iterable[Node]) -> list[Node]:
    """All but the archive, to which studies go."""
    return [node for node in nodes if node.kind != Node.Kind.ARCHIVE]


def _same_uid(study: Study) -> QuerySet[Study]:
    """Nodes know studies by UID."""
    return Study.objects.filter(study_instance_uid=study.study_instance_uid)

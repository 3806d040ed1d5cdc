"""Having nodes send a study to the archive before others: because somebody opened it, or pressed the button."""

from collections.abc import Iterable

from django.core.cache import cache
from django.db import transaction
from django.http import HttpRequest

from gateway.envelope import SendStudy
from ris_central.audit.actions import record
from ris_central.catalogue.models import Study
from ris_central.federation.actions import send_command
from ris_central.federation.models import Command, Node

CONSULT = 10
HURRY_SECONDS = 60


def hurry(study: Study, nodes: Iterable[Node]) -> None:
    """Somebody looks at a study that is not all at the archive: have the nodes that hold it deliver it first."""
    for node in nodes:
        if node.kind != Node.Kind.ARCHIVE and cache.add(f"catalogue:hurry:{study.pk}:{node.pk}", 1, HURRY_SECONDS):
            send_command(node, SendStudy(study_instance_uid=study.study_instance_uid, priority=CONSULT))


@transaction.atomic
def send_now(study: Study, nodes: Iterable[Node], *, request: HttpRequest) -> int:
    """Ask these nodes for the study, failed and held-back images included; how many were asked.

    A node that is away finds the request when it is back; asking twice leaves one.
    """
    asked = []
    body = SendStudy(study_instance_uid=study.study_instance_uid, priority=CONSULT)
    for node in nodes:
        if node.kind == Node.Kind.ARCHIVE:
            continue
        waits = Command.objects.filter(node=node, type=body.type, seq=None, body=body.model_dump(mode="json"))
        if not waits.exists():
            send_command(node, body)
        asked.append(node.name)
    record("study.asked-for", request=request, entity=study, patient_key=study.patient_id, detail={"nodes": asked})
    return len(asked)

"""DELETE of a study, series or instance, for who has the right and as the rules allow.

A token needs the operation ``delete``, which the centre gives to nobody by itself; a person of this node the permission
``study_index.delete_study`` (``grant NAME delete``). What goes is journalled and audited, the centre hears of it, and
the index keeps that it was here; the same instance can be stored again.
"""

from typing import Final

from django.db import transaction
from django.http import HttpRequest, HttpResponse

from gateway.actions import record_released
from gateway.models import Delivery
from pacs_node.clinic import audit
from pacs_node.dicomweb.permissions import Reach, client_address, guarded
from pacs_node.dicomweb.retrieval import existing
from pacs_node.storage.models import StudyRetention
from pacs_node.study_index.actions import release
from pacs_node.study_index.models import Instance
from standards.errors import ConflictError

_BATCH: Final = 500


@guarded("delete")
def delete(request: HttpRequest, reach: Reach, **at: str) -> HttpResponse:
    """Let go of all instances below the address: 204, 404 when there are none, 409 when a rule keeps them."""
    found = existing(reach, **at)
    _check_rules(at["study"], found)
    _let_go(found)
    audit.record(
        "study.deleted",
        actor=reach.actor,
        entity=at["study"],
        address=client_address(request),
        detail={"instances": len(found), "series": at.get("series", ""), "instance": at.get("instance", "")},
    )
    return HttpResponse(status=204)


def _check_rules(study: str, found: list[Instance]) -> None:
    """Raises: ConflictError "study-pinned", "not-delivered"."""
    if StudyRetention.objects.filter(study_instance_uid=study, pinned=True).exists():
        raise ConflictError("study-pinned", "The study is pinned at this node.")
    keys = [instance.pk for instance in found]
    for start in range(0, len(keys), _BATCH):
        waiting = Delivery.objects.filter(instance_key__in=keys[start : start + _BATCH])
        destination = waiting.exclude(status__in=Delivery.CLOSED).values_list("destination", flat=True).first()
        if destination is not None:
            raise ConflictError("not-delivered", f"Images are still on their way to {destination}.")


def _let_go(found: list[Instance]) -> None:
    release(found)
    by_series: dict[int, list[tuple[str, str]]] = {}
    for instance in found:
        by_series.setdefault(instance.series_id, []).append((instance.sop_instance_uid, instance.dataset_sha256))
    with transaction.atomic():
        for series_key, released in by_series.items():
            record_released(series_key, released)

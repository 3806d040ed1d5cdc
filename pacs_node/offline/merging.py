"""The centre's schedule over what was changed here meanwhile: neither silently wins at the node either."""

from collections.abc import Iterable
from typing import Any

import structlog
from django.db import transaction

from gateway.actions import apply_hold, apply_send_study
from gateway.envelope import HoldDelivery, Schedule, SendStudy
from gateway.models import StudyPriority
from pacs_node.clinic.actions import apply_schedule
from pacs_node.offline.models import LocalStep
from worklist.feed import WorklistItem

log = structlog.get_logger(__name__)

DELIVERY_PRIORITY = {"STAT": 0, "HIGH": 20}
"""Of the images of a study, by the urgency of its order; routine ones have none of their own."""


@transaction.atomic
def take_schedule(command: Schedule) -> None:
    """Take items and removals. A step with a change that the centre has not taken in keeps the changed fields.

    ``command.settled`` says which revision of a step the centre has taken in. Applying twice changes nothing.
    """
    names = [item.scheduled_procedure_step_id for item in command.items] + list(command.removed)
    local = {
        step.scheduled_procedure_step_id: step
        for step in LocalStep.objects.select_for_update().filter(scheduled_procedure_step_id__in=names)
    }
    for name, revision in command.settled.items():
        if name in local:
            _settle(local[name], revision)
    items = [
        _overlaid(item, local[name]) if (name := item.scheduled_procedure_step_id) in local else item
        for item in command.items
    ]
    removed = [name for name in command.removed if name not in local or not local[name].waits]
    gone = [name for name, step in local.items() if step.is_cancelled and step.waits]
    apply_schedule([item for item in items if item.scheduled_procedure_step_id not in gone], [*removed, *gone])
    for name in removed:
        if name in local:
            local[name].is_cancelled = True
            local[name].save()
    deliver_by_urgency(items)


def _settle(step: LocalStep, revision: int) -> None:
    step.settled_revision = max(step.settled_revision, min(revision, step.revision))
    if not step.waits:
        step.changed = []
    step.save()


def _overlaid(item: WorklistItem, step: LocalStep) -> WorklistItem:
    """The centre's item with the fields that wait; kept as what the node has."""
    kept: dict[str, Any] = {name: step.item[name] for name in step.changed if name in step.item}
    both = WorklistItem.model_validate(item.model_dump(mode="json") | kept)
    if kept:
        log.info("local-changes-kept", step=item.scheduled_procedure_step_id, fields=sorted(kept))
    step.item = both.model_dump(mode="json")
    if not step.waits:
        step.is_cancelled = False
        step.accession_number, step.study_instance_uid = both.accession_number, both.study_instance_uid
    step.save()
    return both


def deliver_by_urgency(items: Iterable[WorklistItem]) -> None:
    """Images of urgent orders leave first. What somebody asked for by hand stays as it is."""
    wanted = {
        item.study_instance_uid: DELIVERY_PRIORITY[item.requested_procedure_priority]
        for item in items
        if item.requested_procedure_priority in DELIVERY_PRIORITY
    }
    known = set(
        StudyPriority.objects.filter(study_instance_uid__in=wanted).values_list("study_instance_uid", flat=True)
    )
    for study, priority in wanted.items():
        if study not in known:
            apply_send_study(SendStudy(study_instance_uid=study, priority=priority))


def deliver_at(item: WorklistItem) -> None:
    """The urgency of this order was decided at the node: its images go by it, routine ones by the mirror's rules."""
    study, priority = item.study_instance_uid, DELIVERY_PRIORITY.get(item.requested_procedure_priority)
    if priority is not None:
        apply_send_study(SendStudy(study_instance_uid=study, priority=priority))
    elif StudyPriority.objects.filter(study_instance_uid=study, is_held=False).exists():
        apply_hold(HoldDelivery(study_instance_uid=study, action="rule"))

"""A step as comparable facts, and writing such facts back: where a time is taken, the table of rules decides."""

from datetime import UTC, datetime, timedelta

from django.db import IntegrityError, transaction
from django.db.backends.postgresql.psycopg_any import DateTimeTZRange
from django.http import HttpRequest
from rest_framework.request import Request

from ris_central.accounts.models import User
from ris_central.audit.actions import record
from ris_central.federation.models import Node
from ris_central.orders import node_feed, queries
from ris_central.orders.accessions import locked_counter
from ris_central.orders.differences import note
from ris_central.orders.listeners import announce
from ris_central.orders.models import Device, ReturnDifference, ScheduledProcedureStep, ServiceRequest
from ris_central.orders.transitions import LIVE, check, move
from ris_central.patients import actions as patients
from worklist.feed import WorklistItem

Status = ScheduledProcedureStep.Status
Order = ServiceRequest.Status
PRIORITY = {value: key for key, value in node_feed.PRIORITY.items()}
PATIENT_FIELDS = ("patient_name", "patient_birth_date", "patient_sex")
ORDER_FIELDS = ("description", "reason", "referring_physician_name", "priority")


def facts_of(item: WorklistItem) -> dict[str, str]:
    """What can be changed of a step, in values that compare."""
    return {
        "description": item.requested_procedure_description or item.scheduled_procedure_step_description,
        "reason": item.reason_for_the_requested_procedure,
        "referring_physician_name": item.referring_physician_name,
        "priority": str(PRIORITY.get(item.requested_procedure_priority, ServiceRequest.Priority.ROUTINE)),
        "device": item.scheduled_station_ae_title,
        "slot": slot_text(item.starts_at, item.ends_at),
        "patient_name": item.patient_name,
        "patient_birth_date": item.patient_birth_date,
        "patient_sex": item.patient_sex,
    }


def slot_text(starts_at: datetime, ends_at: datetime) -> str:
    """A time on a device as text that compares: two moments in UTC."""
    return f"{starts_at.astimezone(UTC).isoformat()}/{ends_at.astimezone(UTC).isoformat()}"


def slot_of(text: str) -> DateTimeTZRange:
    """The time that :func:`slot_text` wrote."""
    starts, _, ends = text.partition("/")
    return DateTimeTZRange(datetime.fromisoformat(starts), datetime.fromisoformat(ends), "[)")


def device_of(node: Node, ae_title: str, modality: str, order: ServiceRequest | None = None) -> Device:
    """The device of the node's site; one the centre does not know is put on file, out of use, and shown."""
    found = Device.objects.filter(site=node.site, ae_title=ae_title).order_by("-is_active", "pk").first()
    if found is not None:
        return found
    made = Device.objects.create(
        site=node.site, node=node, name=ae_title, ae_title=ae_title, modality=modality, is_active=False
    )
    note(node, "device-unknown", order=order, node_value=f"{ae_title} {modality}".strip(), device=made.pk)
    return made


def write(
    step: ScheduledProcedureStep,
    values: dict[str, str],
    node: Node,
    *,
    request: HttpRequest | Request | None = None,
    actor: User | str | None = None,
) -> None:
    """Give a locked step and its order these facts. A time that is taken is made free or shifted by rule.

    Raises: PermanentError as ``patients.edit``.
    """
    order = step.service_request
    for field in ORDER_FIELDS:
        if field in values:
            limit = order._meta.get_field(field).max_length  # type: ignore[union-attr]
            setattr(order, field, values[field][:limit] if limit else values[field])
    order.save(update_fields=list(ORDER_FIELDS))
    if any(field in values for field in PATIENT_FIELDS):
        patient = order.patient
        born = values.get("patient_birth_date")
        patients.edit(
            patient,
            name=values.get("patient_name", patient.name),
            birth_date=patient.birth_date if born is None else patients.birth_date_of(born),
            sex=values.get("patient_sex", patient.sex)[:1],
            request=request,
            actor=actor if actor is not None else None if request else node.name,
        )
        order.patient.refresh_from_db()
    if "device" in values:
        step.device = device_of(node, values["device"], step.device.modality, order)
    if "slot" in values:
        step.slot = slot_of(values["slot"])
    place(step, node)


def place(step: ScheduledProcedureStep, node: Node) -> None:
    """Save a step of a node whose time may be taken: bookings that have not begun give way, others stand before it."""
    if step.status not in LIVE:
        step.save()
        return
    if saved(step):
        return
    before = slot_text(step.slot.lower, step.slot.upper)
    others = list(
        ScheduledProcedureStep.objects.select_for_update(of=("self",))
        .select_related("device__site", "device__node", "service_request__patient")
        .filter(device=step.device, slot__overlap=step.slot, status__in=LIVE)
        .exclude(pk=step.pk)
    )
    for other in others:
        if other.status == Status.SCHEDULED and not other.node_revision:
            give_way(other, step, node)
    if saved(step):
        return
    length = step.slot.upper - step.slot.lower
    starts = queries.first_free(step.device, step.slot.lower, int(length / timedelta(minutes=1)) or 1)
    step.slot = DateTimeTZRange(starts, starts + length, "[)")
    step.save()
    note(
        node,
        "slot-shifted",
        order=step.service_request,
        node_value=before,
        centre_value=slot_text(step.slot.lower, step.slot.upper),
    )


def give_way(other: ScheduledProcedureStep, step: ScheduledProcedureStep, node: Node) -> None:
    """A booking of the centre loses its time to an examination at the node, and somebody must find it another."""
    time = slot_text(other.slot.lower, other.slot.upper)
    move(other, Status.REBOOK)
    node_feed.send_step(other)
    announce(other.service_request)
    note(
        node,
        "slot-taken",
        order=other.service_request,
        node_value=step.service_request.accession_number,
        centre_value=time,
        displaced=other.pk,
        by=step.scheduled_procedure_step_id,
    )


def cancel_step(step: ScheduledProcedureStep) -> None:
    """Cancel a locked step, and its order when nothing else of it is left."""
    move(step, Status.CANCELLED)
    order = step.service_request
    if order.status == Order.ACTIVE and not order.steps.exclude(status=Status.CANCELLED).exists():
        order.status = Order.REVOKED
        order.save(update_fields=["status"])


def reopen_step(step: ScheduledProcedureStep, to: str, node: Node) -> None:
    """Bring a cancelled step back, and its order."""
    check(step, to)
    order = step.service_request
    step.status = to
    place(step, node)
    if order.status == Order.REVOKED:
        order.status = Order.ACTIVE
        order.save(update_fields=["status"])


@transaction.atomic
def reopen_examined(order: ServiceRequest, modality: str) -> None:
    """Images of an order without a live step: it took place, unless a person decided that it does not count."""
    steps = list(
        order.steps.select_for_update(of=("self",))
        .select_related("device__site", "device__node", "service_request__patient", "service_request__site")
        .order_by("-pk")
    )
    refused = ReturnDifference.objects.filter(
        service_request=order, rule="cancelled-but-examined", kept=ReturnDifference.Side.CENTRE
    )
    if not steps or refused.exists():
        return
    step = next((one for one in steps if one.device.modality == modality), steps[0])
    was_cancelled, node = step.status == Status.CANCELLED, node_feed.node_of(step.device)
    if node is None:
        return
    locked_counter(order.site)
    reopen_step(step, Status.IN_PROGRESS, node)
    if was_cancelled:
        note(node, "cancelled-but-examined", order=order, step=step.pk)
    else:
        rebooked = ReturnDifference.objects.filter(service_request=order, rule="slot-taken")
        rebooked.update(state=ReturnDifference.State.BY_RULE)
    node_feed.send_step(step)
    record("order.begun", actor="centre", entity=order, patient_key=order.patient_id, detail={"reopened": True})
    announce(order)


def saved(step: ScheduledProcedureStep) -> bool:
    """Save a step; False when its time is taken, and then nothing is changed."""
    try:
        with transaction.atomic():
            step.save()
    except IntegrityError as error:
        if "no_double_booking" not in str(error):
            raise
        return False
    return True

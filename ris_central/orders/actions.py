"""Booking: every write of orders, each one transaction with the audit row and the command to the device's node."""

from datetime import datetime, timedelta
from typing import Any

from django.db import IntegrityError, transaction
from django.db.backends.postgresql.psycopg_any import DateTimeTZRange
from django.http import HttpRequest
from rest_framework.request import Request

from ris_central.accounts.models import User
from ris_central.audit.actions import record
from ris_central.orders import node_feed
from ris_central.orders.accessions import locked_counter
from ris_central.orders.listeners import announce
from ris_central.orders.models import Device, ScheduledProcedureStep, ServiceRequest
from ris_central.orders.placing import reopen_examined
from ris_central.orders.transitions import LIVE, move
from ris_central.organizations.models import Site
from ris_central.patients.actions import link_care
from ris_central.patients.models import Patient
from standards.errors import ConflictError, PermanentError
from standards.uids import new_uid

Status = ScheduledProcedureStep.Status
Actor = User | str | None
AnyRequest = HttpRequest | Request | None


def next_accession_number(site: Site) -> str:
    """The site's next number, at most 16 characters; call it inside the transaction that uses it."""
    counter = locked_counter(site)
    number = counter.next_number
    counter.next_number += 1
    counter.save(update_fields=["next_number"])
    return f"{site.accession_prefix}{number:08d}"


def _slot(starts_at: datetime, minutes: int) -> DateTimeTZRange:
    if not 1 <= minutes <= 24 * 60:
        raise PermanentError("slot-invalid", "A slot lasts from one minute to one day.")
    return DateTimeTZRange(starts_at, starts_at + timedelta(minutes=minutes), "[)")


def _saved(step: ScheduledProcedureStep) -> None:
    try:
        with transaction.atomic():
            step.save()
    except IntegrityError as error:
        if "no_double_booking" not in str(error):
            raise
        raise ConflictError("slot-taken", f"{step.device.name} is taken at that time: choose another.") from error


@transaction.atomic
def book(
    *,
    patient: Patient,
    device: Device,
    starts_at: datetime,
    description: str,
    minutes: int | None = None,
    priority: str = ServiceRequest.Priority.ROUTINE,
    reason: str = "",
    referring_physician_name: str = "",
    placer_order_number: str = "",
    placer_issuer: str = "",
    request: AnyRequest = None,
    actor: Actor = None,
) -> ServiceRequest:
    """Order an examination and take a slot on a device; the device's node gets the worklist item.

    Raises: PermanentError("slot-taken", "slot-invalid", "device-inactive").
    """
    if not device.is_active:
        raise ConflictError("device-inactive", f"{device.name} is out of use.")
    site = device.site
    # The counter's lock is taken first: bookings of a site go one after the other, so two on one slot cannot deadlock.
    accession = next_accession_number(site)
    user = actor if isinstance(actor, User) else request.user if request and actor is None else None
    order = ServiceRequest.objects.create(
        patient=patient,
        site=site,
        accession_number=accession,
        placer_order_number=placer_order_number,
        placer_issuer=placer_issuer,
        study_instance_uid=new_uid(),
        description=description[:64],
        reason=reason,
        referring_physician_name=referring_physician_name[:128],
        priority=priority,
        created_by=user if isinstance(user, User) else None,
    )
    step = ScheduledProcedureStep(
        service_request=order,
        device=device,
        scheduled_procedure_step_id=f"{accession}-1",
        slot=_slot(starts_at, minutes or device.slot_minutes),
    )
    _saved(step)
    link_care(patient, site, reason="booked")
    node_feed.send_step(step)
    _recorded("order.booked", order, request, actor, {"device": device.pk, "starts_at": starts_at.isoformat()})
    announce(order)
    return order


@transaction.atomic
def reschedule(
    step: ScheduledProcedureStep,
    *,
    device: Device,
    starts_at: datetime,
    minutes: int | None = None,
    request: AnyRequest = None,
    actor: Actor = None,
) -> ScheduledProcedureStep:
    """Move a step that has not begun to another time or device of its site.

    Raises: PermanentError("slot-taken", "state-conflict", "device-inactive", "slot-invalid").
    """
    step = _locked(step)
    if step.status not in (Status.SCHEDULED, Status.REBOOK):
        raise ConflictError("state-conflict", f"A step that is {step.status} cannot be moved.")
    if not device.is_active or device.site_id != step.service_request.site_id:
        raise ConflictError("device-inactive", f"{device.name} cannot take this order.")
    before, old_node = step.slot.lower, node_feed.node_of(step.device)
    length = minutes or int((step.slot.upper - step.slot.lower).total_seconds() // 60)
    step.device, step.slot, step.status = device, _slot(starts_at, length), Status.SCHEDULED
    _saved(step)
    if old_node is not None and old_node != node_feed.node_of(device):
        node_feed.remove_step(old_node, step)
    node_feed.send_step(step)
    detail = {"from": before.isoformat(), "to": starts_at.isoformat(), "device": device.pk}
    _recorded("order.rescheduled", step.service_request, request, actor, detail)
    announce(step.service_request)
    return step


@transaction.atomic
def cancel(
    order: ServiceRequest, *, reason: str = "", request: AnyRequest = None, actor: Actor = None
) -> ServiceRequest:
    """Cancel an order whose examination has not begun; its slots are free again.

    Raises: ConflictError("state-conflict").
    """
    order = ServiceRequest.objects.select_for_update().get(pk=order.pk)
    if order.status != ServiceRequest.Status.ACTIVE:
        raise ConflictError("state-conflict", f"The order is {order.status} already.")
    steps = list(order.steps.select_for_update(of=("self",)).select_related("device__site", "service_request__patient"))
    if any(step.status in (Status.IN_PROGRESS, Status.COMPLETED) for step in steps):
        raise ConflictError("state-conflict", "The examination has begun: it can no longer be cancelled.")
    for step in steps:
        if step.status in (Status.SCHEDULED, Status.REBOOK):
            move(step, Status.CANCELLED)
            node_feed.send_step(step)
    order.status = ServiceRequest.Status.REVOKED
    order.save(update_fields=["status"])
    _recorded("order.cancelled", order, request, actor, {"reason": reason[:500]})
    announce(order)
    return order


@transaction.atomic
def step_in_progress(order: ServiceRequest, modality: str = "") -> None:
    """Images of this order arrived: its scheduled step on such a modality has begun. Again: nothing changes.

    Images of an order that was cancelled, or whose time was taken, are a fact as well: the order is open again.
    """
    steps = list(
        order.steps.select_for_update(of=("self",))
        .select_related("device__site", "service_request__patient")
        .filter(status=Status.SCHEDULED)
        .order_by("slot")
    )
    if not steps and not order.steps.filter(status__in=LIVE).exists():
        reopen_examined(order, modality)
        return
    fitting = [step for step in steps if step.device.modality == modality]
    for step in (fitting or (steps if len(steps) == 1 else []))[:1]:
        move(step, Status.IN_PROGRESS)
        node_feed.send_step(step)
        _recorded("order.begun", order, None, "centre", {"step": step.scheduled_procedure_step_id})
        announce(order)


@transaction.atomic
def steps_completed(order: ServiceRequest) -> None:
    """The study of this order is complete: steps that had begun are done, and the order with the last of them."""
    order = ServiceRequest.objects.select_for_update().get(pk=order.pk)
    steps = list(order.steps.select_for_update(of=("self",)).select_related("device__site", "service_request__patient"))
    done = [step for step in steps if step.status == Status.IN_PROGRESS]
    for step in done:
        move(step, Status.COMPLETED)
        node_feed.send_step(step)
    open_steps = [step for step in steps if step.status in (Status.SCHEDULED, Status.IN_PROGRESS, Status.REBOOK)]
    if done and not open_steps and order.status == ServiceRequest.Status.ACTIVE:
        order.status = ServiceRequest.Status.COMPLETED
        order.save(update_fields=["status"])
    if done:
        _recorded("order.performed", order, None, "centre", {"steps": len(done)})
        announce(order)


@transaction.atomic
def save_device(device: Device, request: AnyRequest = None, actor: Actor = None) -> Device:
    """Connect a device or change it; its node gets the new registry and schedule.

    Raises: ConflictError("ae-title-taken").
    """
    before = Device.objects.filter(pk=device.pk).select_related("node", "site").first()
    if Device.objects.filter(site=device.site, ae_title=device.ae_title, is_active=True).exclude(pk=device.pk).exists():
        raise ConflictError("ae-title-taken", device.ae_title)
    device.save()
    nodes = {
        node for node in (node_feed.node_of(device), node_feed.node_of(before) if before else None) if node is not None
    }
    for node in nodes:
        node_feed.send_devices(node)
        node_feed.send_schedule(node)
    detail = {"ae_title": device.ae_title, "modality": device.modality, "active": device.is_active}
    who = actor if actor is not None else None if request else "centre"
    record("device.changed" if before else "device.connected", request=request, actor=who, entity=device, detail=detail)
    return device


def _locked(step: ScheduledProcedureStep) -> ScheduledProcedureStep:
    return (
        ScheduledProcedureStep.objects.select_for_update(of=("self",))
        .select_related("device__site", "device__node", "service_request__patient", "service_request__site")
        .get(pk=step.pk)
    )


def _recorded(action: str, order: ServiceRequest, request: AnyRequest, actor: Actor, detail: dict[str, Any]) -> None:
    who = actor if actor is not None else None if request else "centre"
    record(action, request=request, actor=who, entity=order, patient_key=order.patient_id, detail=detail)

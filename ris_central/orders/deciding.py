"""Deciding a difference otherwise: the other side's word is put in place, and both stay on file."""

from collections.abc import Callable
from typing import Final

from django.db import transaction
from django.http import HttpRequest
from django.utils import timezone

from ris_central.accounts.models import User
from ris_central.audit.actions import record
from ris_central.orders import accessions, node_feed
from ris_central.orders.differences import propose_alike
from ris_central.orders.listeners import announce
from ris_central.orders.models import ReturnDifference, ScheduledProcedureStep
from ris_central.orders.placing import cancel_step, place, reopen_step, saved, slot_of, write
from ris_central.orders.transitions import check, move
from ris_central.patients import merging
from ris_central.patients.actions import birth_date_of, edit, link_care
from ris_central.patients.models import CareLink, Patient, PatientMerge
from standards.errors import ConflictError, PermanentError

Side = ReturnDifference.Side
State = ReturnDifference.State
Status = ScheduledProcedureStep.Status
Applier = Callable[[ReturnDifference, str, HttpRequest], None]


def choices_of(difference: ReturnDifference) -> list[str]:
    """The sides that a person may choose now, other than what holds; none where there is nothing to choose."""
    if difference.rule not in APPLIERS:
        return []
    return [side for side in (Side.NODE, Side.CENTRE) if side != difference.kept]


@transaction.atomic
def decide(difference: ReturnDifference, side: str, user: User, request: HttpRequest) -> ReturnDifference:
    """Have ``side`` hold. The side that holds already: the person has seen it and agrees.

    Raises: ConflictError where the state of things no longer allows it, PermanentError("choice-unknown").
    """
    accessions.locked_counter(difference.site)
    difference = (
        ReturnDifference.objects.select_for_update(of=("self",))
        .select_related("node__site", "site", "service_request", "patient")
        .get(pk=difference.pk)
    )
    if side != difference.kept:
        if side not in choices_of(difference):
            raise PermanentError("choice-unknown", side)
        APPLIERS[difference.rule](difference, side, request)
        difference.kept = side
    elif difference.rule == "patient-unknown" and difference.patient and difference.state != State.BY_PERSON:
        propose_alike(difference.node, difference.patient)  # now that they have a name
    difference.state, difference.decided_by, difference.decided_at = State.BY_PERSON, user, timezone.now()
    difference.save()
    detail = {"rule": difference.rule, "field": difference.field, "kept": difference.kept}
    record("return.decided", request=request, entity=difference, patient_key=difference.patient_id, detail=detail)
    return difference


def _step(difference: ReturnDifference, key: int | None = None) -> ScheduledProcedureStep:
    steps = ScheduledProcedureStep.objects.select_for_update(of=("self",)).select_related(
        "device__site", "device__node", "service_request__patient", "service_request__site"
    )
    if key is not None:
        return steps.get(pk=key)
    found = steps.filter(service_request=difference.service_request).order_by("pk").first()
    if found is None:
        raise ConflictError("state-conflict", "The order has no step any more.")
    return found


def _told(step: ScheduledProcedureStep) -> None:
    node_feed.send_step(step)
    announce(step.service_request)


def _field(difference: ReturnDifference, side: str, request: HttpRequest) -> None:
    step = _step(difference)
    value = difference.node_value if side == Side.NODE else difference.centre_value
    write(step, {difference.field: value}, difference.node, request=request)
    _told(step)


def _corrected(difference: ReturnDifference, side: str, request: HttpRequest) -> None:
    step = _step(difference)
    value = difference.node_value if side == Side.NODE else difference.centre_value
    write(step, {difference.detail["corrected"]: value}, difference.node, request=request)
    _told(step)


def _identity(difference: ReturnDifference, side: str, request: HttpRequest) -> None:
    value = difference.node_value if side == Side.NODE else difference.centre_value
    name, born, sex = value.split("|")
    if difference.patient is None:
        raise ConflictError("state-conflict", "The patient is gone.")
    edit(difference.patient, name=name, birth_date=birth_date_of(born), sex=sex, request=request)


def _elsewhere(difference: ReturnDifference, side: str, request: HttpRequest) -> None:
    """Node: the patient is treated at the site, which sees their earlier studies. Centre: it does not."""
    if difference.patient is None:
        raise ConflictError("state-conflict", "The patient is gone.")
    if side == Side.NODE:
        link_care(difference.patient, difference.site, reason="booked")
    else:
        CareLink.objects.filter(patient=difference.patient, site=difference.site, user=None, reason="booked").delete()


def _cancelled(difference: ReturnDifference, side: str, request: HttpRequest) -> None:
    """Node: the order is open. Centre: it is cancelled."""
    step = _step(difference, difference.detail["step"])
    if side == Side.CENTRE:
        if step.status == Status.COMPLETED:
            raise ConflictError("state-conflict", "The examination is done.")
        cancel_step(step)
    else:
        begun = difference.rule == "cancelled-but-examined"
        reopen_step(step, Status.IN_PROGRESS if begun else Status.SCHEDULED, difference.node)
    _told(step)


def _kept_booking(difference: ReturnDifference, side: str, request: HttpRequest) -> None:
    """Centre: the booking stays. Node: it is cancelled, as the node wanted."""
    step = _step(difference, difference.detail["step"])
    if side == Side.NODE:
        cancel_step(step)
    else:
        reopen_step(step, Status.SCHEDULED, difference.node)
    _told(step)


def _slot(difference: ReturnDifference, side: str, request: HttpRequest) -> None:
    """Centre: the booking has its time back, and the node's examination stands after it. Node: the other way round."""
    displaced = _step(difference, difference.detail["displaced"])
    theirs = ScheduledProcedureStep.objects.select_for_update(of=("self",)).select_related(
        "device__site", "device__node", "service_request__patient", "service_request__site"
    )
    ours = theirs.filter(scheduled_procedure_step_id=difference.detail["by"]).first()
    if side == Side.NODE:
        move(displaced, Status.REBOOK)
        _told(displaced)
        return
    check(displaced, Status.SCHEDULED)
    wanted = slot_of(difference.centre_value)
    if ours is not None and ours.device_id == displaced.device_id and ours.status != Status.CANCELLED:
        # Its own time is given up first, then it takes the first free one after the booking.
        status, length = ours.status, ours.slot.upper - ours.slot.lower
        ScheduledProcedureStep.objects.filter(pk=ours.pk).update(status=Status.CANCELLED)
        displaced.slot, displaced.status = wanted, Status.SCHEDULED
        _back(displaced)
        ours.slot = type(wanted)(wanted.upper, wanted.upper + length, "[)")
        ours.status = status
        place(ours, difference.node)
        _told(ours)
    else:
        displaced.slot, displaced.status = wanted, Status.SCHEDULED
        _back(displaced)
    _told(displaced)


def _back(displaced: ScheduledProcedureStep) -> None:
    if not saved(displaced):
        raise ConflictError("slot-taken", "Its time was given to another patient meanwhile.")


def _alike(difference: ReturnDifference, side: str, request: HttpRequest) -> None:
    """Centre: they are one person, the one the centre knew. Node: two persons."""
    if side == Side.CENTRE:
        if difference.patient is None:
            raise ConflictError("state-conflict", "The patient is gone.")
        done = merging.merge(difference.patient, Patient.objects.get(pk=difference.detail["other"]), request=request)
        difference.detail["merge"] = done.pk
    else:
        merging.unmerge(PatientMerge.objects.get(pk=difference.detail["merge"]), request=request)


APPLIERS: Final[dict[str, Applier]] = {
    "field": _field,
    "patient-corrected": _corrected,
    "patient-differs": _identity,
    "patient-alike": _alike,
    "patient-elsewhere": _elsewhere,
    "cancelled-but-examined": _cancelled,
    "cancelled-but-changed": _cancelled,
    "changed-but-cancelled": _kept_booking,
    "slot-taken": _slot,
}

"""Book a place for a known or a new patient; move or cancel what is booked."""

from typing import Any
from zoneinfo import ZoneInfo

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods

from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, can, requires
from ris_central.audit.actions import record_view
from ris_central.orders import actions, queries
from ris_central.orders.forms import BookingForm, SlotForm
from ris_central.orders.models import Device, ScheduledProcedureStep
from ris_central.orders.transitions import STEP
from ris_central.patients import actions as patients
from ris_central.patients import queries as patient_queries
from ris_central.patients.forms import PatientForm
from ris_central.patients.models import Patient
from standards.errors import PermanentError

Status = ScheduledProcedureStep.Status


def refusal(error: PermanentError) -> str:
    """The sentence for a person."""
    return {
        "slot-taken": _("This time is taken already: choose another time or device."),
        "state-conflict": _("The examination has moved on meanwhile: look at its state now."),
        "device-inactive": _("This device is out of use: choose another."),
        "slot-invalid": _("The length must be from five minutes to ten hours."),
    }.get(error.code, error.detail)


def known_patient(request: HttpRequest) -> Patient | None:
    """The patient named in the address, if this person may see them or just found them in the region."""
    key = request.POST.get("patient") or request.GET.get("patient") or ""
    if not key.isdecimal():
        return None
    found = patient_queries.visible_to(request.user).filter(pk=key).first()
    if found is None and patients.is_found(request, int(key)):
        found = Patient.objects.filter(pk=key).first()
    return found


@requires(Capability.BOOK)
@require_http_methods(["GET", "POST"])
def book(request: HttpRequest) -> HttpResponse:
    """The booking form of one place."""
    devices = queries.devices_visible_to(request.user).filter(is_active=True).exclude(modality="")
    device = get_object_or_404(devices, pk=_number(request.POST.get("device") or request.GET.get("device")))
    initial = {
        "device": device,
        "day": request.GET.get("day"),
        "time": request.GET.get("time"),
        "minutes": device.slot_minutes,
        "priority": "routine",
    }
    devices_here = devices.filter(site=device.site)
    form = BookingForm(request.POST or None, initial=initial, devices=devices_here)
    patient = known_patient(request)
    wants_new = request.POST.get("patient") == "new"
    person = PatientForm(request.POST if wants_new else None, prefix="new")
    refused = ""
    if request.method == "POST":
        if form.is_valid() and (person.is_valid() if wants_new else patient is not None):
            try:
                order = _booked(request, form, device, patient, person)
            except PermanentError as error:
                refused = refusal(error)
            else:
                said = _("Booked. Accession number %(number)s.") % {"number": order.accession_number}
                messages.success(request, said)
                return redirect(_day_of(order.steps.select_related("device__site").get()))
        elif not wants_new and patient is None:
            refused = _("Choose the patient first, or register a new one.")
    context = {
        "form": form,
        "person": person,
        "patient": patient,
        "wants_new": wants_new,
        "device": device,
        "refused": refused,
        "names": queries.visible_to(request.user)
        .filter(site=device.site)
        .order_by("description")
        .values_list("description", flat=True)
        .distinct()[:50],
    }
    status = 409 if refused else 422 if form.errors or (wants_new and person.errors) else 200
    return render(request, "orders/book.html", context, status=status)


@transaction.atomic
def _booked(
    request: HttpRequest, form: BookingForm, device: Device, patient: Patient | None, person: PatientForm
) -> Any:
    """A refused booking takes the new patient back with it."""
    if patient is None:
        patient = patients.create(site=device.site, request=request, **person.cleaned_data)
    values = form.cleaned_data
    return actions.book(
        patient=patient,
        device=values["device"],
        starts_at=form.starts_at(),
        minutes=values["minutes"],
        description=values["description"],
        priority=values["priority"],
        reason=values["reason"],
        referring_physician_name=patients.person_name_of(values["referring_physician_name"]),
        request=request,
    )


@requires(Capability.BOOK)
@require_GET
def patient_choice(request: HttpRequest) -> HttpResponse:
    """Patients to choose from, as the registrar types."""
    assert isinstance(request.user, User)
    text = request.GET.get("q", "").strip()
    mine = patient_queries.visible_to(request.user)
    found = list(patient_queries.search(mine, text).prefetch_related("identifiers")[:8]) if text else []
    elsewhere = patients.search_region(request, text)
    context = {"found": found, "elsewhere": elsewhere, "text": text}
    return render(request, "orders/_patient_choice.html", context)


@requires(Capability.SEE_SCHEDULE)
@require_http_methods(["GET", "POST"])
def step(request: HttpRequest, pk: int) -> HttpResponse:
    """One booked place: look, move it, cancel it."""
    found = get_object_or_404(queries.steps_visible_to(request.user), pk=pk)
    order, zone = found.service_request, ZoneInfo(found.device.site.time_zone)
    may_book = can(request.user, Capability.BOOK)
    starts = found.slot.lower.astimezone(zone)
    initial = {
        "device": found.device,
        "day": starts.date(),
        "time": starts.time(),
        "minutes": int((found.slot.upper - found.slot.lower).total_seconds() // 60),
    }
    devices = queries.devices_visible_to(request.user).filter(site=order.site, is_active=True).exclude(modality="")
    moving = request.POST.get("do") == "move"
    form = SlotForm(request.POST if moving else None, initial=initial, devices=devices)
    refused = ""
    if request.method == "POST":
        if not may_book:
            raise PermissionDenied
        try:
            if moving and form.is_valid():
                moved = actions.reschedule(
                    found,
                    device=form.cleaned_data["device"],
                    starts_at=form.starts_at(),
                    minutes=form.cleaned_data["minutes"],
                    request=request,
                )
                messages.success(request, _("Moved."))
                return redirect(_day_of(moved))
            if request.POST.get("do") == "cancel":
                actions.cancel(order, reason=request.POST.get("reason", ""), request=request)
                messages.success(request, _("Cancelled. The time is free again."))
                return redirect(_day_of(found))
        except PermanentError as error:
            refused = refusal(error)
    else:
        record_view("order.viewed", request=request, entity=order, patient_key=order.patient_id)
    context = {
        "step": found,
        "order": order,
        "zone": zone,
        "form": form,
        "refused": refused,
        "can_move": may_book and found.status in (Status.SCHEDULED, Status.REBOOK),
        "can_cancel": may_book and found.status == Status.SCHEDULED and Status.CANCELLED in STEP[found.status],
    }
    return render(request, "orders/step.html", context, status=409 if refused else 422 if form.errors else 200)


def _day_of(step: ScheduledProcedureStep) -> str:
    zone = ZoneInfo(step.device.site.time_zone)
    return f"{reverse('schedule')}?site={step.device.site.code}&day={step.slot.lower.astimezone(zone).date()}"


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0

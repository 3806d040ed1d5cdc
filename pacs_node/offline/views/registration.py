"""The registrar's pages at the node: the day, a new examination, one examination."""

from datetime import date, datetime, time
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from gateway.models import JoinState
from pacs_node.clinic.models import ApplicationEntity, WorklistEntry
from pacs_node.clinic.permissions import is_engineer
from pacs_node.clinic.views import client_address, person
from pacs_node.offline import accessions, actions, queries
from pacs_node.offline.models import LocalStep
from pacs_node.offline.permissions import may_register, may_write_drafts, requires
from pacs_node.offline.words import MODALITIES, PRIORITIES, SEXES
from standards.errors import ConflictError, PermanentError
from standards.person_names import display
from worklist.feed import WorklistItem


def about(request: HttpRequest) -> dict[str, Any]:
    """What all these pages know."""
    joined = JoinState.objects.only("centre_seen_at").first()
    return {
        "engineer": is_engineer(person(request)),
        "registers": may_register(person(request)),
        "writes": may_write_drafts(person(request)),
        "numbers": accessions.numbers(),
        "joined": joined,
    }


@login_required
@require_GET
def day(request: HttpRequest) -> HttpResponse:
    """Who is to be examined today and later; it renews itself, also while the centre is away."""
    context = about(request) | {"lines": queries.day_lines(), "priorities": PRIORITIES}
    template = "offline/day_table.html" if "HX-Request" in request.headers else "offline/day.html"
    return render(request, template, context)


@requires(may_register)
@require_GET
def patients(request: HttpRequest) -> HttpResponse:
    """People whom this node knows, as the registrar types."""
    text = request.GET.get("q", "").strip()[:200]
    context = {"found": queries.find_patients(text), "text": text}
    return render(request, "offline/patients.html", context)


@requires(may_register)
@require_http_methods(["GET", "POST"])
def new(request: HttpRequest) -> HttpResponse:
    """Register an examination."""
    error, status, form = "", 200, _empty_form(request)
    if request.method == "POST":
        form = request.POST.dict()
        try:
            key = _key(form.get("key", ""))
            made = actions.register(
                _person(form),
                _examination(form),
                key=key,
                actor=person(request).username,
                unknown_name=_("Unknown"),
                address=client_address(request),
            )
        except PermanentError as refusal:
            twice = LocalStep.objects.filter(request_key=form.get("key", "")).first()
            if refusal.code == "sent-twice" and twice is not None:
                return _registered(request, twice)
            error, status = sentence(refusal), 422
        else:
            return _registered(request, made)
    context = about(request) | _choices() | {"form": form, "error": error, "entry": None}
    return render(request, "offline/form.html", context, status=status)


def _registered(request: HttpRequest, step: LocalStep) -> HttpResponse:
    said = _("Registered under %(number)s. It is on the worklist of %(device)s now.") % {
        "number": step.accession_number,
        "device": step.item["scheduled_station_ae_title"],
    }
    messages.success(request, said)
    return redirect("registration")


@requires(may_register)
@require_http_methods(["GET", "POST"])
def step(request: HttpRequest, key: int) -> HttpResponse:
    """Look at one examination and change it, whoever booked it."""
    entry = get_object_or_404(WorklistEntry, pk=key)
    item = WorklistItem.model_validate(entry.item)
    local = LocalStep.objects.filter(scheduled_procedure_step_id=entry.scheduled_procedure_step_id).first()
    error, status, form = "", 200, _form_of(item, local)
    if request.method == "POST":
        form = request.POST.dict()
        try:
            actions.change(
                entry,
                _person(form),
                _examination(form),
                actor=person(request).username,
                seen=form.get("seen", ""),
                address=client_address(request),
            )
        except PermanentError as refusal:
            error, status = sentence(refusal), 409 if isinstance(refusal, ConflictError) else 422
        else:
            messages.success(request, _("Changed. The device has it on its worklist now."))
            return redirect("registration")
    context = about(request) | _choices() | {"form": form, "error": error, "entry": entry, "local": local}
    context["images"] = queries.images_of([item.study_instance_uid]).get(item.study_instance_uid, 0)
    return render(request, "offline/form.html", context, status=status)


@requires(may_register)
@require_POST
def cancel(request: HttpRequest, key: int) -> HttpResponse:
    """Take an examination off the worklist."""
    entry = get_object_or_404(WorklistEntry, pk=key)
    try:
        actions.cancel(
            entry,
            actor=person(request).username,
            reason=request.POST.get("reason", ""),
            seen=request.POST.get("seen", ""),
            address=client_address(request),
        )
    except PermanentError as refusal:
        messages.error(request, sentence(refusal))
        return redirect("registration_step", key)
    messages.success(request, _("Cancelled. It is off the worklist."))
    return redirect("registration")


def sentence(refusal: PermanentError) -> str:
    """What a person reads when an action is refused."""
    sentences = {
        "name-missing": _("Write the name, or mark the patient as unknown."),
        "device-unknown": _("Choose the device."),
        "modality-missing": _("Say what kind of device it is."),
        "description-missing": _("Say what is to be examined."),
        "slot-invalid": _("An examination lasts from one minute to ten hours."),
        "birth-date-invalid": _("The birth date is no date."),
        "time-invalid": _("Day and time must be a date and a time."),
        "patient-unknown": _("This node does not know that patient number: register the patient anew."),
        "changed-meanwhile": _("Somebody else or the centre changed it meanwhile. Load the page again and look."),
        "step-gone": _("It is not on the worklist any more."),
        "has-images": _("The examination has images: it can no longer be cancelled."),
    }
    return sentences.get(refusal.code, refusal.detail or refusal.code)


def _choices() -> dict[str, Any]:
    return {
        "devices": queries.devices(),
        "priorities": PRIORITIES.items(),
        "sexes": SEXES.items(),
        "modalities": MODALITIES,
        "names": sorted({line.entry.item.get("requested_procedure_description", "") for line in queries.day_lines()}),
    }


def _empty_form(request: HttpRequest) -> dict[str, Any]:
    devices = list(queries.devices().exclude(modality="")) or list(queries.devices())
    wanted = request.GET.get("device", "")
    device = next((one for one in devices if one.ae_title == wanted), devices[0] if devices else None)
    starts = timezone.localtime(queries.next_free(device.ae_title, 20) if device else timezone.now())
    return {
        "key": str(uuid4()),
        "ae_title": device.ae_title if device else "",
        "day": starts.date().isoformat(),
        "time": f"{starts:%H:%M}",
        "minutes": 20,
        "priority": "ROUTINE",
        "unknown": "1" if "unknown" in request.GET else "",
    }


def _form_of(item: WorklistItem, local: LocalStep | None) -> dict[str, Any]:
    starts = item.starts_at.astimezone(ZoneInfo(item.time_zone))
    born = item.patient_birth_date
    return {
        "seen": actions.mark_of(item),
        "name": display(item.patient_name),
        "birth_date": f"{born[:4]}-{born[4:6]}-{born[6:8]}" if len(born) == 8 else "",
        "sex": item.patient_sex,
        "patient_id": item.patient_id,
        "issuer": item.issuer_of_patient_id,
        "unknown": "1" if local is not None and local.unknown_patient else "",
        "ae_title": item.scheduled_station_ae_title,
        "modality": item.modality,
        "description": item.requested_procedure_description or item.scheduled_procedure_step_description,
        "day": starts.date().isoformat(),
        "time": f"{starts:%H:%M}",
        "minutes": int((item.ends_at - item.starts_at).total_seconds() // 60),
        "priority": item.requested_procedure_priority,
        "reason": item.reason_for_the_requested_procedure,
        "referring_physician_name": display(item.referring_physician_name),
    }


def _key(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError as error:
        raise PermanentError("form-key-missing", _("Load the page again.")) from error


def _pn(text: str) -> str:
    """The PN of a name as it is typed: family, given and middle names parted by spaces."""
    parts = " ".join(text.replace("^", " ").split()).split(" ", 2)
    return "^".join(parts)[:324]


def _person(form: dict[str, Any]) -> actions.Person:
    born = str(form.get("birth_date", "")).strip()
    try:
        birth_date = date.fromisoformat(born).strftime("%Y%m%d") if born else ""
    except ValueError as error:
        raise PermanentError("birth-date-invalid", born) from error
    return actions.Person(
        name=_pn(str(form.get("name", ""))),
        birth_date=birth_date,
        sex=str(form.get("sex", ""))[:1],
        patient_id=str(form.get("patient_id", "")).strip()[:64],
        issuer=str(form.get("issuer", "")).strip()[:64],
        unknown=bool(form.get("unknown")),
    )


def _examination(form: dict[str, Any]) -> actions.Examination:
    device = ApplicationEntity.objects.filter(ae_title=str(form.get("ae_title", ""))).first()
    zone = ZoneInfo(device.time_zone) if device else timezone.get_current_timezone()
    try:
        starts = datetime.combine(
            date.fromisoformat(str(form.get("day", ""))), time.fromisoformat(str(form.get("time", ""))), zone
        )
        minutes = int(str(form.get("minutes", "")))
    except ValueError as error:
        raise PermanentError("time-invalid", str(error)) from error
    return actions.Examination(
        ae_title=str(form.get("ae_title", ""))[:16],
        description=str(form.get("description", "")),
        starts_at=starts,
        minutes=minutes,
        priority=str(form.get("priority", "ROUTINE")),
        modality=str(form.get("modality", ""))[:16],
        reason=str(form.get("reason", ""))[:2000],
        referring_physician_name=_pn(str(form.get("referring_physician_name", "")))[:128],
    )

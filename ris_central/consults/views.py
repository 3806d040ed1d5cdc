"""The consult desk, the page of one consult, and the part of the study page that asks and shows answers."""

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from gateway.envelope import problem
from ris_central.accounts.api import status_of
from ris_central.accounts.permissions import Capability, can, requires
from ris_central.audit.actions import record, record_view
from ris_central.catalogue.models import Study
from ris_central.catalogue.queries import visible_to as visible_studies
from ris_central.catalogue.views import describe, the_user, visible_study, zone_of
from ris_central.consults import actions, queries
from ris_central.consults.documents import opinion_pdf
from ris_central.consults.models import Consult
from ris_central.consults.permissions import may_answer, may_ask
from ris_central.consults.transitions import OPEN
from standards.errors import PermanentError

SLOT_MINUTES = (15, 30, 45, 60)


def sentence(error: PermanentError) -> str:
    """What a person reads when an action is refused."""
    sentences = {
        "slot-taken": _("That is taken: somebody was quicker, or you have another consult at that time."),
        "state-conflict": _("Somebody else has acted on this consult meanwhile: look at it again."),
        "already-asked": _("That centre was already asked about this study."),
        "question-missing": _("A consult needs a question."),
        "reason-missing": _("Say why, so that the other side knows."),
        "opinion-missing": _("A consult needs an opinion before it is signed."),
        "not-yours": _("Another expert has taken this consult."),
    }
    return sentences.get(error.code, error.detail or error.code)


def panel_context(request: HttpRequest, study: Study) -> dict[str, Any] | None:
    """Questions and signed opinions about the study, and the form to ask."""
    user = the_user(request)
    consults = list(
        queries.visible_to(user)
        .filter(study=study)
        .select_related("reference_site", "expert", "requester")
        .order_by("-requested_at")
    )
    asks = may_ask(user, study)
    if not consults and not asks:
        return None
    return {
        "consults": consults,
        "may_ask": asks,
        "reference_sites": queries.reference_sites() if asks else [],
        "zone": zone_of(user),
        "open_statuses": OPEN,
    }


@requires(Capability.CONSULT)
@require_POST
def ask(request: HttpRequest, pk: int) -> HttpResponse:
    """Ask a reference centre about a study."""
    user = the_user(request)
    study = visible_study(request, pk)
    chosen = request.POST.get("reference_site", "")
    site = get_object_or_404(queries.reference_sites(), pk=int(chosen) if chosen.isdecimal() else 0)
    try:
        actions.ask(
            study,
            user,
            reference_site=site,
            question=request.POST.get("question", ""),
            is_urgent=bool(request.POST.get("is_urgent")),
            request=request,
        )
        messages.success(request, _("The question is at %(site)s.") % {"site": site})
    except PermanentError as error:
        messages.error(request, sentence(error))
    return redirect("study", pk=study.pk)


@requires(Capability.OPINE, Capability.CONSULT)
@require_safe
def desk(request: HttpRequest) -> HttpResponse:
    """The queue, live: urgent first, with how far the images are."""
    user = the_user(request)
    consults = list(queries.desk(user)[:200])
    zone = zone_of(user)
    rows = [
        {**describe(consult.study), "consult": consult, "may_answer": may_answer(user, consult)} for consult in consults
    ]
    context = {
        "open_rows": [row for row in rows if row["consult"].status in OPEN],
        "closed_rows": [row for row in rows if row["consult"].status not in OPEN][:30],
        "zone": zone,
        "is_expert": can(user, Capability.OPINE),
        "slot_minutes": SLOT_MINUTES,
    }
    is_part = request.headers.get("HX-Target") == "desk-rows"
    response = render(request, "consults/_rows.html" if is_part else "consults/desk.html", context)
    response["Cache-Control"] = "no-store"
    return response


@requires(Capability.OPINE, Capability.CONSULT)
@require_safe
def consult(request: HttpRequest, pk: int) -> HttpResponse:
    """One consult: images at the left while they are open to the person, question and opinion at the right."""
    user = the_user(request)
    found = visible_consult(request, pk)
    study = found.study
    sees_images = visible_studies(user).filter(pk=study.pk).exists()
    record_view("consult.viewed", request=request, entity=found, patient_key=study.patient_id)
    if sees_images:
        record_view("study.viewed", request=request, entity=study, patient_key=study.patient_id)
    context = {
        **describe(study),
        "progress_row": describe(study),
        "consult": found,
        "sees_images": sees_images,
        "is_mine": found.expert_id == user.pk,
        "may_answer": may_answer(user, found),
        "is_open": found.status in OPEN,
        "may_write": found.expert_id == user.pk
        and found.status in (Consult.Status.ACCEPTED, Consult.Status.IN_PROGRESS),
        "zone": zone_of(user),
        "slot_minutes": SLOT_MINUTES,
    }
    response = render(request, "consults/consult.html", context)
    response["Cache-Control"] = "no-store"
    return response


@requires(Capability.OPINE)
@require_POST
def take(request: HttpRequest, pk: int) -> HttpResponse:
    """Take a slot; the one who is slower is told so."""
    found = visible_consult(request, pk)
    user = the_user(request)
    minutes = request.POST.get("minutes", "30")
    try:
        actions.take_slot(
            found,
            user,
            starts_at=_moment(request.POST.get("starts_at", ""), zone_of(user)),
            minutes=int(minutes) if minutes.isdecimal() else 30,
            request=request,
        )
    except PermanentError as error:
        messages.error(request, sentence(error))
        return redirect("consults")
    return redirect("consult", pk=pk)


@requires(Capability.OPINE)
@require_POST
def give_back(request: HttpRequest, pk: int) -> HttpResponse:
    """Return a consult to the queue."""
    return _done(request, pk, lambda found: actions.give_back(found, the_user(request), request=request))


@requires(Capability.OPINE)
@require_POST
def reject(request: HttpRequest, pk: int) -> HttpResponse:
    """Decline with a reason."""
    reason = request.POST.get("reason", "")
    return _done(request, pk, lambda found: actions.reject(found, the_user(request), reason=reason, request=request))


@requires(Capability.CONSULT)
@require_POST
def cancel(request: HttpRequest, pk: int) -> HttpResponse:
    """Withdraw a question."""
    reason = request.POST.get("reason", "")
    return _done(request, pk, lambda found: actions.cancel(found, the_user(request), reason=reason, request=request))


@requires(Capability.OPINE)
@require_POST
def save(request: HttpRequest, pk: int) -> HttpResponse:
    """Autosave of the opinion."""
    return _written(request, pk, actions.save_opinion)


@requires(Capability.OPINE)
@require_POST
def conclude(request: HttpRequest, pk: int) -> HttpResponse:
    """Sign the opinion."""
    return _written(request, pk, actions.conclude)


@requires(Capability.SEE_STUDIES)
@require_safe
def pdf(request: HttpRequest, pk: int) -> HttpResponse:
    """The signed opinion as a PDF."""
    found = visible_consult(request, pk)
    if found.status != Consult.Status.COMPLETED:
        raise Http404
    record_view("consult.read", request=request, entity=found, patient_key=found.study.patient_id)
    response = HttpResponse(opinion_pdf(found), content_type="application/pdf")
    response["Content-Disposition"] = f'inline; filename="opinion-{found.pk}.pdf"'
    response["Cache-Control"] = "no-store"
    return response


def visible_consult(request: HttpRequest, pk: int) -> Consult:
    """The consult, or 404 where it is not open to this person; the attempt is recorded."""
    found = (
        queries.visible_to(the_user(request))
        .select_related(
            "study__patient",
            "study__site",
            "study__service_request",
            "requesting_site",
            "reference_site",
            "expert",
            "requester",
        )
        .filter(pk=pk)
        .first()
    )
    if found is None:
        if Consult.objects.filter(pk=pk).exists():
            record("consult.viewed", request=request, entity=("consults.consult", pk), outcome="refused")
        raise Http404
    return found


def _done(request: HttpRequest, pk: int, act: Any) -> HttpResponse:
    found = visible_consult(request, pk)
    try:
        act(found)
    except PermanentError as error:
        messages.error(request, sentence(error))
        return redirect("consult", pk=pk)
    return redirect("consults")


def _written(request: HttpRequest, pk: int, write: Any) -> HttpResponse:
    found = visible_consult(request, pk)
    version = request.POST.get("version", "0")
    typed = request.POST.get("opinion", "").replace("\r\n", "\n")
    try:
        saved = write(
            found, the_user(request), version=int(version) if version.isdecimal() else 0, opinion=typed, request=request
        )
    except PermanentError as error:
        status = status_of(error)
        extra = {"current": _as_json(error.current)} if isinstance(error, actions.OpinionConflict) else {}
        refused = JsonResponse(problem(error.code, sentence(error), status, **extra), status=status)
        refused["Content-Type"] = "application/problem+json"
        return refused
    return JsonResponse(_as_json(saved))


def _as_json(found: Consult) -> dict[str, Any]:
    return {"version": found.version, "opinion": found.opinion, "status": found.status}


def _moment(text: str, zone: ZoneInfo) -> datetime | None:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=zone)
    except ValueError:
        return None

"""The worklist and the study page."""

from typing import Any
from zoneinfo import ZoneInfo

from django.conf import settings
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.template.loader import render_to_string
from django.utils.functional import Promise
from django.utils.http import urlencode
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_POST, require_safe

from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, can, requires
from ris_central.audit.actions import record, record_view
from ris_central.catalogue import listeners, queries, whereabouts
from ris_central.catalogue.actions import sending
from ris_central.catalogue.models import Study, StudyConflict
from ris_central.patients.models import Patient
from standards.person_names import display

FILTERS = ("text", "modality", "status", "since", "until")
MODALITIES = ("CT", "MR", "CR", "DX", "MG", "US", "XA", "RF", "NM", "PT", "ES")
_ROWS = 60


def the_user(request: HttpRequest) -> User:
    """The user of a view behind ``requires``."""
    user = request.user
    if not isinstance(user, User):
        raise Http404
    return user


def zone_of(user: User) -> ZoneInfo:
    """The zone in which this person reads times: of their site."""
    membership = user.memberships.select_related("site").order_by("pk").first()
    return ZoneInfo(membership.site.time_zone if membership else settings.TIME_ZONE)


def describe(study: Study) -> dict[str, Any]:
    """What a row of a list shows of a study: itself, its texts and its progress."""
    known = study.instances_known
    report = getattr(study, "report_status", None)
    return {
        "study": study,
        "name": display(study.patient.name),
        "progress": round(100 * study.instances_safe / known) if known else 0,
        "is_elsewhere": not known and bool(getattr(study, "foreign_source", None)),
        "is_safe": bool(known) and study.instances_safe >= known,
        "report": report,
        "report_label": listeners.label_of("report_status", report),
        "description": study.study_description
        or (study.service_request.description if study.service_request_id and study.service_request else ""),
        "is_urgent": bool(study.service_request and study.service_request.priority != "routine"),
    }


@requires(Capability.ENTER)
@require_safe
def worklist(request: HttpRequest) -> HttpResponse:
    """Studies that fill up while images arrive; with htmx only the rows. Who sees no studies goes to their own page."""
    user = the_user(request)
    if not can(user, Capability.SEE_STUDIES):
        return redirect("home")
    chosen = {name: request.GET.get(name, "").strip() for name in FILTERS}
    zone = zone_of(user)
    page = Paginator(queries.worklist(user, chosen, zone), _ROWS).get_page(request.GET.get("page"))
    statuses: list[tuple[str, str | Promise]] = [("arriving", _("Arriving")), ("complete", _("Complete"))]
    statuses += [(extra.key, extra.label) for extra in listeners.worklist_filters()]
    context = {
        "rows": [describe(study) for study in page],
        "page": page,
        "chosen": chosen,
        "filtered": any(chosen.values()),
        "query": urlencode({name: value for name, value in chosen.items() if value}),
        "modalities": MODALITIES,
        "statuses": statuses,
        "zone": zone,
    }
    is_part = request.headers.get("HX-Target") == "worklist-rows"
    response = render(request, "catalogue/_rows.html" if is_part else "catalogue/worklist.html", context)
    response["Cache-Control"] = "no-store"
    response["Vary"] = "HX-Target"
    return response


@requires(Capability.SEE_STUDIES)
@require_safe
def study(request: HttpRequest, pk: int) -> HttpResponse:
    """Images beside the report, the patient's priors, and where the images are with what proof."""
    user = the_user(request)
    found = visible_study(request, pk)
    record_view("study.viewed", request=request, entity=found, patient_key=found.patient_id)
    panels = []
    for panel in listeners.panels():
        extra = panel.context(request, found)
        if extra is not None:
            panels.append(render_to_string(panel.template, {"study": found, **extra}, request))
    if found.instances_safe < found.instances_known:
        sending.hurry(found, queries.nearest_nodes(found.pk))
    context = {
        **describe(found),
        "opening": whereabouts.opening(found),
        "priors": [describe(prior) for prior in queries.priors(user, found)],
        "panels": panels,
        "zone": zone_of(user),
        **proof(found, user),
    }
    response = render(request, "catalogue/study.html", context)
    response["Cache-Control"] = "no-store"
    # The viewer of a clinic's node, opened from here, asks this page for fresh tokens.
    response["Cross-Origin-Opener-Policy"] = "same-origin-allow-popups"
    return response


def patient_panel(request: HttpRequest, patient: Patient) -> dict[str, Any] | None:
    """The patient's studies that this person may see, for the patient page."""
    user = the_user(request)
    if not can(user, Capability.SEE_STUDIES):
        return None
    return {"rows": [describe(study) for study in queries.of_patient(user, patient.pk)], "zone": zone_of(user)}


@requires(Capability.SEE_STUDIES)
@require_safe
def study_proof(request: HttpRequest, pk: int) -> HttpResponse:
    """The part of the study page that says where the images are; fetched again as they arrive."""
    found = visible_study(request, pk)
    user = the_user(request)
    context = {**describe(found), "zone": zone_of(user), **proof(found, user)}
    return render(request, "catalogue/_proof.html", context)


@requires(Capability.SEE_STUDIES)
@require_safe
def study_opening(request: HttpRequest, pk: int) -> HttpResponse:
    """The line above the images while they arrive, or who has them while nobody answers; fetched again and again."""
    found = visible_study(request, pk)
    return _opening(request, found)


@requires(Capability.SEE_STUDIES)
@require_POST
def study_send(request: HttpRequest, pk: int) -> HttpResponse:
    """Ask the nodes that hold the study to send it now, or as soon as they are back."""
    found = visible_study(request, pk)
    if not sending.send_now(found, sending.nodes_of(found), request=request):
        messages.warning(request, _("Nobody but the archive has images of this study."))
    if request.headers.get("HX-Request"):
        return _opening(request, found, is_asked=True)
    return redirect("study", found.pk)


@requires(Capability.REPORT, Capability.ADMINISTER)
@require_POST
def study_hold(request: HttpRequest, pk: int) -> HttpResponse:
    """Have the clinic keep the study back, or let go of it (``do=let-go``): its own radiologists, the administrator."""
    found = visible_study(request, pk)
    if not queries.may_hold(the_user(request), found):
        raise PermissionDenied
    if request.POST.get("do") == "let-go":
        sending.let_go(found, sending.nodes_of(found), request=request)
    elif not sending.hold(found, sending.nodes_of(found), request=request):
        messages.warning(request, _("Nobody but the archive has images of this study."))
    return redirect("study", found.pk)


def _opening(request: HttpRequest, found: Study, *, is_asked: bool = False) -> HttpResponse:
    context = {
        "study": found,
        "opening": whereabouts.opening(found),
        "zone": zone_of(the_user(request)),
        "is_asked": is_asked,
        "is_held": sending.is_held(found),
    }
    response = render(request, "catalogue/_opening.html", context)
    response["Cache-Control"] = "no-store"
    return response


@requires(Capability.SEE_STUDIES)
@require_POST
def study_opened_beside(request: HttpRequest, pk: int) -> HttpResponse:
    """A prior is opened beside the study: that is a look at the prior and is recorded as one."""
    found = visible_study(request, pk)
    record("study.opened-beside", request=request, entity=found, patient_key=found.patient_id)
    return HttpResponse(status=204)


def visible_study(request: HttpRequest, pk: int) -> Study:
    """The study, or 404 where it is not open to this person; the attempt is recorded."""
    studies = queries.visible_to(the_user(request)).select_related("patient", "site", "service_request")
    found = studies.annotate(**listeners.annotations()).filter(pk=pk).first()
    if found is None:
        if Study.objects.filter(pk=pk).exists():
            record("study.viewed", request=request, entity=("catalogue.study", pk), outcome="refused")
        raise Http404
    return found


def proof(study: Study, user: User) -> dict[str, Any]:
    """Who holds what of the study with what proof, how deliveries go and why not, and what conflicted or differs."""
    states = list(study.deliveries.select_related("node").order_by("node__name", "destination"))
    return {
        "holders": whereabouts.holder_rows(study),
        "deliveries": [row for row in whereabouts.delivery_rows(states) if not row.is_done],
        "is_held": sending.is_held(study),
        "may_hold": queries.may_hold(user, study),
        "conflicts": StudyConflict.objects.filter(study_instance_uid=study.study_instance_uid).count(),
        "differences": study.differences.filter(mended_at=None).select_related("node"),
        "series": study.series.order_by("series_number", "pk"),
    }

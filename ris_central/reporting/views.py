"""Saving, signing and reading reports from the study page."""

from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from gateway.envelope import problem
from ris_central.accounts.api import status_of
from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, requires
from ris_central.audit.actions import record_view
from ris_central.catalogue.models import Study
from ris_central.catalogue.queries import visible_to as visible_studies
from ris_central.catalogue.views import the_user, visible_study
from ris_central.reporting import actions, node_drafts, queries
from ris_central.reporting.models import NodeDraft, Report, ReportDocument
from ris_central.reporting.permissions import may_write
from ris_central.reporting.snippets import snippets_for
from ris_central.reporting.transitions import SIGNED
from standards.errors import PermanentError


def panel_context(request: HttpRequest, study: Study) -> dict[str, Any] | None:
    """The report part of the study page: editor, signed text, or nothing for who may do neither."""
    user = the_user(request)
    report = queries.live_report(study)
    writes = may_write(user, study)
    if report is None and not writes:
        return None
    beside = [NodeDraft.State.BESIDE, NodeDraft.State.FOREIGN]
    is_signed = report is not None and report.status in SIGNED
    return {
        "report": report,
        "is_signed": is_signed,
        "may_write": writes,
        "node_drafts": study.node_drafts.filter(state__in=beside).select_related("author", "node") if writes else [],
        "addenda": report.addenda.select_related("author").order_by("pk") if report and is_signed else [],
        "documents": report.documents.order_by("number", "kind") if report and is_signed else [],
        "snippets": snippets_for(study, getattr(request, "LANGUAGE_CODE", "ru")) if writes and not is_signed else [],
    }


@requires(Capability.REPORT)
@require_POST
def save(request: HttpRequest, pk: int) -> HttpResponse:
    """Autosave. Answers the new version, or 409 with the text that somebody else saved."""
    study, user = _study_of(request, pk), the_user(request)
    try:
        report = actions.save_draft(study, user, request=request, **_typed(request))
    except PermanentError as error:
        return refusal(error)
    return JsonResponse(as_json(report))


@requires(Capability.REPORT)
@require_POST
def sign(request: HttpRequest, pk: int) -> HttpResponse:
    """Sign what is on the screen."""
    study, user = _study_of(request, pk), the_user(request)
    try:
        report = actions.sign(study, user, request=request, **_typed(request))
    except PermanentError as error:
        return refusal(error)
    return JsonResponse(as_json(report))


@requires(Capability.REPORT)
@require_POST
def node_draft(request: HttpRequest, pk: int, draft: int) -> HttpResponse:
    """What becomes of a text that was written at a node beside the one here."""
    study, user = _study_of(request, pk), the_user(request)
    found = get_object_or_404(NodeDraft, pk=draft, study=study)
    version = request.POST.get("version", "0")
    try:
        node_drafts.settle(
            found,
            user,
            request.POST.get("choice", ""),
            version=int(version) if version.isdecimal() else 0,
            request=request,
        )
    except PermanentError as error:
        messages.error(request, sentence(error))
    return redirect("study", pk)


@requires(Capability.REPORT)
@require_POST
def addendum(request: HttpRequest, pk: int) -> HttpResponse:
    """Add a signed addendum."""
    report = get_object_or_404(queries.visible_to(the_user(request)), pk=pk)
    try:
        actions.add_addendum(report, the_user(request), request.POST.get("text", ""), request=request)
    except PermanentError as error:
        return refusal(error)
    return JsonResponse(as_json(queries.visible_to(the_user(request)).get(pk=pk)))


@requires(Capability.SEE_STUDIES)
@require_safe
def pdf(request: HttpRequest, pk: int) -> HttpResponse:
    """The newest PDF of a signed report."""
    report = get_object_or_404(queries.visible_to(the_user(request)).select_related("study"), pk=pk)
    document = report.documents.filter(kind=ReportDocument.Kind.PDF).order_by("-number").first()
    if document is None:
        raise Http404
    record_view("report.read", request=request, entity=report, patient_key=report.study.patient_id)
    response = HttpResponse(bytes(document.content), content_type="application/pdf")
    name = f"report-{report.study.accession_number or report.pk}-{document.number}.pdf"
    response["Content-Disposition"] = f'inline; filename="{name}"'
    response["Cache-Control"] = "no-store"
    return response


def sentence(error: PermanentError) -> str:
    """What a person reads when an action is refused."""
    sentences = {
        "version-conflict": _("Somebody else saved this report meanwhile."),
        "report-empty": _("A report needs a conclusion before it is signed."),
        "report-signed": _("The report is signed: corrections are addenda."),
        "may-not-report": _("Only radiologists of the study's site write its report."),
        "addendum-empty": _("An addendum needs a text."),
        "state-conflict": _("Somebody else has acted on this report meanwhile: reload the page."),
    }
    return sentences.get(error.code, error.detail or error.code)


def refusal(error: PermanentError) -> JsonResponse:
    """A problem document; a conflict carries the text that won."""
    status = status_of(error)
    extra: dict[str, Any] = {}
    if isinstance(error, actions.VersionConflict):
        extra["current"] = as_json(error.current)
    response = JsonResponse(problem(error.code, sentence(error), status, **extra), status=status)
    response["Content-Type"] = "application/problem+json"
    return response


def as_json(report: Report) -> dict[str, Any]:
    """What the editor must know of the saved report."""
    last = report.revisions.select_related("author").order_by("-version").first()
    by: User = last.author if last else report.author
    return {
        "id": report.pk,
        "status": report.status,
        "status_label": report.get_status_display(),
        "version": report.version,
        "findings": report.findings,
        "conclusion": report.conclusion,
        "saved_by": str(by),
        "saved_at": report.updated_at.isoformat(),
    }


def _study_of(request: HttpRequest, pk: int) -> Study:
    if not visible_studies(the_user(request)).filter(pk=pk).exists():
        return visible_study(request, pk)  # records the attempt and answers 404
    return Study.objects.select_related("patient", "site").get(pk=pk)


def _typed(request: HttpRequest) -> dict[str, Any]:
    version = request.POST.get("version", "0")
    return {
        "version": int(version) if version.isdecimal() else 0,
        "findings": request.POST.get("findings", "").replace("\r\n", "\n"),
        "conclusion": request.POST.get("conclusion", "").replace("\r\n", "\n"),
    }

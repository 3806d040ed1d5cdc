"""A draft of a report beside the node's own viewer."""

from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_POST

from gateway.envelope import problem
from pacs_node.clinic import audit
from pacs_node.clinic.queries import visible_to
from pacs_node.clinic.views import client_address, person
from pacs_node.offline import drafts, queries
from pacs_node.offline.models import ReportDraft
from pacs_node.offline.permissions import may_write_drafts, requires
from pacs_node.offline.views.registration import about


@requires(may_write_drafts)
@never_cache
@require_GET
def draft(request: HttpRequest, key: int) -> HttpResponse:
    """Images on the left, the text on the right."""
    study = get_object_or_404(visible_to(person(request)), pk=key)
    audit.record_once_a_sitting(
        "study.viewed",
        actor=person(request).username,
        entity=study.study_instance_uid,
        address=client_address(request),
    )
    mine = queries.my_draft(study, person(request).pk)
    context = about(request) | {
        "study": study,
        "draft": mine,
        "others": queries.drafts_of_others(study, person(request).pk),
        "told": mine is not None and mine.told_version >= mine.version,
    }
    return render(request, "offline/draft.html", context)


@requires(may_write_drafts)
@require_POST
def draft_save(request: HttpRequest, key: int) -> HttpResponse:
    """Autosave: the new version, or 409 with the text that another window saved."""
    study = get_object_or_404(visible_to(person(request)), pk=key)
    version = request.POST.get("version", "0")
    try:
        saved = drafts.save(
            study,
            person(request),
            version=int(version) if version.isascii() and version.isdecimal() and len(version) < 10 else 0,
            findings=_text(request, "findings"),
            conclusion=_text(request, "conclusion"),
            address=client_address(request),
        )
    except drafts.VersionConflict as refusal:
        title = _("This draft was saved from another window meanwhile: both texts are shown.")
        return JsonResponse(problem(refusal.code, title, 409, current=_as_json(refusal.current)), status=409)
    if request.POST.get("done"):
        drafts.tell(saved)
    return JsonResponse(_as_json(saved))


def _text(request: HttpRequest, name: str) -> str:
    return request.POST.get(name, "").replace("\r\n", "\n")[:200_000]


def _as_json(draft: ReportDraft) -> dict[str, Any]:
    return {
        "version": draft.version,
        "findings": draft.findings,
        "conclusion": draft.conclusion,
        "saved_at": timezone.localtime(draft.updated_at).strftime("%H:%M:%S"),
    }

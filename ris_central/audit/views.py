"""The page to read the trail; reading it is in it."""

from zoneinfo import ZoneInfo

from django.conf import settings
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.dateparse import parse_date
from django.views.decorators.http import require_GET, require_POST

from ris_central.accounts.permissions import Capability, requires
from ris_central.audit import queries, sealer
from ris_central.audit.actions import record
from ris_central.audit.models import AuditEvent

FILTERS = ("who", "what", "patient", "since", "until", "outcome")


def day(text: str) -> object:
    """The date of an ISO text, None for anything else."""
    try:
        return parse_date(text)
    except ValueError:
        return None


@requires(Capability.READ_AUDIT)
@require_GET
def audit(request: HttpRequest) -> HttpResponse:
    """Rows, newest first, by who, what, which patient and when."""
    chosen = {name: request.GET.get(name, "").strip() for name in FILTERS}
    events = queries.narrowed(
        queries.visible_to(request.user),  # type: ignore[arg-type]
        who=chosen["who"],
        what=chosen["what"],
        patient=chosen["patient"],
        outcome=chosen["outcome"] if chosen["outcome"] in AuditEvent.Outcome.values else "",
        since=day(chosen["since"]),  # type: ignore[arg-type]
        until=day(chosen["until"]),  # type: ignore[arg-type]
        zone=ZoneInfo(settings.TIME_ZONE),
    )
    page = Paginator(events, 50).get_page(request.GET.get("page"))
    record("audit.read", request=request, detail={name: value for name, value in chosen.items() if value})
    context = {"page": page, "chosen": chosen, "outcomes": AuditEvent.Outcome.values}
    return render(request, "audit/audit.html", context)


@requires(Capability.READ_AUDIT)
@require_POST
def verify(request: HttpRequest) -> HttpResponse:
    """Recompute the chain and say whether it holds."""
    verdict = sealer.verify()
    record("audit.verified", request=request, detail={"checked": verdict.checked, "broken_at": verdict.broken_at})
    return render(request, "audit/_verdict.html", {"verdict": verdict})

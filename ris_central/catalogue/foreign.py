"""Studies that PACS outside the region list: on the study page, in the worklist, and the button that fetches them."""

from typing import Any

from django.contrib import messages
from django.db.models import Count, Exists, OuterRef, Q, QuerySet, Subquery
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_POST, require_safe

from gateway.envelope import Probe
from ris_central.accounts.permissions import Capability, requires
from ris_central.catalogue import listeners
from ris_central.catalogue.actions.foreign import ask_for, sources_of
from ris_central.catalogue.models import ForeignHolding, ForeignPacs, Study
from ris_central.catalogue.reasons import Text, reason
from ris_central.catalogue.views import the_user, visible_study, zone_of
from ris_central.federation.models import Node
from ris_central.organizations.models import Site
from standards.errors import PermanentError

PANEL_ORDER = 5
QUIRKS: dict[str, Text] = {
    "no-date-ranges": _("refuses ranges of dates: asked day by day"),
    "ignores-dates": _("answers with studies of other days"),
    "no-counts": _("does not say how many images a study has"),
    "no-series-queries": _("refuses questions about series"),
    "caps-answers": _("caps its answers: asked in smaller parts"),
    "answers-without-study-uid": _("answers without a study number"),
    "answers-twice": _("answers the same study twice"),
    "wrong-character-set": _("names a wrong character set: names are read as they are written"),
    "too-many-to-find-undated": _("lists too many studies to find those without a date"),
}

STEPS: dict[str, Text] = {
    "echo": _("Answers at its address"),
    "find": _("Answers questions"),
    "retrieve": _("Takes requests for images"),
}
_UNCLEAR: tuple[Text, Text] = (
    _("it takes the request, but says nothing clear of a study that does not exist"),
    _("Fetch one study to see that its images come."),
)
_REFUSALS: dict[str, Text] = {
    "study-gone": _("That PACS no longer lists this study."),
    "not-to-be-fetched": _("By a rule of the site its images stay there."),
    "node-revoked": _("Its node is no longer part of the region."),
    "source-not-in-use": _("That PACS is not in use now: somebody switched it off in the configuration."),
}


def listed_by(study: Study) -> QuerySet[ForeignHolding]:
    """Where else the study is or was listed."""
    return study.foreign_holdings.select_related("node__site").order_by("gone_at", "source")


def states_of(holdings: QuerySet[ForeignHolding]) -> dict[tuple[int, str], ForeignPacs]:
    """How the PACS of these holdings answer, by node and source."""
    nodes = {holding.node_id for holding in holdings}
    return {(row.node_id, row.source): row for row in ForeignPacs.objects.filter(node__in=nodes)}


def pacs_at(site: Site) -> list[dict[str, Any]]:
    """The PACS outside the region that nodes of a site look over; no patient is named."""
    return [row for node in Node.objects.filter(site=site, revoked_at=None).order_by("name") for row in pacs_of(node)]


def pacs_of(node: Node) -> list[dict[str, Any]]:
    """Those that are in the configuration of a node, and those that it still tells of."""
    configured = sources_of(node)
    told = {row.source: row for row in ForeignPacs.objects.filter(node=node, retired=False)}
    counted = {
        row["source"]: row
        for row in ForeignHolding.objects.filter(node=node)
        .order_by()
        .values("source")
        .annotate(
            listed=Count("pk", filter=Q(gone_at=None)),
            waiting=Count("pk", filter=Q(fetching=ForeignHolding.Fetching.WAITING)),
            failed=Count("pk", filter=Q(fetching=ForeignHolding.Fetching.FAILED)),
        )
    }
    found = []
    for name in sorted({*configured, *told}):
        pacs = told.get(name)
        found.append(
            {
                **{"listed": 0, "waiting": 0, "failed": 0, **counted.get(name, {})},
                "source": name,
                "node": node,
                "settings": configured.get(name),
                "pacs": pacs,
                "trouble": reason(pacs.last_error) if pacs is not None and pacs.last_error else None,
                "quirks": [QUIRKS.get(quirk, quirk) for quirk in pacs.quirks] if pacs is not None else [],
                "probe": probe_of(pacs),
            }
        )
    return found


def probe_of(pacs: ForeignPacs | None) -> dict[str, Any] | None:
    """What came of trying a PACS out, or that its answer is waited for; None: nobody ever asked."""
    if pacs is None or (pacs.probe is None and pacs.probe_asked_at is None):
        return None
    kept = Probe.model_validate(pacs.probe) if pacs.probe else None
    waits = pacs.probe_asked_at is not None and (kept is None or kept.asked_at < pacs.probe_asked_at)
    steps = []
    for step in kept.steps if kept is not None else []:
        said, advice = reason(step.detail) if step.detail else ("", "")
        if step.outcome == "unclear":
            said, advice = _UNCLEAR
        steps.append({"step": step, "label": STEPS.get(step.step, step.step), "said": said, "advice": advice})
    return {"waits": waits, "asked_at": pacs.probe_asked_at, "done_at": kept.done_at if kept else None, "steps": steps}


def panel(request: HttpRequest, study: Study) -> dict[str, Any] | None:
    """The part of the study page that says which PACS outside the region list it, and fetches from them."""
    holdings = listed_by(study)
    if not holdings:
        return None
    states = states_of(holdings)
    rows = []
    for one in holdings:
        pacs = states.get((one.node_id, one.source))
        rows.append(
            {
                "holding": one,
                "pacs": pacs,
                "trouble": reason(pacs.last_error) if pacs is not None and pacs.last_error else None,
                "advice": reason(one.last_error.rpartition(" did not come: ")[2])[1] if one.last_error else "",
            }
        )
    waits = any(one.fetching == ForeignHolding.Fetching.WAITING and one.gone_at is None for one in holdings)
    return {"holdings": rows, "zone": zone_of(the_user(request)), "foreign_waits": waits}


@requires(Capability.SEE_STUDIES)
@require_safe
def part(request: HttpRequest, pk: int) -> HttpResponse:
    """The panel by itself: fetched again and again while images are fetched."""
    study = visible_study(request, pk)
    context = panel(request, study)
    if context is None:
        raise Http404
    response = render(request, "catalogue/_foreign_panel.html", {"study": study, **context})
    response["Cache-Control"] = "no-store"
    return response


@requires(Capability.SEE_STUDIES)
@require_POST
def fetch(request: HttpRequest, pk: int, holding: int) -> HttpResponse:
    """Have the images of a study fetched from the PACS that lists it."""
    study = visible_study(request, pk)
    wanted = ForeignHolding.objects.filter(pk=holding, study=study).first()
    if wanted is None:
        raise Http404
    try:
        ask_for(wanted, request)
    except PermanentError as error:
        messages.error(request, str(_REFUSALS.get(error.code, error.detail)))
    return redirect("study", pk=study.pk)


def _first(field: str) -> Subquery:
    present = ForeignHolding.objects.filter(study=OuterRef("pk"), gone_at=None).order_by("pk")
    return Subquery(present.values(field)[:1])


def register() -> None:
    """Called once, when the app is ready."""
    listeners.add_panel("catalogue/_foreign_panel.html", panel, order=PANEL_ORDER)
    listeners.add_worklist_column("foreign_source", _first("source"), str)
    listeners.add_worklist_column("foreign_count", _first("instance_count"), str)
    present = ForeignHolding.objects.filter(study=OuterRef("pk"), gone_at=None)
    listeners.add_worklist_filter("elsewhere", _("In another PACS"), Q(Exists(present), instances_known=0))
    failed = present.filter(fetching=ForeignHolding.Fetching.FAILED)
    listeners.add_worklist_filter("fetch-failed", _("Could not be fetched"), Q(Exists(failed)))

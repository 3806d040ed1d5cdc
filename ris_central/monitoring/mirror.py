"""A site's mirror: what is where, on its way, held back or failed and why, with a button for all of it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.dateparse import parse_datetime
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_POST
from pydantic import ValidationError

from gateway.envelope.joining import LineEncoding
from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, requires
from ris_central.catalogue import queries as catalogue
from ris_central.catalogue import whereabouts
from ris_central.catalogue.actions import reconciling, sending
from ris_central.catalogue.actions.announcing import WORKLIST_GROUP
from ris_central.catalogue.live import LiveConsumer
from ris_central.catalogue.models import DeliveryState, Difference, HoldingsRound, SeriesHolder, Study
from ris_central.catalogue.reasons import HELD, Text, reason
from ris_central.catalogue.views import the_user, zone_of
from ris_central.federation import configurations
from ris_central.federation.models import Command, Node
from ris_central.monitoring import queries
from ris_central.organizations import actions as organizations
from ris_central.organizations import queries as organization_queries
from ris_central.organizations.models import Site
from standards.errors import PermanentError

_ROWS = 40
_LATELY = 12
SENT_AT_ONCE = 1000


@dataclass(frozen=True)
class QueueRow:
    """All that waits at a node for one destination, as its last heartbeat told."""

    destination: str
    instances: int
    size: int
    failed: int
    held_back: list[whereabouts.HeldBack]
    bytes_per_second: int
    seconds_left: int | None
    oldest_at: datetime | None
    trouble: Text
    advice: Text
    trouble_since: datetime | None
    encoding: LineEncoding | None = None

    @property
    def on_the_way(self) -> int:
        """What is neither held nor failed."""
        return max(0, self.instances - self.failed - sum(one.instances for one in self.held_back))


@dataclass(frozen=True)
class NodeMirror:
    """A node with its queues and its last comparison."""

    state: queries.NodeState
    queues: list[QueueRow]
    compared: HoldingsRound | None
    commands_waiting: int
    open_differences: int


def _queue(told: dict[str, Any]) -> QueueRow:
    trouble, advice = reason(told["trouble"]) if told.get("trouble") else ("", "")
    return QueueRow(
        destination=str(told.get("destination", "")),
        instances=int(told.get("instances", 0)),
        size=int(told.get("size", 0)),
        failed=int(told.get("failed", 0)),
        held_back=[
            whereabouts.HeldBack(
                HELD.get(one["reason"], one["reason"]),
                parse_datetime(one["until"]) if one.get("until") else None,
                int(one.get("instances", 0)),
            )
            for one in told.get("held", [])
        ],
        bytes_per_second=int(told.get("bytes_per_second", 0)),
        seconds_left=told.get("seconds_left"),
        oldest_at=parse_datetime(told["oldest_at"]) if told.get("oldest_at") else None,
        trouble=trouble,
        advice=advice,
        trouble_since=parse_datetime(told["trouble_since"]) if told.get("trouble_since") else None,
        encoding=_encoding(told.get("encoding")),
    )


def _encoding(told: dict[str, Any] | None) -> LineEncoding | None:
    try:
        return LineEncoding.model_validate(told) if told else None
    except ValidationError:  # of a newer node: it says of it what this page does not know
        return None


def node_mirrors(nodes: QuerySet[Node]) -> list[NodeMirror]:
    """The nodes with what they told, in a fixed number of queries."""
    found = list(nodes.order_by("name"))
    rounds = {row.node_id: row for row in HoldingsRound.objects.filter(node__in=found)}
    differing = _counts(Difference.objects.filter(node__in=found, mended_at=None))
    waiting = _counts(Command.objects.filter(node__in=found, seq=None))
    return [
        NodeMirror(
            state=queries.state_of(node),
            queues=[_queue(told) for told in node.status.get("queues", [])],
            compared=rounds.get(node.pk),
            commands_waiting=waiting.get(node.pk, 0),
            open_differences=differing.get(node.pk, 0),
        )
        for node in found
    ]


def _counts(rows: QuerySet[Any]) -> dict[int, int]:
    return {row["node"]: row["n"] for row in rows.order_by().values("node").annotate(n=Count("pk"))}


def _site(request: HttpRequest, pk: int) -> Site:
    return get_object_or_404(organization_queries.visible_to(the_user(request)), pk=pk)


@requires(Capability.SEE_SITES)
@require_GET
def mirror(request: HttpRequest, pk: int) -> HttpResponse:
    """The page; with htmx only what changes."""
    user, site = the_user(request), _site(request, pk)
    states = DeliveryState.objects.filter(node__site=site).select_related("node", "study", "study__held_by")
    page = Paginator(whereabouts.unfinished(states), _ROWS).get_page(request.GET.get("page"))
    shown = list(page)
    open_to_user = set(
        catalogue.visible_to(user).filter(pk__in=[row.study_id for row in shown]).values_list("pk", flat=True)
    )
    differences = Difference.objects.filter(node__site=site).select_related("node", "study")
    context = {
        "site": site,
        "own_rules": _with_own_rules(site),
        "state": next((one for one in queries.site_states(user) if one.site.pk == site.pk), None),
        "nodes": node_mirrors(queries.nodes_visible_to(user).filter(site=site)),
        "rows": [
            {"delivery": row, "study": row.state.study, "is_open": row.state.study_id in open_to_user}
            for row in whereabouts.delivery_rows(shown)
        ],
        "page": page,
        "differences": [_described(one) for one in differences.filter(mended_at=None).order_by("-pk")[:_ROWS]],
        "mended": differences.filter(mended_at__isnull=False).order_by("-mended_at")[:_LATELY],
        "zone": zone_of(user),
        "models": Site.StorageModel.choices,
    }
    is_part = bool(request.headers.get("HX-Request"))
    response = render(request, "monitoring/_mirror_page.html" if is_part else "monitoring/mirror.html", context)
    response["Cache-Control"] = "no-store"
    return response


def _with_own_rules(site: Site) -> list[Node]:
    """The nodes whose images go by other rules than the site's model of storage says."""
    by_model = [rule.model_dump(mode="json") for rule in organization_queries.mirror_rules_of(site)]
    nodes = Node.objects.filter(site=site, revoked_at=None).exclude(kind=Node.Kind.ARCHIVE).order_by("name")
    return [node for node in nodes if configurations.body_of(node)["mirror"]["rules"] != by_model]


def _described(difference: Difference) -> dict[str, Any]:
    fields = []
    if difference.study is not None and difference.told:
        fields = [
            {"name": Study._meta.get_field(name).name, "ours": ours, "theirs": theirs}
            for name, (ours, theirs) in reconciling.disagreements(difference.study, difference.told).items()
        ]
    return {"difference": difference, "fields": fields}


@requires(Capability.CONNECT, Capability.ADMINISTER)
@require_POST
def send(request: HttpRequest, pk: int) -> HttpResponse:
    """Send what waits, is kept back by rule or failed, of all of the site; of one study also what a person holds."""
    site, kept = _site(request, pk), 0
    states = whereabouts.unfinished(DeliveryState.objects.filter(node__site=site))
    if wanted := request.POST.get("study"):
        states = states.filter(study=int(wanted) if wanted.isdecimal() else None)
    else:  # what somebody holds back is let go of one by one
        if request.POST.get("only") == "failed":
            states = states.filter(Q(failed__gt=0) | ~Q(last_error=""))
        held = set(sending.held_of(Study.objects.filter(deliveries__in=states)).values_list("pk", flat=True))
        states, kept = states.exclude(study__in=held), len(held)
    chosen = list(dict.fromkeys(states.order_by("pk").values_list("study_id", flat=True)))
    studies = Study.objects.in_bulk(chosen[:SENT_AT_ONCE])
    asked = 0
    for study in studies.values():
        holding = SeriesHolder.objects.filter(series__study=study, count__gt=0).values("node")
        asked += bool(sending.send_now(study, Node.objects.filter(pk__in=holding, site=site), request=request))
    messages.success(request, _("Asked the node to send now: %(n)s studies.") % {"n": asked})
    if kept:
        messages.info(request, _("Held back by a person, to be let go of one by one: %(n)s studies.") % {"n": kept})
    if (left := len(chosen) - SENT_AT_ONCE) > 0:
        messages.warning(request, _("Not asked for yet, send again when these have gone: %(n)s studies.") % {"n": left})
    return redirect("site_mirror", site.pk)


@requires(Capability.CONNECT, Capability.ADMINISTER)
@require_POST
def hold(request: HttpRequest, pk: int, study: int) -> HttpResponse:
    """Have the site's nodes keep a study back, or let go of it (``do=let-go``)."""
    site = _site(request, pk)
    found = get_object_or_404(Study.objects.filter(deliveries__node__site=site).distinct(), pk=study)
    change = sending.let_go if request.POST.get("do") == "let-go" else sending.hold
    change(found, sending.nodes_of(found).filter(site=site), request=request)
    return redirect("site_mirror", site.pk)


@requires(Capability.CONNECT, Capability.ADMINISTER)
@require_POST
def compare(request: HttpRequest, pk: int) -> HttpResponse:
    """Have the site's nodes compare what they hold with what is believed here, now."""
    site = _site(request, pk)
    for node in Node.objects.filter(site=site, joined_at__isnull=False, revoked_at=None):
        reconciling.compare_now(node, request)
    messages.success(request, _("Asked. What differs appears here as soon as the node has looked."))
    return redirect("site_mirror", site.pk)


@requires(Capability.CONNECT, Capability.ADMINISTER)
@require_POST
def difference(request: HttpRequest, pk: int, difference: int) -> HttpResponse:
    """Settle a difference: ``accept`` it, ``take-over`` the node's data, or have it told and delivered ``again``."""
    site = _site(request, pk)
    found = get_object_or_404(Difference, pk=difference, node__site=site)
    try:
        match request.POST.get("do"):
            case "take-over":
                reconciling.take_over(found, request)
            case "again":
                reconciling.ask_again(found, request)
            case _:
                reconciling.accept(found, request)
    except PermanentError as error:
        messages.error(request, str(error.detail))
    return redirect("site_mirror", site.pk)


@requires(Capability.ADMINISTER)
@require_POST
def storage_model(request: HttpRequest, pk: int) -> HttpResponse:
    """Have the site's images lie elsewhere by rule from now on."""
    site = _site(request, pk)
    try:
        organizations.set_storage_model(site, request.POST.get("storage_model", ""), request=request)
    except PermanentError as error:
        messages.error(request, str(error))
    return redirect("site_mirror", site.pk)


class MirrorConsumer(LiveConsumer):
    """Sends ``{"sites": [keys]}`` of the sites of which something moved; the page fetches what it shows again."""

    group = WORKLIST_GROUP
    name = "sites"
    capabilities = (Capability.SEE_SITES,)

    async def study_changed(self, message: dict[str, Any]) -> None:
        """Studies changed."""
        self.collect(*message["studies"])

    def visible(self, user: User, keys: set[int]) -> list[int]:
        """Sites of who asks."""
        sites = organization_queries.visible_to(user)
        return list(
            Study.objects.filter(pk__in=keys, site__in=sites).order_by().values_list("site", flat=True).distinct()
        )

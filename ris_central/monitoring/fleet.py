"""Pages of a node: its keys, versions and configuration with history; and the configuration that all share."""

import json
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from gateway import VERSION
from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, requires
from ris_central.audit.actions import record
from ris_central.federation import actions as federation
from ris_central.federation import configurations, intake, trust
from ris_central.federation import queries as nodes
from ris_central.federation.models import InboxEvent, Node, NodeConfiguration
from ris_central.monitoring import queries
from ris_central.monitoring.forms import ConfigurationForms
from standards.errors import PermanentError

ROWS = 50


def _node(request: HttpRequest, pk: int) -> Node:
    assert isinstance(request.user, User)
    return get_object_or_404(nodes.visible_to(request.user), pk=pk)


@requires(Capability.SEE_SITES)
@require_GET
def node(request: HttpRequest, pk: int) -> HttpResponse:
    """One node: is it well, which keys and versions it has, what it could not understand."""
    found = _node(request, pk)
    context = {
        "node": queries.state_of(found),
        "told": found.status,
        "applied": configurations.applied(found),
        "former": found.former_keys.order_by("-until"),
        "errors": nodes.errors_of(found)[:20],
        "our_version": VERSION,
        "overlap_days": trust.OVERLAP.days,
        "alerts": found.alerts.filter(closed_at=None),
    }
    return render(request, "monitoring/node.html", context)


@requires(Capability.ADMINISTER)
@require_http_methods(["GET", "POST"])
def node_revoke(request: HttpRequest, pk: int) -> HttpResponse:
    """Trust a node no more, after a second look: its name must be typed."""
    found = _node(request, pk)
    wrong = False
    if request.method == "POST":
        wrong = request.POST.get("name", "").strip() != found.name
        if not wrong:
            federation.revoke(found, request=request)
            messages.success(request, _("The node is trusted no more, here and at all other nodes."))
            return redirect("node", found.pk)
    return render(request, "monitoring/node_revoke.html", {"node": found, "wrong": wrong}, status=422 if wrong else 200)


@requires(Capability.ADMINISTER)
@require_POST
def node_rotate(request: HttpRequest, pk: int) -> HttpResponse:
    """Ask a node for a new key."""
    found = _node(request, pk)
    trust.ask_rotation(found, request=request)
    messages.success(request, _("The node is asked for a new key; it makes one as soon as it hears of it."))
    return redirect("node", found.pk)


@requires(Capability.CONNECT)
@require_POST
def event_retry(request: HttpRequest, pk: int) -> HttpResponse:
    """Apply an event again that could not be applied."""
    assert isinstance(request.user, User)
    row = get_object_or_404(InboxEvent, pk=pk, node__in=nodes.visible_to(request.user))
    error = intake.apply_again(row)
    record("event.applied-again", request=request, entity=row.node, detail={"seq": row.seq, "error": error[:200]})
    if error:
        messages.error(request, _("It still cannot be applied: %(error)s") % {"error": error})
    else:
        messages.success(request, _("The event is applied."))
    return redirect("node", row.node_id)


@requires(Capability.READ_AUDIT)
@require_GET
def node_audit(request: HttpRequest, pk: int) -> HttpResponse:
    """What the node wrote into its own audit trail, and whether the chain is whole."""
    found = _node(request, pk)
    rows = found.audit_rows.order_by("-sequence", "-pk")
    context = {
        "node": found,
        "page": Paginator(rows, ROWS).get_page(request.GET.get("page")),
        "broken": found.audit_rows.filter(whole=False).count(),
    }
    record("node.audit-viewed", request=request, entity=found)
    return render(request, "monitoring/node_audit.html", context)


@requires(Capability.SEE_SITES)
@require_GET
def configuration(request: HttpRequest, pk: int) -> HttpResponse:
    """The configuration of a node and how it came to be."""
    return _show(request, _node(request, pk))


@requires(Capability.ADMINISTER)
@require_GET
def region_configuration(request: HttpRequest) -> HttpResponse:
    """The configuration of all nodes that have none of their own."""
    return _show(request, None)


def _show(request: HttpRequest, found: Node | None) -> HttpResponse:
    history = list(NodeConfiguration.objects.filter(node=found)[:ROWS])
    bodies = [{} if row.follows_region else row.body for row in history]
    before = [*bodies[1:], {}][: len(bodies)]
    rows = [
        {
            "row": row,
            "changes": configurations.changes(old or configurations.checked({}), new or configurations.checked({})),
        }
        for row, new, old in zip(history, bodies, before, strict=True)
    ]
    context = {
        "node": found,
        "applied": configurations.applied(found) if found else None,
        "newest": configurations.newest(found),
        "body": configurations.body_of(found),
        "history": rows,
        "followers": _drift() if found is None else [],
    }
    return render(request, "monitoring/configuration.html", context)


def _drift() -> list[dict[str, Any]]:
    joined = Node.objects.filter(joined_at__isnull=False, revoked_at=None).select_related("site").order_by("name")
    applied = configurations.applied_of(joined)
    return [{"node": one, "applied": applied[one.pk]} for one in joined]


@requires(Capability.ADMINISTER)
@require_http_methods(["GET", "POST"])
def configuration_edit(request: HttpRequest, pk: int) -> HttpResponse:
    """Change the configuration of a node by forms."""
    return _edit(request, _node(request, pk))


@requires(Capability.ADMINISTER)
@require_http_methods(["GET", "POST"])
def region_configuration_edit(request: HttpRequest) -> HttpResponse:
    """Change the configuration of all by forms."""
    return _edit(request, None)


def _edit(request: HttpRequest, found: Node | None) -> HttpResponse:
    present = configurations.newest(found)
    forms = ConfigurationForms(
        configurations.body_of(found),
        present.version if present else 0,
        request.POST if request.method == "POST" else None,
    )
    error = ""
    if request.method == "POST" and forms.is_valid():
        said = forms.policy.cleaned_data
        try:
            configurations.save(found, forms.body(), reason=said["reason"], based_on=said["based_on"], request=request)
        except PermanentError as refusal:
            error = _why(refusal)
        else:
            messages.success(request, _("The new version is on its way."))
            return _back(found)
    status = 422 if request.method == "POST" else 200
    return render(
        request, "monitoring/configuration_edit.html", {"node": found, "forms": forms, "error": error}, status=status
    )


@requires(Capability.ADMINISTER)
@require_http_methods(["GET", "POST"])
def configuration_json(request: HttpRequest, pk: int) -> HttpResponse:
    """Change the configuration of a node as text: also settings that have no form."""
    return _edit_json(request, _node(request, pk))


@requires(Capability.ADMINISTER)
@require_http_methods(["GET", "POST"])
def region_configuration_json(request: HttpRequest) -> HttpResponse:
    """Change the configuration of all as text."""
    return _edit_json(request, None)


def _edit_json(request: HttpRequest, found: Node | None) -> HttpResponse:
    present = configurations.newest(found)
    version = present.version if present else 0
    text = json.dumps(configurations.body_of(found), ensure_ascii=False, indent=2)
    error = ""
    if request.method == "POST":
        text = request.POST.get("text", "")
        try:
            body = json.loads(text)
            if not isinstance(body, dict):
                raise PermanentError("configuration-invalid", _("an object is wanted"))
            based_on = request.POST.get("based_on", "")
            version = int(based_on) if based_on.isdecimal() else version
            reason = request.POST.get("reason", "")
            configurations.save(found, body, reason=reason, based_on=version, request=request)
        except json.JSONDecodeError as broken:
            error = _("This is not JSON: line %(line)s: %(what)s") % {"line": broken.lineno, "what": broken.msg}
        except PermanentError as refusal:
            error = _why(refusal)
        else:
            messages.success(request, _("The new version is on its way."))
            return _back(found)
    context = {"node": found, "text": text, "error": error, "version": version}
    return render(request, "monitoring/configuration_json.html", context, status=422 if error else 200)


@requires(Capability.ADMINISTER)
@require_POST
def configuration_restore(request: HttpRequest, pk: int) -> HttpResponse:
    """Go back to a version: a new one with its body."""
    assert isinstance(request.user, User)
    row = get_object_or_404(NodeConfiguration, pk=pk)
    if row.node is not None:
        _node(request, row.node_id or 0)
    try:
        made = configurations.roll_back(row, request=request)
    except PermanentError as refusal:
        messages.error(request, _why(refusal))
    else:
        messages.success(
            request, _("Version %(new)s brings version %(old)s back.") % {"new": made.version, "old": row.version}
        )
    return _back(row.node)


@requires(Capability.ADMINISTER)
@require_POST
def configuration_follow(request: HttpRequest, pk: int) -> HttpResponse:
    """Have a node follow the region again."""
    found = _node(request, pk)
    configurations.follow_region(found, request=request)
    messages.success(request, _("The node has what all have from now on."))
    return _back(found)


def _back(found: Node | None) -> HttpResponse:
    return redirect("node_configuration", found.pk) if found else redirect("region_configuration")


def _why(refusal: PermanentError) -> str:
    if refusal.code == "configuration-changed":
        return _("Somebody else changed it meanwhile: look at the newest version and try again.")
    return _("It cannot be used: %(detail)s") % {"detail": refusal.detail}

"""The sites page, new sites and join codes, refused peers; health and metrics for machines."""

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.text import slugify
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, requires
from ris_central.catalogue.foreign import pacs_at
from ris_central.federation.actions import create_join_code
from ris_central.federation.models import Node
from ris_central.monitoring import actions, queries
from ris_central.organizations import actions as organizations
from ris_central.organizations import queries as organization_queries
from ris_central.organizations.forms import SiteForm
from ris_central.organizations.models import Site
from standards.errors import PermanentError

_JOIN_CODE = "join_code"
KIND_OF_NODE = {
    Site.Kind.OWN_PACS: Node.Kind.CLINIC,
    Site.Kind.GATEWAY: Node.Kind.GATEWAY,
    Site.Kind.CENTRE: Node.Kind.ARCHIVE,
}


@requires(Capability.SEE_SITES)
@require_GET
def sites(request: HttpRequest) -> HttpResponse:
    """Every site with the state of its nodes and its mirror; renews itself."""
    assert isinstance(request.user, User)
    states = queries.site_states(request.user)
    context = {"states": states, "refused": queries.refused_visible_to(request.user)[:20]}
    template = "monitoring/_sites.html" if request.headers.get("HX-Request") else "monitoring/sites.html"
    return render(request, template, context)


@requires(Capability.SEE_SITES)
@require_GET
def site(request: HttpRequest, pk: int) -> HttpResponse:
    """One site: nodes in detail, devices, people, refused peers; a join code right after it was made."""
    assert isinstance(request.user, User)
    state = next((one for one in queries.site_states(request.user) if one.site.pk == pk), None)
    found = get_object_or_404(organization_queries.visible_to(request.user), pk=pk)
    made_for, name, code = request.session.pop(_JOIN_CODE, (None, "", ""))
    context = {
        "state": state,
        "site": found,
        "people": organization_queries.people_of(found),
        "devices": found.devices.order_by("name"),
        "refused": queries.refused_visible_to(request.user).filter(node__site=found)[:20],
        "foreign": pacs_at(found),
        "join_name": name,
        "join_code": code if made_for == found.pk else "",
        "takes_node": found.kind in KIND_OF_NODE,
        "centre_url": request.build_absolute_uri("/").rstrip("/"),
    }
    return render(request, "monitoring/site.html", context)


@requires(Capability.ADMINISTER)
@require_http_methods(["GET", "POST"])
def site_new(request: HttpRequest) -> HttpResponse:
    """Add a site to the region."""
    form = SiteForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            made = organizations.add_site(request=request, **form.cleaned_data)
        except PermanentError as error:
            if error.code != "code-taken":
                raise
            form.add_error("code", _("Another site has this code or this prefix."))
        else:
            messages.success(request, _("The site is added. Make a join code for its node next."))
            return redirect("site", made.pk)
    return render(request, "monitoring/site_new.html", {"form": form}, status=422 if form.errors else 200)


@requires(Capability.ADMINISTER)
@require_POST
def join_code(request: HttpRequest, pk: int) -> HttpResponse:
    """A one-time code for a node of the site, shown once."""
    assert isinstance(request.user, User)
    found = get_object_or_404(organization_queries.visible_to(request.user), pk=pk, kind__in=KIND_OF_NODE)
    name = slugify(request.POST.get("name", "")) or found.code
    try:
        node, code = create_join_code(found, KIND_OF_NODE[Site.Kind(found.kind)], name, request=request)
    except PermanentError as error:
        messages.error(request, _("This node name belongs to another site.") if "taken" in error.code else str(error))
    else:
        request.session[_JOIN_CODE] = [found.pk, node.name, code]
    return redirect("site", found.pk)


@requires(Capability.CONNECT)
@require_POST
def admit(request: HttpRequest, pk: int) -> HttpResponse:
    """Let a refused peer in; the engineer then says what it is."""
    assert isinstance(request.user, User)
    refused = get_object_or_404(queries.refused_visible_to(request.user), pk=pk)
    try:
        device = actions.admit(refused, request)
    except PermanentError as error:
        messages.error(request, str(error))
        return redirect("site", refused.node.site_id)
    messages.success(request, _("Admitted. Say what it is: modality and character set."))
    return redirect("device", device.pk)


@require_GET
def healthz(request: HttpRequest) -> HttpResponse:
    """200 while the centre can serve people; a worker that is away is told, not a reason to take pages down."""
    parts = queries.health()
    serves = parts["database"] and parts["redis"]
    return JsonResponse({"status": "ok" if serves else "failed", **parts}, status=200 if serves else 503)

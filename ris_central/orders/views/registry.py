"""Devices, for engineers."""

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods

from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, requires
from ris_central.orders import actions, queries
from ris_central.orders.forms import DeviceForm
from ris_central.orders.models import Device
from ris_central.organizations import queries as organizations
from standards.errors import PermanentError


@requires(Capability.CONNECT)
@require_GET
def devices(request: HttpRequest) -> HttpResponse:
    """Devices of the sites of who asks."""
    found = queries.devices_visible_to(request.user).order_by("site__name", "name")
    return render(request, "orders/devices.html", {"devices": found})


@requires(Capability.CONNECT)
@require_http_methods(["GET", "POST"])
def device_new(request: HttpRequest) -> HttpResponse:
    """Connect a device."""
    return _form(request, None)


@requires(Capability.CONNECT)
@require_http_methods(["GET", "POST"])
def device(request: HttpRequest, pk: int) -> HttpResponse:
    """Change a device, or take it out of use."""
    return _form(request, get_object_or_404(queries.devices_visible_to(request.user), pk=pk))


def _form(request: HttpRequest, found: Device | None) -> HttpResponse:
    assert isinstance(request.user, User)
    sites = organizations.visible_to(request.user)
    form = DeviceForm(
        request.POST or None, instance=found, sites=sites, initial={} if found else {"site": sites.first()}
    )
    if request.method == "POST" and form.is_valid():
        try:
            actions.save_device(form.save(commit=False), request)
        except PermanentError as error:
            if error.code != "ae-title-taken":
                raise
            form.add_error("ae_title", _("Another device of this site has this AE title."))
        else:
            messages.success(request, _("Saved. The node has it as soon as it is connected."))
            return redirect("devices")
    context = {"form": form, "device": found}
    return render(request, "orders/device.html", context, status=422 if form.errors else 200)

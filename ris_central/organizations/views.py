"""People of the region, for its administrator. (Sites have their pages in monitoring, beside the state of nodes.)"""

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from ris_central.accounts import actions as accounts
from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, requires
from ris_central.organizations import actions, queries
from ris_central.organizations.forms import PersonForm
from standards.errors import PermanentError

_ONE_TIME = "one_time_password"


@requires(Capability.ADMINISTER)
@require_GET
def people(request: HttpRequest) -> HttpResponse:
    """Everybody, with role and sites."""
    found = queries.people_visible_to(request.user)  # type: ignore[arg-type]
    return render(request, "organizations/people.html", {"people": found})


@requires(Capability.ADMINISTER)
@require_http_methods(["GET", "POST"])
def person_new(request: HttpRequest) -> HttpResponse:
    """A new person with a one-time password."""
    form = PersonForm(request.POST or None, initial={"language": "ru"})
    if request.method == "POST" and form.is_valid():
        try:
            person, password = actions.add_person(request=request, **form.cleaned_data)
        except PermanentError as error:
            if error.code != "username-taken":
                raise
            form.add_error("username", _("This user name is taken."))
        else:
            request.session[_ONE_TIME] = [person.pk, password]
            return redirect("person", person.pk)
    return render(request, "organizations/person.html", {"form": form}, status=422 if form.errors else 200)


@requires(Capability.ADMINISTER)
@require_http_methods(["GET", "POST"])
def person(request: HttpRequest, pk: int) -> HttpResponse:
    """Change a person; shows a one-time password once, right after it was made."""
    found = get_object_or_404(queries.people_visible_to(request.user), pk=pk)  # type: ignore[arg-type]
    initial = {
        "full_name": f"{found.last_name} {found.first_name}".strip(),
        "role": found.role,
        "position": found.position,
        "language": found.language,
        "sites": [membership.site_id for membership in found.memberships.all()],
    }
    form = PersonForm(request.POST or None, initial=initial, person=found)
    if request.method == "POST" and form.is_valid():
        if found == request.user and form.cleaned_data["role"] != found.role:
            form.add_error("role", _("You cannot change your own role: another administrator can."))
        else:
            sites = form.cleaned_data.pop("sites")
            accounts.edit_user(found, request=request, **form.cleaned_data)
            actions.set_sites(found, sites, request)
            messages.success(request, _("Saved."))
            return redirect("people")
    made_for, password = request.session.pop(_ONE_TIME, (None, ""))
    context = {
        "form": form,
        "person": found,
        "password": password if made_for == found.pk else "",
        "is_self": found == request.user,
    }
    return render(request, "organizations/person.html", context, status=422 if form.errors else 200)


@requires(Capability.ADMINISTER)
@require_POST
def person_password(request: HttpRequest, pk: int) -> HttpResponse:
    """A new one-time password, shown once."""
    found: User = get_object_or_404(queries.people_visible_to(request.user), pk=pk)  # type: ignore[arg-type]
    request.session[_ONE_TIME] = [found.pk, accounts.reset_password(found, request)]
    return redirect("person", found.pk)


@requires(Capability.ADMINISTER)
@require_POST
def person_active(request: HttpRequest, pk: int) -> HttpResponse:
    """Keep a person out, or let them in again; nobody can lock themselves out."""
    found: User = get_object_or_404(queries.people_visible_to(request.user), pk=pk)  # type: ignore[arg-type]
    if found == request.user:
        messages.error(request, _("You cannot close your own account: another administrator can."))
    else:
        accounts.set_active(found, request.POST.get("active") == "1", request)
        messages.success(request, _("Saved."))
    return redirect("person", found.pk)

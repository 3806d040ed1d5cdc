"""Search for patients, and their page."""

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods

from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, requires
from ris_central.audit.actions import record_view
from ris_central.organizations.queries import sites_of
from ris_central.patients import actions, listeners, queries
from ris_central.patients.forms import PatientForm
from ris_central.patients.models import Patient
from standards.person_names import display

PAGE = 25


@requires(Capability.SEE_PATIENTS)
@require_GET
def patients(request: HttpRequest) -> HttpResponse:
    """Find as you type. What was searched for is recorded when a page of results is opened, not at each key."""
    text = request.GET.get("q", "").strip()
    found = queries.search(queries.visible_to(request.user), text).prefetch_related("identifiers")
    page = Paginator(found, PAGE).get_page(request.GET.get("page"))
    context = {"page": page, "text": text, "elsewhere": actions.search_region(request, text)}
    template = "patients/_rows.html" if request.headers.get("HX-Request") else "patients/patients.html"
    return render(request, template, context)


@requires(Capability.SEE_PATIENTS)
@require_GET
def patient(request: HttpRequest, pk: int) -> HttpResponse:
    """Who it is, under which numbers, and what the apps above know of them."""
    found = get_object_or_404(queries.visible_to(request.user), pk=pk)
    record_view("patient.viewed", request=request, entity=found, patient_key=found.pk)
    context = {
        "patient": found,
        "identifiers": found.identifiers.order_by("issuer", "value"),
        "panels": listeners.panels(request, found),
    }
    return render(request, "patients/patient.html", context)


@requires(Capability.BOOK)
@require_http_methods(["GET", "POST"])
def patient_new(request: HttpRequest) -> HttpResponse:
    """A new patient of the registrar's site; namesakes with the same birth date are shown first."""
    assert isinstance(request.user, User)
    sites = list(sites_of(request.user))
    form = PatientForm(request.POST or None)
    alike: list[Patient] = []
    if request.method == "POST" and form.is_valid():
        if not sites:
            form.add_error(None, _("You are not a member of any site: ask the regional administrator."))
        else:
            alike = list(queries.alike(form.cleaned_data["name"], form.cleaned_data["birth_date"])[:5])
            if request.POST.get("sure") == "1" or not alike:
                made = actions.create(site=sites[0], request=request, **form.cleaned_data)
                messages.success(request, _("The patient is registered."))
                return redirect("patient", made.pk)
            actions.open_found(request, alike)
    status = 422 if form.errors else 200
    return render(request, "patients/patient_form.html", {"form": form, "alike": alike}, status=status)


@requires(Capability.BOOK)
@require_http_methods(["GET", "POST"])
def patient_edit(request: HttpRequest, pk: int) -> HttpResponse:
    """Correct what is known of a patient."""
    found = get_object_or_404(queries.visible_to(request.user), pk=pk)
    initial = {
        "name": display(found.name),
        "birth_date": found.birth_date,
        "sex": found.sex,
        "phone": found.phone,
    }
    form = PatientForm(request.POST or None, initial=initial)
    if request.method == "POST" and form.is_valid():
        actions.edit(found, request=request, **form.cleaned_data)
        messages.success(request, _("Saved."))
        return redirect("patient", found.pk)
    status = 422 if form.errors else 200
    return render(request, "patients/patient_form.html", {"form": form, "patient": found}, status=status)

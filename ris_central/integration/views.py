"""The page of the HL7 traffic: what came, what was answered, what waits to leave. No patient is named on it."""

from django import forms
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from ris_central.accounts.permissions import Capability, requires
from ris_central.integration import actions
from ris_central.integration.models import Hl7Message, Hl7Outgoing, Hl7Receiver
from ris_central.integration.results import CODECS


class ReceiverForm(forms.ModelForm):  # type: ignore[type-arg]  # not generic at run time
    """Where results are sent."""

    class Meta:
        model = Hl7Receiver
        fields = ["name", "host", "port", "character_set", "application", "facility", "is_active"]
        widgets = {"character_set": forms.Select(choices=[(name, name) for name in CODECS])}


@requires(Capability.CONNECT)
@require_GET
def traffic(request: HttpRequest) -> HttpResponse:
    """Messages newest first, refused ones alone on request, and the outbox of each receiver."""
    refused = request.GET.get("answer") == "refused"
    messages = Hl7Message.objects.defer("raw", "answer").order_by("-pk")
    if refused:
        messages = messages.exclude(acknowledgment_code="AA")
    waiting = Hl7Outgoing.objects.filter(delivered_at=None).defer("payload").select_related("receiver").order_by("pk")
    context = {
        "page": Paginator(messages, 50).get_page(request.GET.get("page")),
        "refused": refused,
        "waiting": waiting[:100],
        "receivers": Hl7Receiver.objects.order_by("name"),
    }
    return render(request, "integration/traffic.html", context)


@requires(Capability.ADMINISTER)
def receiver(request: HttpRequest, pk: int | None = None) -> HttpResponse:
    """Add a receiver or change one."""
    known = get_object_or_404(Hl7Receiver, pk=pk) if pk else None
    form = ReceiverForm(request.POST or None, instance=known)
    for field in form.fields.values():
        css: dict[type, str] = {forms.CheckboxInput: "form-check-input", forms.Select: "form-select"}
        field.widget.attrs["class"] = css.get(type(field.widget), "form-control")
    if request.method == "POST" and form.is_valid():
        actions.save_receiver(form.instance, request)
        return redirect("hl7")
    return render(request, "integration/receiver.html", {"form": form, "receiver": known})


@requires(Capability.CONNECT)
@require_POST
def send_now(request: HttpRequest, pk: int) -> HttpResponse:
    """Try a waiting message at once."""
    actions.send_now(get_object_or_404(Hl7Outgoing, pk=pk, delivered_at=None), request)
    return redirect("hl7")

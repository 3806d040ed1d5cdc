"""What came back with differences: a list a node, by which rule each was decided, and a button to decide otherwise."""

from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.formats import date_format
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET, require_POST

from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, can, requires
from ris_central.orders import accessions, deciding, queries
from ris_central.orders.models import ReturnDifference, ServiceRequest
from ris_central.orders.placing import slot_of
from ris_central.orders.rules import rule_of
from ris_central.orders.views.booking import refusal
from standards.errors import PermanentError
from standards.person_names import display

Side = ReturnDifference.Side
MOST = 200
TITLES: dict[str, str | Promise] = {
    "cancelled-but-examined": gettext_lazy("Cancelled at the centre, examined at the node"),
    "cancelled-but-changed": gettext_lazy("Cancelled at the centre, changed at the node"),
    "changed-but-cancelled": gettext_lazy("Changed at the centre, cancelled at the node"),
    "examined-but-cancelled": gettext_lazy("Examined, cancelled at the node"),
    "slot-taken": gettext_lazy("The time was taken at the node"),
    "slot-shifted": gettext_lazy("Two examinations at one time"),
    "patient-alike": gettext_lazy("Maybe one patient twice"),
    "patient-differs": gettext_lazy("One number, two identities"),
    "patient-elsewhere": gettext_lazy("Patient of another site"),
    "patient-corrected": gettext_lazy("Patient corrected at the node"),
    "patient-unknown": gettext_lazy("Unknown patient"),
    "accession-twice": gettext_lazy("Accession number used twice"),
    "emergency-number": gettext_lazy("Emergency accession number"),
    "device-unknown": gettext_lazy("Unknown device"),
    "draft-at-both-ends": gettext_lazy("Report begun at both ends"),
}
FIELDS: dict[str, str | Promise] = {
    "device": gettext_lazy("Device"),
    "slot": gettext_lazy("Time"),
    "description": gettext_lazy("Procedure"),
    "reason": gettext_lazy("Reason"),
    "referring_physician_name": gettext_lazy("Referring physician"),
    "priority": gettext_lazy("Priority"),
    "patient_name": gettext_lazy("Patient's name"),
    "patient_birth_date": gettext_lazy("Birth date"),
    "patient_sex": gettext_lazy("Sex"),
}
OTHERWISE: dict[tuple[str, str], str | Promise] = {
    ("slot-taken", Side.CENTRE): gettext_lazy("Give the booking its time back"),
    ("slot-taken", Side.NODE): gettext_lazy("Leave the time to the node's examination"),
    ("patient-alike", Side.CENTRE): gettext_lazy("One person: merge"),
    ("patient-alike", Side.NODE): gettext_lazy("Two persons: undo the merge"),
    ("patient-elsewhere", Side.NODE): gettext_lazy("Treated here: open earlier studies"),
    ("patient-elsewhere", Side.CENTRE): gettext_lazy("Close earlier studies again"),
    ("cancelled-but-examined", Side.CENTRE): gettext_lazy("Cancel the order all the same"),
    ("cancelled-but-examined", Side.NODE): gettext_lazy("Open the order again"),
    ("cancelled-but-changed", Side.NODE): gettext_lazy("Open the order again"),
    ("cancelled-but-changed", Side.CENTRE): gettext_lazy("Cancel the order all the same"),
    ("changed-but-cancelled", Side.NODE): gettext_lazy("Cancel the order"),
    ("changed-but-cancelled", Side.CENTRE): gettext_lazy("Keep the booking"),
}


@dataclass(frozen=True)
class Row:
    """A difference as people read it. ``choices``: ``(side, words on the button)``."""

    difference: ReturnDifference
    title: str
    sentence: str
    before: str
    node_value: str
    centre_value: str
    choices: list[tuple[str, str]]
    links: list[tuple[str, str]]


@requires(Capability.SEE_SCHEDULE)
@require_GET
def returned(request: HttpRequest) -> HttpResponse:
    """Differences of the person's sites, those that need a decision first."""
    found = queries.differences_visible_to(request.user)
    wanted = request.GET.get("node", "")
    open_only = "all" not in request.GET
    shown = found.filter(node__name=wanted) if wanted else found
    if open_only:
        shown = shown.exclude(state=ReturnDifference.State.BY_PERSON)
    rows = [_row(one) for one in shown.order_by("-state", "-pk")[:MOST]]
    nodes = [(node, *accessions.remaining(node)) for node in queries.alone_nodes(request.user)]
    context: dict[str, Any] = {
        "rows": rows,
        "nodes": nodes,
        "wanted": wanted,
        "open_only": open_only,
        "may_decide": _may_decide(request.user),
    }
    return render(request, "orders/returned.html", context)


@requires(Capability.BOOK, Capability.ADMINISTER)
@require_POST
def returned_decide(request: HttpRequest, pk: int) -> HttpResponse:
    """Decide one otherwise, or say that one has seen it and agrees."""
    assert isinstance(request.user, User)
    difference = get_object_or_404(queries.differences_visible_to(request.user), pk=pk)
    try:
        deciding.decide(difference, request.POST.get("side", ""), request.user, request)
    except PermanentError as error:
        messages.error(request, refusal(error))
    else:
        messages.success(request, _("Decided. It can be decided otherwise again."))
    return redirect(f"{reverse('returned')}?all=1#difference-{pk}")


def _may_decide(user: Any) -> bool:
    return can(user, Capability.BOOK) or can(user, Capability.ADMINISTER)


def _row(difference: ReturnDifference) -> Row:
    zone = ZoneInfo(difference.site.time_zone)
    field = difference.field or difference.detail.get("corrected", "")
    title = str(TITLES.get(difference.rule, difference.rule))
    if difference.rule == "field":
        title = _("Changed at both ends: %(field)s") % {"field": FIELDS[difference.field]}
    before, at_node, at_centre = (
        _words(difference, field, value, zone)
        for value in (difference.before, difference.node_value, difference.centre_value)
    )
    return Row(
        difference,
        title,
        str(rule_of(difference).sentence),
        before,
        at_node,
        at_centre,
        choices=[(side, _button(difference, side)) for side in deciding.choices_of(difference)],
        links=_links(difference),
    )


def _button(difference: ReturnDifference, side: str) -> str:
    plain = _("Take the node's") if side == Side.NODE else _("Take the centre's")
    return str(OTHERWISE.get((difference.rule, side), plain))


def _words(difference: ReturnDifference, field: str, value: str, zone: ZoneInfo) -> str:
    if not value:
        return ""
    if difference.rule == "patient-differs":
        name, born, sex = value.split("|")
        return ", ".join(part for part in (display(name), _date(born), sex) if part)
    if field == "slot" or difference.rule == "slot-shifted" or (difference.rule == "slot-taken" and "/" in value):
        slot = slot_of(value)
        starts, ends = slot.lower.astimezone(zone), slot.upper.astimezone(zone)
        return f"{date_format(starts, 'd.m.Y H:i')}–{date_format(ends, 'H:i')}"
    if field in ("patient_name", "referring_physician_name"):
        return display(value)
    if field == "patient_birth_date":
        return _date(value)
    if field == "priority":
        return str(ServiceRequest.Priority(value).label)
    return display(value) if "^" in value else value


def _date(value: str) -> str:
    return f"{value[6:8]}.{value[4:6]}.{value[:4]}" if len(value) == 8 else value


def _links(difference: ReturnDifference) -> list[tuple[str, str]]:
    links = []
    order = difference.service_request
    step = order.steps.order_by("pk").first() if order else None
    if step is not None and order is not None:
        links.append((reverse("step", args=[step.pk]), order.accession_number))
    if difference.patient_id:
        links.append((reverse("patient", args=[difference.patient_id]), _("Patient")))
    if "other" in difference.detail:
        links.append((reverse("patient", args=[difference.detail["other"]]), _("The other patient")))
    if "study" in difference.detail:
        links.append((reverse("study", args=[difference.detail["study"]]), _("Study and both texts")))
    return links

"""What every page knows: the region's name and the places this person may go to."""

from typing import Any, NamedTuple

from django.conf import settings
from django.http import HttpRequest
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from ris_central.accounts.permissions import Capability, can

C = Capability


class Entry(NamedTuple):
    """A place in the navigation: URL name, label, icon (of bootstrap-icons), who sees it."""

    url_name: str
    label: str | Promise
    icon: str
    capabilities: tuple[Capability, ...]


NAVIGATION = (
    Entry("worklist", _("Worklist"), "card-list", (C.SEE_STUDIES,)),
    Entry("schedule", _("Schedule"), "calendar3", (C.SEE_SCHEDULE,)),
    Entry("patients", _("Patients"), "people", (C.SEE_PATIENTS,)),
    Entry("consults", _("Consults"), "chat-left-text", (C.CONSULT, C.OPINE)),
    Entry("discs", _("Discs"), "disc", (C.BURN,)),
    Entry("sites", _("Sites"), "hospital", (C.SEE_SITES,)),
    Entry("devices", _("Devices"), "router", (C.CONNECT,)),
    Entry("hl7", "HL7", "arrow-left-right", (C.CONNECT,)),
    Entry("people", _("People"), "person-gear", (C.ADMINISTER,)),
    Entry("audit", _("Audit"), "shield-check", (C.READ_AUDIT,)),
)


_ASIDE = ("/password/", "/home/")


def region(request: HttpRequest) -> dict[str, Any]:
    """``region_name``; ``navigation``: list of {url, label, icon, active}; ``capabilities`` of the user by name."""
    user = getattr(request, "user", None)
    entries: list[dict[str, Any]] = []
    if user is not None and not getattr(user, "must_change_password", False):
        for entry in NAVIGATION:
            if any(can(user, capability) for capability in entry.capabilities):
                entries.append({"url": reverse(entry.url_name), "label": entry.label, "icon": entry.icon})
        inside = [entry["url"] for entry in entries if request.path.startswith(entry["url"])]
        here = max(inside, key=len, default="")
        for shown in entries:
            shown["active"] = shown["url"] == here and (here != "/" or not request.path.startswith(_ASIDE))
    return {
        "region_name": settings.CONFIG.region_name,
        "navigation": entries,
        "capabilities": {c.name.lower(): user is not None and can(user, c) for c in Capability},
    }

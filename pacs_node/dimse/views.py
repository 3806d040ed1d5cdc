"""The page of the in-line proxy: whether it works, what its rules do, which devices lie, what was not copied."""

from datetime import datetime
from typing import Any, Final

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from gateway.proxy import journal
from pacs_node.clinic.views import engineer_required
from pacs_node.config import config
from pacs_node.proxying import figures, folder

_SHOWN: Final = 50


def proxy_state() -> dict[str, Any]:
    """What the page shows, read from the proxy's own files."""
    base = folder()
    found = figures()
    opened = found.state.get("open", []) if found.serves else []
    missing = list(journal.lines(base, "missing"))
    events = list(journal.lines(base, "events"))
    return {
        "configured": bool(config().proxy_pacs_host),
        "serves": found.serves,
        "at": _when(found.state.get("at", "")),
        "rules": found.state.get("rules", {}),
        "counts": found.counts,
        "associations": sum(found.by_label("associations").values()),
        "blindly": found.counts["passed-blindly"],
        "open": [{**one, "since": _when(one["since"])} for one in opened[:_SHOWN]],
        "open_count": len(opened),
        "charsets": sorted(found.state.get("charsets", []), key=lambda entry: -entry["instances"]),
        "destinations": found.waiting,
        "missing_count": len(missing),
        "missing": [_shown(line) for line in missing[: -_SHOWN - 1 : -1]],
        "events": [_shown(line) for line in events[: -_SHOWN - 1 : -1]],
    }


def _when(text: str) -> datetime | None:
    """A time of the journal, so that the page shows it in the zone of the site."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _shown(line: dict[str, Any]) -> dict[str, Any]:
    """A line of a journal with who it is about and why."""
    who = ("calling_ae_title", "called_ae_title", "destination", "address")
    return {
        "at": _when(line.get("at", "")),
        "event": line.get("event", ""),
        "who": next((str(line[key]) for key in who if line.get(key)), "—"),
        "instance": line.get("sop_instance_uid") or "—",
        "why": line.get("error") or line.get("reason", ""),
    }


@engineer_required
@require_GET
def proxy_page(request: HttpRequest) -> HttpResponse:
    """How the proxy is. Samples of texts are names of patients, so this page is for the engineers of the site."""
    return render(request, "dimse/proxy.html", {**proxy_state(), "engineer": True})

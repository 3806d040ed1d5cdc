"""The page of the in-line proxy: whether it works, what its rules do, which devices lie, what was not copied."""

import time
from calendar import timegm
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from gateway.proxy import journal
from pacs_node.clinic.views import engineer_required
from pacs_node.config import config
from pacs_node.proxying import folder

_FRESH_SECONDS: Final = 15.0
_SHOWN: Final = 50


@dataclass(frozen=True)
class Waiting:
    """What lies in the spool for one destination."""

    destination: str
    waiting: int
    failed: int
    why: str


def proxy_state() -> dict[str, Any]:
    """What the page shows, read from the proxy's own files."""
    base = folder()
    state = journal.read_state(base)
    missing = list(journal.lines(base, "missing"))
    events = list(journal.lines(base, "events"))
    serves = bool(state) and time.time() - _seconds(state.get("at", "")) < _FRESH_SECONDS
    return {
        "configured": bool(config().proxy_pacs_host),
        "serves": serves,
        "state": state,
        "rules": state.get("rules", {}),
        "counts": state.get("counts", {}),
        "charsets": sorted(state.get("charsets", []), key=lambda entry: -entry["instances"]),
        "destinations": _waiting(state.get("destinations", {})),
        "missing_count": len(missing),
        "missing": [_shown(line) for line in missing[: -_SHOWN - 1 : -1]],
        "events": [_shown(line) for line in events[: -_SHOWN - 1 : -1]],
    }


def _shown(line: dict[str, Any]) -> dict[str, str]:
    """A line of a journal with who it is about and why."""
    who = ("calling_ae_title", "called_ae_title", "destination", "address")
    return {
        "at": line.get("at", ""),
        "event": line.get("event", ""),
        "who": next((str(line[key]) for key in who if line.get(key)), "—"),
        "instance": line.get("sop_instance_uid") or "—",
        "why": line.get("error") or line.get("reason", ""),
    }


def _seconds(at: str) -> float:
    try:
        return timegm(time.strptime(at, "%Y-%m-%dT%H:%M:%SZ"))
    except ValueError:
        return 0.0


def _waiting(reasons: dict[str, str]) -> list[Waiting]:
    spool = folder() / "spool"
    names = {path.name for kind in ("to", "failed") for path in spool.glob(f"{kind}/*")}
    return [
        Waiting(
            name,
            sum(1 for _ in islice(spool.glob(f"to/{name}/*.dcm"), 100_000)),
            sum(1 for _ in islice(spool.glob(f"failed/{name}/*.dcm"), 100_000)),
            reasons.get(name, ""),
        )
        for name in sorted(names)
    ]


@engineer_required
@require_GET
def proxy_page(request: HttpRequest) -> HttpResponse:
    """How the proxy is. Samples of texts are names of patients, so this page is for the engineers of the site."""
    return render(request, "dimse/proxy.html", {**proxy_state(), "engineer": True})

"""What waits for the centre and the archive, why, and how long the node can live alone."""

from datetime import timedelta
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import gettext as _
from django.utils.translation import pgettext_lazy
from django.views.decorators.http import require_GET

from gateway import queries as gateway
from gateway import rules
from pacs_node.clinic.queries import node_state
from pacs_node.offline import queries
from pacs_node.offline.views.registration import about

URGENCY_WORDS = {
    "stat": pgettext_lazy("urgency", "Emergency"),
    "urgent": pgettext_lazy("urgency", "Urgent"),
    "routine": pgettext_lazy("urgency", "Routine"),
}
_ROSTER_SOON = timedelta(days=7)
_AWAY = timedelta(minutes=2)
_SPACE_SOON_DAYS = 3


def _sentence(why: queries.Holding, checkpoints: list[str]) -> str:
    """Why some images wait, and how many."""
    until = date_format(timezone.localtime(why.until), "SHORT_DATETIME_FORMAT") if why.until else ""
    sentences = {
        "": _("in the queue: they leave in their turn"),
        "failed": _("refused there: see the last trouble"),
        "checkpoint": _("waits for the checkpoint network %(networks)s") % {"networks": ", ".join(checkpoints)},
        "night": _("waits for the night (%(until)s)") % {"until": until},
        "rate": _("waits for an hour at which the link may be used (%(until)s)") % {"until": until},
        "on-demand": _("leaves when somebody asks for it"),
        "held": _("held back by a person"),
    }
    return f"{why.instances}: {sentences.get(why.reason, why.reason)}"


@login_required
@require_GET
def waiting(request: HttpRequest) -> HttpResponse:
    """One page that says whether the van may drive on."""
    now = timezone.now()
    roster, space = queries.roster_expires(), queries.space()
    state = node_state()
    checkpoints = gateway.configuration().mirror.checkpoints
    seen = state.joined.centre_seen_at if state.joined else None
    context: dict[str, Any] = about(request) | {
        "rows": [
            (URGENCY_WORDS[row.urgency], row, [_sentence(why, checkpoints) for why in row.why])
            for row in queries.waiting_by_urgency()
        ],
        "checkpoints": checkpoints,
        "at_checkpoint": rules.in_checkpoint(checkpoints),
        "away": seen is None or now - seen > _AWAY,
        "state": state,
        "untold": queries.untold_steps(),
        "now": now,
        "roster": roster,
        "roster_days": (roster - now).days if roster else None,
        "roster_soon": roster is not None and roster - now < _ROSTER_SOON,
        "space": space,
        "space_soon": space.days is not None and space.days < _SPACE_SOON_DAYS,
    }
    template = "offline/waiting_body.html" if "HX-Request" in request.headers else "offline/waiting.html"
    return render(request, template, context)

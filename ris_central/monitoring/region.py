"""The monitoring page of the region, as a page and as a table; alerts and where they go."""

import csv
import io
from datetime import date

from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.dateparse import parse_date
from django.utils.translation import get_language
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, requires
from ris_central.audit.actions import record
from ris_central.monitoring import alerts as watching
from ris_central.monitoring import figures, queries, tasks
from ris_central.monitoring.forms import ChannelForm
from ris_central.monitoring.models import AlertChannel, AlertMessage

HISTORY = 100


def _days(request: HttpRequest) -> tuple[date | None, date | None]:
    return _day(request.GET.get("since", "")), _day(request.GET.get("until", ""))


def _day(text: str) -> date | None:
    try:
        return parse_date(text)
    except ValueError:
        return None


@requires(Capability.SEE_SITES)
@require_GET
def region(request: HttpRequest) -> HttpResponse:
    """Every organisation: devices and studies by modality, volume, studies a day, queue, mirror, disk."""
    assert isinstance(request.user, User)
    since, until = _days(request)
    context = {
        "region": figures.region(request.user, since, until),
        "since": since,
        "until": until,
        "open_alerts": queries.alerts_visible_to(request.user).filter(closed_at=None).count(),
    }
    return render(request, "monitoring/region.html", context)


def plain(value: object) -> str:
    """A cell that no spreadsheet takes for a formula."""
    text = "" if value is None else str(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


@requires(Capability.SEE_SITES)
@require_GET
def region_csv(request: HttpRequest) -> HttpResponse:
    """The same figures as CSV: one row an organisation and modality; UTF-8 with the mark that spreadsheets want."""
    assert isinstance(request.user, User)
    found = figures.region(request.user, *_days(request))
    out = io.StringIO()
    writer = csv.writer(out, delimiter=";" if get_language() == "ru" else ",")
    writer.writerow(
        [
            *(_("Organisation"), _("In use since"), _("Modality"), _("Devices"), _("Studies"), _("Archive, bytes")),
            *(_("Studies a day"), _("Queue age, s"), _("Studies not safe"), _("Days until the disk is full")),
        ]
    )
    for one in found.organisations:
        days = None if one.days_until_full is None else round(one.days_until_full)
        rest = [one.bytes, round(one.a_day, 1), one.queue_age, one.behind, days]
        for name in found.modalities:
            if one.devices.get(name) or one.studies.get(name):
                row = [one.site.name, one.since, name, one.devices.get(name, 0), one.studies.get(name, 0)]
                writer.writerow([plain(cell) for cell in [*row, *("",) * len(rest)]])
        total = [one.site.name, one.since, _("Total"), one.devices_total, one.studies_total]
        writer.writerow([plain(cell) for cell in [*total, *rest]])
    answer = HttpResponse("\ufeff" + out.getvalue(), content_type="text/csv; charset=utf-8")
    answer["Content-Disposition"] = f'attachment; filename="region-{timezone.localdate().isoformat()}.csv"'
    return answer


@requires(Capability.SEE_SITES)
@require_GET
def alerts(request: HttpRequest) -> HttpResponse:
    """What is wrong now, what was, and whether people were told."""
    assert isinstance(request.user, User)
    visible = queries.alerts_visible_to(request.user).prefetch_related("messages__channel")

    def shown(rows: object) -> list[dict[str, object]]:
        return [
            {"alert": one, "text": watching.sentence(one), "advice": watching.advice(one)}
            for one in rows  # type: ignore[attr-defined]
        ]

    context = {
        "open": shown(visible.filter(closed_at=None)),
        "over": shown(visible.exclude(closed_at=None)[:HISTORY]),
        "channels": AlertChannel.objects.select_related("site"),
    }
    return render(request, "monitoring/alerts.html", context)


@requires(Capability.ADMINISTER)
@require_http_methods(["GET", "POST"])
def channel(request: HttpRequest, pk: int | None = None) -> HttpResponse:
    """Where alerts go: a new place or a known one."""
    found = get_object_or_404(AlertChannel, pk=pk) if pk is not None else None
    form = ChannelForm(request.POST if request.method == "POST" else None, instance=found)
    if request.method == "POST" and form.is_valid():
        with transaction.atomic():
            saved = form.save()
            record("alert-channel.saved", request=request, entity=saved, detail={"target": saved.target})
        messages.success(request, _("Saved. Send a test to see whether it arrives."))
        return redirect("alert_channel", saved.pk)
    context = {
        "form": form,
        "channel": found,
        "sent": found.messages.select_related("alert").order_by("-pk")[:20] if found else [],
    }
    return render(request, "monitoring/alert_channel.html", context, status=422 if form.errors else 200)


@requires(Capability.ADMINISTER)
@require_POST
def channel_test(request: HttpRequest, pk: int) -> HttpResponse:
    """Send a test there."""
    found = get_object_or_404(AlertChannel, pk=pk)
    AlertMessage.objects.create(channel=found, event="test", next_attempt_at=timezone.now())
    transaction.on_commit(tasks.send.delay)
    messages.success(request, _("A test is on its way; its fate stands below."))
    return redirect("alert_channel", found.pk)


@requires(Capability.ADMINISTER)
@require_POST
def channel_remove(request: HttpRequest, pk: int) -> HttpResponse:
    """Send nothing there any more, and forget it."""
    found = get_object_or_404(AlertChannel, pk=pk)
    with transaction.atomic():
        record("alert-channel.removed", request=request, entity=found, detail={"target": found.target})
        found.delete()
    messages.success(request, _("Removed."))
    return redirect("alerts")

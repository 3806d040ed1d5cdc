"""The day of a site: columns are devices, rows are times, a free place is a link to book it."""

from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_GET

from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, can, requires
from ris_central.orders import queries
from ris_central.orders.models import Device, ScheduledProcedureStep
from ris_central.orders.views.booking import known_patient
from ris_central.organizations.models import Site
from ris_central.patients.models import Patient

ROW = timedelta(minutes=30)
FIRST, LAST = 8, 20


@dataclass
class Block:
    """What stands at one place of the grid: steps of a device, or free time. Rows and columns count from 1."""

    row: int
    span: int
    column: int
    device: Device
    starts_at: datetime
    steps: list[ScheduledProcedureStep] = field(default_factory=list)


def day_of(request: HttpRequest, zone: ZoneInfo) -> date:
    """The day that was asked for, else today at the site."""
    try:
        return date.fromisoformat(request.GET.get("day", ""))
    except ValueError:
        return timezone.now().astimezone(zone).date()


@requires(Capability.SEE_SCHEDULE)
@require_GET
def schedule(request: HttpRequest) -> HttpResponse:
    """One day at one site; it renews itself while it is open."""
    assert isinstance(request.user, User)
    sites = list(queries.sites_with_devices(request.user))
    site = next((one for one in sites if one.code == request.GET.get("site")), sites[0] if sites else None)
    context: dict[str, Any] = {"sites": sites, "site": site, "patient": known_patient(request)}
    if site is not None:
        context |= _day(request, site)
        context["rebook"] = list(queries.to_rebook(request.user, site)[:20])
        context["differences"] = queries.unseen_differences(request.user)
    template = "orders/_day.html" if request.headers.get("HX-Request") else "orders/schedule.html"
    return render(request, template, context)


def _day(request: HttpRequest, site: Site) -> dict[str, Any]:
    zone = ZoneInfo(site.time_zone)
    day = day_of(request, zone)
    devices = list(queries.devices_visible_to(request.user).filter(site=site, is_active=True).exclude(modality=""))
    steps = list(queries.steps_of_day(queries.steps_visible_to(request.user), site, day))
    start, end = queries.bounds(day, zone)
    opening, closing = datetime.combine(day, time(FIRST), zone), datetime.combine(day, time(LAST), zone)
    for step in steps:
        opening = min(opening, max(start, step.slot.lower.astimezone(zone)).replace(minute=0, second=0, microsecond=0))
        closing = max(closing, min(end, step.slot.upper.astimezone(zone)))
    rows = -(-int((closing - opening).total_seconds()) // int(ROW.total_seconds()))
    times = [opening + ROW * number for number in range(rows)]
    blocks = [
        block
        for column, device in enumerate(devices, start=2)
        for block in _column([step for step in steps if step.device_id == device.pk], device, column, times)
    ]
    now = timezone.now()
    return {
        "day": day,
        "today": now.astimezone(zone).date(),
        "previous": day - timedelta(days=1),
        "next": day + timedelta(days=1),
        "devices": devices,
        "times": times,
        "blocks": blocks,
        "zone": zone,
        "now": now,
        "booked": len(steps),
    }


def _column(steps: list[ScheduledProcedureStep], device: Device, column: int, times: list[datetime]) -> list[Block]:
    """Blocks of one device from top to bottom; steps that share a row share a block."""
    blocks: list[Block] = []
    row = 0
    while row < len(times):
        block = Block(row + 2, 1, column, device, times[row])
        end = row + 1
        waiting = [step for step in steps if step.slot.lower < times[row] + ROW and step.slot.upper > times[row]]
        while waiting:
            block.steps += waiting
            latest = max(step.slot.upper for step in block.steps)
            while end < len(times) and times[end] < latest:
                end += 1
            upto = times[end] if end < len(times) else times[-1] + ROW
            waiting = [
                step
                for step in steps
                if step not in block.steps and step.slot.lower < upto and step.slot.upper > times[row]
            ]
        block.span = end - row
        blocks.append(block)
        row = end
    return blocks


def patient_panel(request: HttpRequest, patient: Patient) -> dict[str, Any] | None:
    """The patient's orders that this person may see, for the patient page."""
    orders = list(
        queries.visible_to(request.user)
        .filter(patient=patient)
        .select_related("site")
        .prefetch_related("steps__device")
        .order_by("-created_at")[:50]
    )
    return {"orders": orders} if orders or can(request.user, Capability.SEE_SCHEDULE) else None

"""Which orders, devices and steps a person may see; the day of a site; the next free slot."""

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from django.contrib.auth.models import AnonymousUser
from django.db.models import QuerySet

from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, can
from ris_central.federation.models import Node
from ris_central.orders.models import Device, ReturnDifference, ScheduledProcedureStep, ServiceRequest
from ris_central.orders.transitions import LIVE
from ris_central.organizations import queries as organizations
from ris_central.organizations.models import Site


def visible_to(user: User | AnonymousUser) -> QuerySet[ServiceRequest]:
    """Orders of the sites of the user, for roles that see the schedule or studies."""
    if not isinstance(user, User) or not (can(user, Capability.SEE_SCHEDULE) or can(user, Capability.SEE_STUDIES)):
        return ServiceRequest.objects.none()
    return ServiceRequest.objects.filter(site__in=organizations.visible_to(user))


def devices_visible_to(user: User | AnonymousUser) -> QuerySet[Device]:
    """Devices of the sites of the user, for roles that see the schedule or connect devices."""
    if not isinstance(user, User) or not (can(user, Capability.SEE_SCHEDULE) or can(user, Capability.CONNECT)):
        return Device.objects.none()
    return Device.objects.filter(site__in=organizations.visible_to(user)).select_related("site", "node")


def steps_visible_to(user: User | AnonymousUser) -> QuerySet[ScheduledProcedureStep]:
    """Steps of the orders that the user may see."""
    if not isinstance(user, User) or not can(user, Capability.SEE_SCHEDULE):
        return ScheduledProcedureStep.objects.none()
    return ScheduledProcedureStep.objects.filter(service_request__in=visible_to(user)).select_related(
        "service_request__patient", "device__site"
    )


def sites_with_devices(user: User) -> QuerySet[Site]:
    """Where this person can look at a schedule."""
    return organizations.visible_to(user).filter(devices__is_active=True).distinct()


def bounds(day: date, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """The first moment of the day at the site, and of the next."""
    return datetime.combine(day, time(), zone), datetime.combine(day + timedelta(days=1), time(), zone)


def steps_of_day(steps: QuerySet[ScheduledProcedureStep], site: Site, day: date) -> QuerySet[ScheduledProcedureStep]:
    """Live steps of the site's devices that touch the day."""
    start, end = bounds(day, ZoneInfo(site.time_zone))
    return steps.filter(device__site=site, slot__overlap=(start, end), status__in=LIVE).order_by("slot", "pk")


def first_free(device: Device, after: datetime, minutes: int) -> datetime:
    """The first moment from ``after`` on (at a full five minutes) when the device is free for so long."""
    wanted = timedelta(minutes=minutes)
    start = after.astimezone(UTC).replace(second=0, microsecond=0)
    start += timedelta(minutes=-start.minute % 5)
    if start < after:
        start += timedelta(minutes=5)
    taken = (
        ScheduledProcedureStep.objects.filter(device=device, slot__endswith__gt=start, status__in=LIVE)
        .order_by("slot")
        .values_list("slot", flat=True)
    )
    for slot in taken:
        if slot.lower - start >= wanted:
            break
        start = max(start, slot.upper)
    return start


def differences_visible_to(user: User | AnonymousUser) -> QuerySet[ReturnDifference]:
    """What nodes of the user's sites came back with, for who sees the schedule."""
    if not isinstance(user, User) or not can(user, Capability.SEE_SCHEDULE):
        return ReturnDifference.objects.none()
    return ReturnDifference.objects.filter(site__in=organizations.visible_to(user)).select_related(
        "node", "site", "service_request", "patient", "decided_by"
    )


def unseen_differences(user: User | AnonymousUser) -> int:
    """How many of them no person has looked at."""
    return differences_visible_to(user).exclude(state=ReturnDifference.State.BY_PERSON).count()


def alone_nodes(user: User | AnonymousUser) -> QuerySet[Node]:
    """Nodes of the user's sites that have accession numbers of their own."""
    nodes = Node.objects.filter(site__in=organizations.visible_to(user), revoked_at=None)
    return nodes.filter(accession_blocks__isnull=False).distinct().select_related("site")


def to_rebook(user: User | AnonymousUser, site: Site) -> QuerySet[ScheduledProcedureStep]:
    """Bookings that lost their time and need another."""
    lost = ScheduledProcedureStep.Status.REBOOK
    return steps_visible_to(user).filter(service_request__site=site, status=lost).order_by("slot")

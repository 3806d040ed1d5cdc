"""Who may read the trail, and how it is narrowed."""

from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from django.db.models import Q, QuerySet

from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, can
from ris_central.audit.models import AuditEvent


def visible_to(user: User) -> QuerySet[AuditEvent]:
    """All of it for who may read it, nothing for anybody else."""
    events = AuditEvent.objects.select_related("actor")
    return events if can(user, Capability.READ_AUDIT) else events.none()


def narrowed(
    events: QuerySet[AuditEvent],
    *,
    who: str = "",
    what: str = "",
    patient: str = "",
    since: date | None = None,
    until: date | None = None,
    zone: ZoneInfo | None = None,
    outcome: str = "",
) -> QuerySet[AuditEvent]:
    """Rows by user name or address, by action or entity, by patient key, and by days (both included, in ``zone``)."""
    if who:
        events = events.filter(Q(actor_name__icontains=who) | Q(actor__last_name__icontains=who) | Q(address=who))
    if what:
        events = events.filter(Q(action__icontains=what) | Q(entity_type__icontains=what) | Q(entity_id=what))
    if patient:
        events = events.filter(patient_key=int(patient)) if patient.isdecimal() else events.none()
    if outcome:
        events = events.filter(outcome=outcome)
    if since:
        events = events.filter(occurred_at__gte=datetime.combine(since, time(), zone))
    if until:
        events = events.filter(occurred_at__lt=datetime.combine(until + timedelta(days=1), time(), zone))
    return events

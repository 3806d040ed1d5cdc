"""Which reports a person may read."""

from django.contrib.auth.models import AnonymousUser
from django.db.models import QuerySet

from ris_central.accounts.models import User
from ris_central.catalogue import queries as catalogue
from ris_central.catalogue.models import Study
from ris_central.reporting.models import Report


def visible_to(user: User | AnonymousUser) -> QuerySet[Report]:
    """The reports of the studies that this person may see."""
    return Report.objects.filter(study__in=catalogue.visible_to(user))


def live_report(study: Study) -> Report | None:
    """The one report of the study that is not cancelled."""
    reports = study.reports.exclude(status=Report.Status.CANCELLED)
    found: Report | None = reports.select_related("author", "signed_by").first()
    return found

"""How many instances of a study are known and how many of them the archive holds with equal digests."""

from collections.abc import Iterable

from django.db.models import Count, Exists, OuterRef, Q, Sum

from ris_central.catalogue.models import InstanceHolding, Series, Study
from ris_central.federation.models import Node


def recount(study: Study, changed: Iterable[Series]) -> None:
    """Count the rows of the changed series and add up the study, in a fixed number of queries.

    A series without rows is settled: its manifest's counts stand.
    """
    at_archive = InstanceHolding.objects.filter(instance=OuterRef("instances"), node__kind=Node.Kind.ARCHIVE)
    counted = (
        Series.objects.filter(pk__in=[series.pk for series in changed], instances__isnull=False)
        .annotate(
            known=Count("instances", distinct=True),
            safe=Count("instances", filter=Q(Exists(at_archive)), distinct=True),
        )
        .order_by()
    )
    rows = []
    for series in counted:
        series.instance_count, series.instances_safe = series.known, series.safe
        rows.append(series)
    Series.objects.bulk_update(rows, ["instance_count", "instances_safe"])
    totals = study.series.aggregate(known=Sum("instance_count"), safe=Sum("instances_safe"))
    study.instances_known = totals["known"] or 0
    study.instances_safe = totals["safe"] or 0
    study.save(update_fields=["instances_known", "instances_safe"])

"""What series know of their own size."""

from collections.abc import Iterable

from django.db.models import Count

from pacs_node.study_index.models import Instance, Series


def recount(series_keys: Iterable[int]) -> None:
    """Set ``instances_count`` of these series anew. Call it in the transaction that changed what they hold."""
    keys = list(series_keys)
    held = Instance.objects.filter(series__in=keys, is_variant=False, released_at=None)
    counts = dict(held.order_by().values_list("series_id").annotate(count=Count("pk")))
    for key in keys:
        Series.objects.filter(pk=key).update(instances_count=counts.get(key, 0))

"""Who holds what a search found, for all rows of an answer at once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.db.models import Sum

from ris_central.catalogue import reach
from ris_central.catalogue.models import Series, SeriesHolder, Study
from ris_central.federation.models import Node


@dataclass(frozen=True)
class Holding:
    """The nodes that hold it with how many instances, the archive first, and Instance Availability.

    Source: PS3.3 C.4.23.1.1
    """

    nodes: list[tuple[Node, int]]
    availability: str


def holders_of(studies: Sequence[Study]) -> dict[int, Holding]:
    """Key of the study → its holders, in two queries and one look into the cache."""
    rows = SeriesHolder.objects.filter(series__study__in=studies, count__gt=0).order_by()
    counted = rows.values_list("series__study", "node").annotate(held=Sum("count"))
    return _holdings({study.pk: study.instances_known for study in studies}, counted)


def holders_of_series(series: list[Series]) -> dict[int, Holding]:
    """Key of the series → its holders, in two queries and one look into the cache."""
    rows = SeriesHolder.objects.filter(series__in=series, count__gt=0).order_by()
    return _holdings({one.pk: one.instance_count for one in series}, rows.values_list("series", "node", "count"))


def _holdings(known: dict[int, int], counted: Iterable[tuple[int, int, int]]) -> dict[int, Holding]:
    found: dict[int, list[tuple[int, int]]] = {}
    for key, node, held in counted:
        found.setdefault(key, []).append((node, held))
    nodes = Node.objects.in_bulk({node for rows in found.values() for node, _ in rows})
    down = reach.known_down(node.name for node in nodes.values())
    holdings = {}
    for key, count in known.items():
        rows = [(nodes[node], held) for node, held in found.get(key, [])]
        rows.sort(key=lambda row: (row[0].kind != Node.Kind.ARCHIVE, -row[1], row[0].name))
        holdings[key] = Holding(rows, _availability(rows, count, down))
    return holdings


def _availability(rows: list[tuple[Node, int]], known: int, down: set[str]) -> str:
    """ONLINE: a node has all of it and answers; NEARLINE: it must be sent first; OFFLINE: who has it is away."""
    if not rows:
        return "UNAVAILABLE"
    present = [(node, held) for node, held in rows if reach.in_touch(node)]
    if any(held >= known and node.name not in down for node, held in present):
        return "ONLINE"
    return "NEARLINE" if present else "OFFLINE"

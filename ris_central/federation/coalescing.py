"""Events that go on where an earlier one ended are applied together, so that a centre that lags does less, not more.

Only what tells the growth of a series or the progress of a delivery is put together; everything else stands alone and
in its place. The inbox keeps every event as it came.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from gateway.envelope import DeliveryProgress, Event, RawEvent, SeriesChanged

MOST_EVENTS: Final = 60
MOST_INSTANCES: Final = 1000
"""Of one lot: it is one transaction, and others wait for its studies meanwhile."""


def lots(events: Iterable[RawEvent], *, across_studies: bool) -> Iterator[list[RawEvent]]:
    """The events in their order, those that may be applied together as one list.

    Without ``across_studies`` a list is of one study, so that nobody who waits for a study holds another one.
    """
    lot: list[RawEvent] = []
    study, instances = "", 0
    for event in events:
        its, more = study_of(event), len(event.body.get("added") or ())
        fits = (
            its and (across_studies or its == study) and len(lot) < MOST_EVENTS and instances + more <= MOST_INSTANCES
        )
        if lot and not (study and fits):
            yield lot
            lot, instances = [], 0
        lot.append(event)
        study, instances = its, instances + more
    if lot:
        yield lot


def study_of(event: RawEvent) -> str:
    """The study that a mergeable event is of; "" for all others, and for what nobody could read."""
    match event.body:
        case {"type": "series.changed", "added": list(), "study": {"study_instance_uid": str(uid)}}:
            return uid
        case {"type": "delivery.progress", "study_instance_uid": str(uid)}:
            return uid
    return ""


def merged(events: Iterable[Event]) -> list[Event]:
    """Fewer events that leave the same behind: what was added to a series at once, and the latest progress.

    They are in the order of their studies: who takes several never waits crosswise for somebody who does the same.
    """
    found: dict[tuple[str, ...], Event] = {}
    latest: dict[str, tuple[str, ...]] = {}
    for event in sorted(events, key=lambda one: _uid(one.body)):
        body = event.body
        if isinstance(body, DeliveryProgress):
            key = ("progress", body.study_instance_uid, body.destination)
            found.pop(key, None)
            found[key] = event
        elif isinstance(body, SeriesChanged):
            uid = body.series.series_instance_uid
            earlier = found.get(latest.get(uid, ()))
            if earlier is not None and isinstance(earlier.body, SeriesChanged) and _says_the_same(earlier.body, body):
                whole = body.model_copy(update={"added": [*earlier.body.added, *body.added]})
                found[latest[uid]] = event.model_copy(update={"body": whole})
            else:
                latest[uid] = ("series", uid, str(event.seq))
                found[latest[uid]] = event
        else:
            raise TypeError(f"{body.type} stands alone")
    return list(found.values())


def _uid(body: object) -> str:
    if isinstance(body, SeriesChanged):
        return body.study.study_instance_uid
    return body.study_instance_uid if isinstance(body, DeliveryProgress) else ""


def _says_the_same(one: SeriesChanged, other: SeriesChanged) -> bool:
    return (one.patient, one.study, one.series) == (other.patient, other.study, other.series)

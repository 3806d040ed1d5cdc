"""What a node tells of one study is applied together, and leaves behind what it would have left one by one."""

import random
import time
from typing import Any

import pytest
from django.utils import timezone

from gateway.envelope import Event, RawEvent
from ris_central.catalogue.models import InstanceHolding, Series, SeriesHolder, SeriesInstance, Study
from ris_central.federation import coalescing, intake, listeners
from ris_central.federation.models import DeliveryState, InboxEvent, Node
from ris_central.organizations.models import Site
from standards.digests import root_hash
from standards.errors import TransientError

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def clinic() -> Node:
    site = Site.objects.create(code="a", name="A", kind=Site.Kind.OWN_PACS, accession_prefix="A")
    return Node.objects.create(site=site, name="clinic", kind=Node.Kind.CLINIC, joined_at=timezone.now())


@pytest.fixture
def archive() -> Node:
    site = Site.objects.create(code="z", name="Z", kind=Site.Kind.CENTRE, accession_prefix="Z")
    return Node.objects.create(site=site, name="archive", kind=Node.Kind.ARCHIVE, joined_at=timezone.now())


def raw(seq: int, body: dict[str, Any]) -> RawEvent:
    return RawEvent(schema_version=1, epoch="e1", seq=seq, occurred_at=timezone.now(), body=body)


def changed(study: int, series: int, numbers: range, name: str = "Выдумкин^Пример") -> dict[str, Any]:
    def entry(number: int) -> tuple[str, str]:
        return f"1.2.{study}.{series}.{number}", f"{number:064x}"

    return {
        "type": "series.changed",
        "patient": {"patient_id": f"P{study}", "patient_name": name},
        "study": {"study_instance_uid": f"1.2.{study}"},
        "series": {"series_instance_uid": f"1.2.{study}.{series}", "modality": "CT"},
        "added": [
            {
                "sop_instance_uid": entry(number)[0],
                "dataset_sha256": entry(number)[1],
                "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
                "transfer_syntax_uid": "1.2.840.10008.1.2.1",
                "size": 1000,
                "instance_number": number,
            }
            for number in numbers
        ],
        "count": numbers.stop,
        "root_hash": root_hash(entry(number) for number in range(numbers.stop)),
    }


def progress(study: int, receipted: int) -> dict[str, Any]:
    return {
        "type": "delivery.progress",
        "study_instance_uid": f"1.2.{study}",
        "destination": "archive",
        "total": 20,
        "receipted": receipted,
        "failed": 0,
    }


def story(studies: int, seed: int) -> list[RawEvent]:
    """Series of 20 that grow by fives in a random order of studies, with progress in between."""
    dice, bodies = random.Random(seed), []
    growing = {(study, series): 0 for study in range(studies) for series in (1, 2)}
    while growing:
        study, series = dice.choice(list(growing))
        there = growing[study, series]
        bodies.append(changed(study, series, range(there, there + 5)))
        bodies.append(progress(study, there))
        growing[study, series] += 5
        if growing[study, series] == 20:
            del growing[study, series]
    return [raw(seq, body) for seq, body in enumerate(bodies, 1)]


def left_behind() -> dict[str, list[Any]]:
    return {
        "studies": list(
            Study.objects.order_by("study_instance_uid").values_list(
                "study_instance_uid", "instances_known", "instances_safe", "modalities", "patient__name"
            )
        ),
        "series": list(
            Series.objects.order_by("series_instance_uid").values_list("series_instance_uid", "instance_count")
        ),
        "instances": list(
            SeriesInstance.objects.order_by("sop_instance_uid").values_list("sop_instance_uid", "dataset_sha256")
        ),
        "holdings": list(
            InstanceHolding.objects.order_by("instance__sop_instance_uid", "node__name").values_list(
                "instance__sop_instance_uid", "node__name"
            )
        ),
        "holders": list(
            SeriesHolder.objects.order_by("series__series_instance_uid", "node__name").values_list(
                "series__series_instance_uid", "node__name", "count", "root_hash"
            )
        ),
        "progress": list(
            DeliveryState.objects.order_by("node__name", "study_instance_uid").values_list(
                "node__name", "study_instance_uid", "receipted"
            )
        ),
        "inbox": list(InboxEvent.objects.order_by("node__name", "seq").values_list("node__name", "seq", "error")),
    }


@pytest.mark.parametrize("seed", [1, 2])
def test_together_leaves_behind_what_one_by_one_does(clinic: Node, archive: Node, seed: int) -> None:
    events = story(4, seed)
    for node in (clinic, archive):
        assert intake.take(node, events).cursor == len(events)
    together = left_behind()
    assert [row[1:3] for row in together["studies"]] == [(40, 40)] * 4
    InboxEvent.objects.all().delete()
    SeriesHolder.objects.all().delete()
    DeliveryState.objects.all().delete()
    Study.objects.all().delete()
    Node.objects.update(cursor=0)
    for node in (clinic, archive):
        for event in events:
            intake.take(node, [event])
    assert left_behind() == together


def test_fewer_events_are_applied_than_came(clinic: Node, archive: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[Event] = []
    monkeypatch.setattr(listeners, "_listeners", {})
    for kind in ("series.changed", "delivery.progress"):
        listeners.on_event(kind, lambda node, event: applied.append(event))
    events = story(4, 1)
    intake.take(archive, events)
    assert len(applied) < len(events) / 4
    assert InboxEvent.objects.filter(node=archive).count() == len(events), "the inbox keeps them as they came"


def test_a_clinic_holds_one_study_at_a_time_and_an_archive_takes_several() -> None:
    events = [raw(seq, changed(study, 1, range(seq))) for seq, study in enumerate((1, 1, 2, 1), 1)]
    assert [len(lot) for lot in coalescing.lots(events, across_studies=False)] == [2, 1, 1]
    assert [len(lot) for lot in coalescing.lots(events, across_studies=True)] == [4]


def test_what_is_of_another_kind_or_unreadable_stands_alone_and_in_its_place() -> None:
    events = [
        raw(1, changed(1, 1, range(5))),
        raw(2, {"type": "series.released", "study_instance_uid": "1.2.1"}),
        raw(3, changed(1, 1, range(5, 10))),
        raw(4, {"type": "series.changed", "study": "none"}),
        raw(5, progress(1, 5)),
    ]
    assert [[event.seq for event in lot] for lot in coalescing.lots(events, across_studies=True)] == [
        [1], [2], [3], [4], [5]
    ]  # fmt: skip


def test_a_lot_is_bounded() -> None:
    many = [raw(seq, progress(1, seq)) for seq in range(1, coalescing.MOST_EVENTS + 2)]
    assert [len(lot) for lot in coalescing.lots(many, across_studies=False)] == [coalescing.MOST_EVENTS, 1]
    large = [raw(seq, changed(1, 1, range(600))) for seq in (1, 2)]
    assert [len(lot) for lot in coalescing.lots(large, across_studies=False)] == [1, 1]


def test_a_series_that_changed_its_identity_is_not_put_together_with_what_it_was() -> None:
    bodies = [changed(1, 1, range(5)), changed(1, 1, range(5, 10), name="Другой^Имярек"), changed(1, 1, range(10, 15))]
    events = [
        Event.model_validate(raw(seq, body).model_dump())
        for seq, body in enumerate([*bodies, bodies[0] | bodies[2]], 1)
    ]
    assert [event.seq for event in coalescing.merged(events)] == [1, 2, 4]


def test_one_that_cannot_be_applied_is_kept_with_its_error_and_holds_up_no_other(
    clinic: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied: list[int] = []
    monkeypatch.setattr(listeners, "_listeners", {})

    def listen(node: Node, event: Event) -> None:
        assert isinstance(event.body, object)
        if any(added.instance_number == 7 for added in event.body.added):  # type: ignore[union-attr]
            raise ValueError("seven")
        applied.append(event.seq)

    listeners.on_event("series.changed", listen)
    events = [raw(seq, changed(1, 1, range(seq * 5 - 5, seq * 5))) for seq in (1, 2, 3)]
    assert intake.take(clinic, events).cursor == 3
    assert applied == [1, 3]
    assert dict(InboxEvent.objects.values_list("seq", "error")) == {1: "", 2: "ValueError: seven", 3: ""}


def test_what_may_work_later_holds_the_queue_where_it_is(clinic: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "_listeners", {})

    def listen(node: Node, event: Event) -> None:
        if event.seq >= 2:
            raise TransientError("not-now", "x")

    listeners.on_event("delivery.progress", listen)
    with pytest.raises(TransientError):
        intake.take(clinic, [raw(seq, progress(1, seq)) for seq in (1, 2, 3)])
    clinic.refresh_from_db()
    assert clinic.cursor == 1


def test_a_busy_centre_answers_in_time_with_what_it_has(clinic: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "LONGEST_SECONDS", 0.0)
    events = [raw(seq, changed(seq, 1, range(1))) for seq in (1, 2, 3)]
    assert [intake.take(clinic, events).cursor for _ in events] == [1, 2, 3]


def test_who_waited_long_for_its_turn_is_answered_after_one_lot(clinic: Node) -> None:
    events = [raw(seq, changed(seq, 1, range(1))) for seq in (1, 2, 3)]
    long_ago = time.monotonic() - 2 * intake.LONGEST_SECONDS
    assert intake.take(clinic, events, long_ago).cursor == 1
    assert intake.take(clinic, events[1:]).cursor == 3

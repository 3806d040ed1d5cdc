"""Numbering of what a node has to tell, and what happens to it when the centre forgets or a node is cloned."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from django.utils import timezone

from gateway import actions, deliveries, relay
from gateway.envelope import Directory, EventAnswer, JoinAnswer, Peer, RawEventBatch, SendStudy
from gateway.models import Delivery, JoinState, NumberedEvent, OutboxEntry
from pacs_node.study_index.actions import ingest
from standards.uids import new_uid
from tests.contract.region import make_instance

pytestmark = pytest.mark.django_db(transaction=True)

Store = Callable[..., str]


def directory(*mirror_to: str, key: str = "A" * 43) -> Directory:
    peers = [
        Peer(name=name, kind="archive", ae_title="ARCHIVE", url="https://127.0.0.1:9", public_key=key)
        for name in mirror_to
    ]
    return Directory(peers=peers, token_keys={}, mirror_to=list(mirror_to))


def join(*mirror_to: str) -> JoinState:
    return actions.record_join(JoinAnswer(name="clinic", directory=directory(*mirror_to)), "https://127.0.0.1:8")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    def take_in(**attributes: object) -> str:
        image = make_instance(**attributes)  # type: ignore[arg-type]
        path = tmp_path / f"{new_uid()}.dcm"
        image.save_as(path, enforce_file_format=True)
        ingest(path, source_ae_title="SCANNER")
        return str(image.SOPInstanceUID)

    return take_in


def settle_all() -> None:
    while relay.catch_up() or relay.number():
        pass


def bodies(kind: str = "series.changed") -> list[dict[str, object]]:
    return [event.body for event in NumberedEvent.objects.order_by("seq") if event.body["type"] == kind]


def test_nothing_is_numbered_before_the_node_is_joined_and_nothing_is_lost(store: Store) -> None:
    uid = store()
    assert relay.number() == 0
    assert NumberedEvent.objects.count() == 0
    join()
    settle_all()
    added = [item["sop_instance_uid"] for body in bodies() for item in body["added"]]  # type: ignore[attr-defined]
    assert set(added) == {uid}


def test_instances_of_one_series_become_one_event_with_all_that_is_held(store: Store) -> None:
    join()
    settle_all()
    study, series = new_uid(), new_uid()
    uids = [store(study=study, series=series, number=number) for number in range(1, 6)]
    relay.number()
    (body,) = bodies()
    assert body["count"] == 5
    assert [item["sop_instance_uid"] for item in body["added"]] == uids  # type: ignore[attr-defined]
    assert OutboxEntry.objects.count() == 0


def test_numbers_have_no_gaps_and_go_on_where_they_ended(store: Store) -> None:
    state = join()
    settle_all()
    for _ in range(3):
        store()
        store()
        relay.number()
    seqs = list(NumberedEvent.objects.filter(epoch=state.epoch).order_by("seq").values_list("seq", flat=True))
    assert seqs == list(range(1, 7))


def test_a_failure_while_numbering_leaves_every_row_on_the_outbox(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    join("archive")
    settle_all()
    store()
    before = OutboxEntry.objects.count()

    def fail(lot: object, epoch: str) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(relay, "_bodies", fail)
        with pytest.raises(RuntimeError):
            relay.number()
    assert OutboxEntry.objects.count() == before
    assert Delivery.objects.count() == 0
    relay.number()
    assert Delivery.objects.count() == 1


def test_joining_later_puts_everything_held_on_the_ledger(store: Store) -> None:
    uids = {store() for _ in range(3)}
    OutboxEntry.objects.all().delete()  # told to a former centre long ago
    join("archive")
    settle_all()
    assert set(Delivery.objects.values_list("sop_instance_uid", flat=True)) == uids
    assert len(bodies()) == 3


def test_another_destination_gets_all_that_is_held(store: Store) -> None:
    join("archive")
    uid = store()
    settle_all()
    actions.apply_directory(directory("archive", "second"))
    settle_all()
    rows = Delivery.objects.filter(sop_instance_uid=uid).values_list("destination", flat=True)
    assert sorted(rows) == ["archive", "second"]


def test_the_same_directory_again_changes_nothing(store: Store) -> None:
    join("archive")
    store()
    settle_all()
    told = NumberedEvent.objects.count()
    actions.apply_directory(directory("archive"))
    settle_all()
    assert NumberedEvent.objects.count() == told


def test_an_archive_that_is_another_machine_must_prove_everything_again(store: Store) -> None:
    join("archive", "second")
    store()
    settle_all()
    Delivery.objects.update(status=Delivery.Status.RECEIPTED)
    fresh = directory("archive", "second", key="B" * 43)
    kept = directory("second").peers
    actions.apply_directory(fresh.model_copy(update={"peers": [fresh.peers[0], *kept]}))
    assert dict(Delivery.objects.values_list("destination", "status")) == {"archive": "waiting", "second": "receipted"}


def test_a_centre_restored_from_backup_gets_the_events_again(store: Store) -> None:
    state = join()
    for _ in range(4):
        store()
    settle_all()
    highest = NumberedEvent.objects.count()
    relay.settle(EventAnswer(epoch=state.epoch, cursor=highest), 0)
    assert relay.waiting_events(JoinState.objects.get()) == 0
    relay.settle(EventAnswer(epoch=state.epoch, cursor=1), highest)
    fresh = JoinState.objects.get()
    assert fresh.epoch == state.epoch
    assert relay.waiting_events(fresh) == highest - 1
    assert [event.seq for event in relay._next_batch(fresh)[0]] == list(range(2, highest + 1))


def test_an_answer_that_was_overtaken_does_not_rewind(store: Store) -> None:
    state = join()
    store()
    store()
    settle_all()
    relay.settle(EventAnswer(epoch=state.epoch, cursor=2), 0)
    relay.settle(EventAnswer(epoch=state.epoch, cursor=0), 0)
    assert JoinState.objects.get().acknowledged_seq == 2


def test_a_rewind_past_what_is_kept_begins_a_new_epoch_with_everything(store: Store) -> None:
    state = join()
    uids = {store() for _ in range(3)}
    settle_all()
    highest = NumberedEvent.objects.count()
    relay.settle(EventAnswer(epoch=state.epoch, cursor=highest), 0)
    NumberedEvent.objects.filter(seq__lte=2).delete()
    relay.settle(EventAnswer(epoch=state.epoch, cursor=0), highest)
    fresh = JoinState.objects.get()
    assert fresh.epoch != state.epoch
    settle_all()
    events = NumberedEvent.objects.filter(epoch=fresh.epoch).order_by("seq")
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert {item["sop_instance_uid"] for event in events for item in event.body["added"]} == uids


def test_a_centre_that_knows_more_than_this_node_means_a_new_epoch(store: Store) -> None:
    state = join()
    store()
    settle_all()
    relay.settle(EventAnswer(epoch=state.epoch, cursor=99), 0)
    assert JoinState.objects.get().epoch != state.epoch


def test_a_new_epoch_tells_unsent_conflicts_and_refusals_again() -> None:
    join()
    actions.record_refused(calling_ae_title="X", called_ae_title="Y", address="10.0.0.9", reason="unknown AE")
    settle_all()
    actions.new_epoch()
    settle_all()
    epoch = JoinState.objects.get().epoch
    (event,) = NumberedEvent.objects.filter(epoch=epoch)
    assert event.body["reason"] == "unknown AE"


def test_acknowledged_events_are_kept_for_their_time_and_the_newest_for_ever(store: Store) -> None:
    state = join()
    for _ in range(3):
        store()
    settle_all()
    highest = NumberedEvent.objects.count()
    relay.settle(EventAnswer(epoch=state.epoch, cursor=highest), 0)
    assert relay.prune() == 0
    NumberedEvent.objects.update(acknowledged_at=timezone.now() - timedelta(days=31))
    assert relay.prune() == highest - 1
    store()
    relay.number()
    assert NumberedEvent.objects.order_by("-seq").values_list("seq", flat=True)[0] == highest + 1


def test_the_same_refusal_over_and_over_is_told_once_a_minute() -> None:
    join()
    settle_all()
    for _ in range(5):
        actions.record_refused(calling_ae_title="X", called_ae_title="Y", address="10.0.0.9", reason="unknown AE")
        relay.number()
    actions.record_refused(calling_ae_title="Z", called_ae_title="Y", address="10.0.0.9", reason="unknown AE")
    relay.number()
    assert [body["calling_ae_title"] for body in bodies("association.refused")] == ["X", "Z"]


def test_an_urgent_study_is_urgent_also_for_images_that_come_later(store: Store) -> None:
    join("archive")
    settle_all()
    study = new_uid()
    store(study=study, number=1)
    settle_all()
    actions.apply_send_study(SendStudy(study_instance_uid=study, priority=0))
    store(study=study, number=2)
    store()
    settle_all()
    assert sorted(Delivery.objects.filter(study_instance_uid=study).values_list("priority", flat=True)) == [0, 0]
    assert sorted(Delivery.objects.values_list("priority", flat=True)) == [0, 0, 50]


def test_progress_is_one_event_a_study_and_counts_the_ledger(store: Store) -> None:
    join("archive")
    settle_all()
    study = new_uid()
    for number in range(1, 4):
        store(study=study, number=number)
    relay.number(with_progress=False)
    assert bodies("delivery.progress") == []
    Delivery.objects.filter(study_instance_uid=study).update(status=Delivery.Status.RECEIPTED)
    settle_all()
    (body,) = bodies("delivery.progress")
    assert (body["total"], body["receipted"], body["failed"]) == (3, 3, 0)


def test_a_release_is_told_after_what_came_before_and_before_what_comes_after() -> None:
    stored = actions.INSTANCE_STORED
    rows = [
        OutboxEntry(pk=1, kind=stored, series_key=7, instance_key=1),
        OutboxEntry(pk=2, kind=actions.SERIES_RELEASED, series_key=7),
        OutboxEntry(pk=3, kind=stored, series_key=7, instance_key=1),
        OutboxEntry(pk=4, kind=stored, series_key=8, instance_key=2),
        OutboxEntry(pk=5, kind=stored, series_key=7, instance_key=3),
    ]
    assert [[row.pk for row in lot] for lot in relay._lots(rows)] == [[1], [2], [3, 5], [4]]


def test_what_was_put_off_while_the_clock_was_wrong_is_due_when_it_is_right_again(store: Store) -> None:
    join("archive")
    store()
    settle_all()
    soon, tomorrow = timezone.now() + timedelta(seconds=60), timezone.now() + timedelta(days=1)
    Delivery.objects.update(next_attempt_at=soon)
    assert deliveries.next_waiting() is None, "a pause is a pause"
    Delivery.objects.update(next_attempt_at=tomorrow)
    assert deliveries.next_waiting() == Delivery.objects.get()


def test_a_busy_centre_is_told_again_after_the_pause_it_asks_for_and_at_once_what_fills_a_batch(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = join()
    store()
    settle_all()

    def busy(request: httpx.Request) -> httpx.Response:
        last = RawEventBatch.model_validate_json(request.content).events[-1].seq
        return httpx.Response(200, text=EventAnswer(epoch=state.epoch, cursor=last, pause=3).model_dump_json())

    with httpx.Client(transport=httpx.MockTransport(busy), base_url="https://centre.example") as centre:
        assert relay.push(centre) == 3
        assert relay.push(centre) is None
        monkeypatch.setattr(relay, "EVENTS_PER_BATCH", 1)
        store()
        settle_all()
        assert relay.push(centre) == 0

"""Events of nodes at the centre: once, in order, and no bad one stops a good one."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import OperationalError
from django.utils import timezone

from gateway.envelope import Event, RawEvent
from ris_central.federation import intake, listeners, queries
from ris_central.federation.models import DeliveryState, InboxEvent, Node
from ris_central.organizations.models import Site
from standards.errors import PermanentError, TransientError

pytestmark = pytest.mark.django_db

REFUSED = "association.refused"


@pytest.fixture
def node() -> Node:
    site = Site.objects.create(code="a", name="A", kind=Site.Kind.OWN_PACS, accession_prefix="A")
    return Node.objects.create(site=site, name="clinic", kind=Node.Kind.CLINIC, joined_at=timezone.now())


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of the refusals that were applied, in order; only this test listens."""
    told: list[str] = []
    monkeypatch.setattr(listeners, "_listeners", {})

    def listen(node: Node, event: Event) -> None:
        told.append(event.body.address)  # type: ignore[union-attr]

    listeners.on_event(REFUSED, listen)
    return told


def refusal(seq: int, epoch: str = "e1", **changes: Any) -> RawEvent:
    body = {
        "type": REFUSED,
        "calling_ae_title": "X",
        "called_ae_title": "Y",
        "address": f"10.0.0.{seq}",
        "reason": "unknown AE",
    }
    return RawEvent(schema_version=1, epoch=epoch, seq=seq, occurred_at=timezone.now(), body=body | changes)


def test_events_are_applied_once_and_in_order(node: Node, heard: list[str]) -> None:
    assert intake.take(node, [refusal(1), refusal(2)]).cursor == 2
    assert intake.take(node, [refusal(1), refusal(2), refusal(3)]).cursor == 3
    assert heard == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


def test_a_text_with_nul_characters_is_taken_without_them_and_stops_no_other(node: Node, heard: list[str]) -> None:
    padded = refusal(1, calling_ae_title="CT\0\0", strange={"ke\0y": ["a\0b"]})
    assert intake.take(node, [padded, refusal(2)]).cursor == 2
    assert heard == ["10.0.0.1", "10.0.0.2"]
    body = InboxEvent.objects.get(seq=1).body
    assert (body["calling_ae_title"], body["strange"]) == ("CT", {"key": ["ab"]})


def test_nothing_is_taken_after_a_gap_and_the_answer_says_where_to_go_on(node: Node, heard: list[str]) -> None:
    assert intake.take(node, [refusal(1), refusal(3), refusal(4)]).cursor == 1
    assert heard == ["10.0.0.1"]
    assert intake.take(node, [refusal(2), refusal(3)]).cursor == 3


def test_reordered_events_are_not_applied_out_of_order(node: Node, heard: list[str]) -> None:
    assert intake.take(node, [refusal(2), refusal(1)]).cursor == 0
    assert heard == []


def test_an_event_that_nobody_understands_is_kept_with_its_error_and_stops_no_other(
    node: Node, heard: list[str]
) -> None:
    strange = refusal(2, type="planet.discovered")
    broken = refusal(3, address=None)
    assert intake.take(node, [refusal(1), strange, broken, refusal(4)]).cursor == 4
    assert heard == ["10.0.0.1", "10.0.0.4"]
    errors = {row.seq: row.error for row in queries.errors_of(node)}
    assert set(errors) == {2, 3}
    assert all(error.startswith("event-not-understood") for error in errors.values())
    assert InboxEvent.objects.get(seq=2).body["type"] == "planet.discovered"


@pytest.mark.parametrize("error", [PermanentError("study-of-another", "x"), ValueError("bug"), ZeroDivisionError()])
def test_a_listener_that_fails_leaves_none_of_its_writes_and_stops_no_other(
    node: Node, heard: list[str], error: Exception
) -> None:
    def poisoned(node: Node, event: Event) -> None:
        Site.objects.create(code=f"s{event.seq}", name="x", kind=Site.Kind.OWN_PACS, accession_prefix=str(event.seq))
        if event.seq == 2:
            raise error

    listeners.on_event(REFUSED, poisoned)
    assert intake.take(node, [refusal(1), refusal(2), refusal(3)]).cursor == 3
    assert set(Site.objects.exclude(code="a").values_list("code", flat=True)) == {"s1", "s3"}
    (row,) = queries.errors_of(node)
    assert (row.seq, type(error).__name__ in row.error) == (2, True)


@pytest.mark.parametrize("error", [TransientError("database-busy"), OperationalError("deadlock detected")])
def test_what_may_work_later_is_not_taken_and_comes_again(node: Node, heard: list[str], error: Exception) -> None:
    fails = [True]

    def away(node: Node, event: Event) -> None:
        if event.seq == 2 and fails:
            raise error

    listeners.on_event(REFUSED, away)
    with pytest.raises(type(error)):
        intake.take(node, [refusal(1), refusal(2), refusal(3)])
    node.refresh_from_db()
    assert node.cursor == 1
    fails.clear()
    assert intake.take(node, [refusal(2), refusal(3)]).cursor == 3
    assert InboxEvent.objects.exclude(error="").count() == 0


def test_an_event_in_error_can_be_applied_again(node: Node, heard: list[str]) -> None:
    fails = [True]

    def poisoned(node: Node, event: Event) -> None:
        if fails:
            raise ValueError("bug")

    listeners.on_event(REFUSED, poisoned)
    intake.take(node, [refusal(1)])
    row = InboxEvent.objects.get()
    assert intake.apply_again(row) == "ValueError: bug"
    fails.clear()
    assert intake.apply_again(row) == ""
    assert InboxEvent.objects.get().error == ""


def test_a_new_epoch_begins_at_one_and_the_old_one_is_over(node: Node, heard: list[str]) -> None:
    intake.take(node, [refusal(1), refusal(2)])
    assert intake.take(node, [refusal(1, "e2")]).cursor == 1
    with pytest.raises(PermanentError, match="epoch-superseded"):
        intake.take(node, [refusal(3)])


def test_a_copy_of_a_node_is_told_apart_by_what_it_says(node: Node, heard: list[str]) -> None:
    intake.take(node, [refusal(1), refusal(2)])
    with pytest.raises(PermanentError, match="epoch-forked"):
        intake.take(node, [refusal(2, address="10.9.9.9")])
    assert heard == ["10.0.0.1", "10.0.0.2"]


def test_two_epochs_in_one_batch_are_refused(node: Node, heard: list[str]) -> None:
    with pytest.raises(PermanentError, match="mixed-epochs"):
        intake.take(node, [refusal(1), refusal(1, "e2")])


def test_a_version_the_centre_does_not_speak_is_refused_whole(node: Node, heard: list[str]) -> None:
    future = refusal(2).model_copy(update={"schema_version": 99})
    with pytest.raises(PermanentError, match="schema-version"):
        intake.take(node, [refusal(1), future])
    assert heard == []


def test_the_cursor_of_an_epoch_the_centre_never_saw_is_zero(node: Node, heard: list[str]) -> None:
    intake.take(node, [refusal(1), refusal(2)])
    assert queries.cursor_of(node, "e1").cursor == 2
    assert queries.cursor_of(node, "e7").cursor == 0


def test_the_latest_progress_of_each_study_adds_up_to_the_mirror(node: Node, make_progress: Callable[..., Any]) -> None:
    intake.take(
        node, [make_progress(1, "1.1", 100, 40), make_progress(2, "1.1", 100, 100), make_progress(3, "1.2", 7, 5)]
    )
    assert DeliveryState.objects.count() == 2
    seen = queries.with_mirror(Node.objects.all()).get()
    assert (seen.mirror_total, seen.mirror_safe, seen.mirror_failed) == (107, 105, 0)  # type: ignore[attr-defined]


@pytest.fixture
def make_progress() -> Callable[..., RawEvent]:
    def make(seq: int, study: str, total: int, receipted: int) -> RawEvent:
        body = {
            "type": "delivery.progress",
            "study_instance_uid": study,
            "destination": "archive",
            "total": total,
            "receipted": receipted,
            "failed": 0,
        }
        return RawEvent(schema_version=1, epoch="e1", seq=seq, occurred_at=timezone.now(), body=body)

    return make

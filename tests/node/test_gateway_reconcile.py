"""The node's end of comparing what it holds: rounds in steps, buckets in lots, and what is told again."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from gateway import actions, reconcile, registry, relay
from gateway.envelope import HoldingsAnswer, HoldingsQuestion, JoinAnswer, ProveAgain, SeriesKey, TellHoldings
from gateway.envelope.holdings import BUCKETS, line
from gateway.models import Delivery, JoinState, NumberedEvent
from standards.digests import root_hash
from standards.uids import new_uid
from tests.node.test_gateway_relay import Store, directory, settle_all, store  # noqa: F401  a fixture

pytestmark = pytest.mark.django_db(transaction=True)
Answer = Callable[[HoldingsQuestion], HoldingsAnswer]


class Centre:
    """The other end, in this process: keeps the questions and gives the answers it is told to."""

    def __init__(self, answer: Answer) -> None:
        self.questions: list[HoldingsQuestion] = []
        self.answer = answer
        transport = httpx.MockTransport(self._take)
        self.client = httpx.Client(base_url="https://centre.example", transport=transport)

    def _take(self, request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.path) == ("POST", reconcile.PATH)
        assert "signature" in request.headers
        question = HoldingsQuestion.model_validate_json(request.content)
        self.questions.append(question)
        return httpx.Response(200, text=self.answer(question).model_dump_json())


@pytest.fixture
def state(tmp_path: Path, settings: object) -> JoinState:
    config = settings.CONFIG.model_copy(update={"data_dir": tmp_path})  # type: ignore[attr-defined]
    settings.CONFIG = config  # type: ignore[attr-defined]
    joined = actions.record_join(JoinAnswer(name="clinic", directory=directory("archive")), "https://127.0.0.1:8")
    settle_all()
    return joined


def taken(state: JoinState) -> JoinState:
    """The centre has acknowledged everything."""
    settle_all()
    newest = NumberedEvent.objects.order_by("-seq").first()
    state.refresh_from_db()
    state.acknowledged_seq = newest.seq if newest else 0
    state.save()
    return state


def key_of(uid: str) -> SeriesKey:
    ((_, name),) = [row for row in registry.store().series_after(0, 100) if row[1].study_instance_uid == uid]
    return name


def steps(rounds: reconcile.Rounds, centre: Centre, state: JoinState) -> None:
    """Until a round has ended."""
    for _ in range(20):
        rounds.step(centre.client, state)
        if centre.questions and centre.questions[-1].ended:
            return
    pytest.fail("no round ended")


def test_a_round_adds_up_every_series_that_is_held(state: JoinState, store: Store) -> None:  # noqa: F811
    study = new_uid()
    series = [new_uid(), new_uid()]
    uids = [store(study=study, series=one, number=number) for one in series for number in (1, 2)]
    taken(state)
    centre = Centre(lambda question: HoldingsAnswer())
    reconcile.begin_now()
    steps(reconcile.Rounds(), centre, state)
    first = centre.questions[0]
    assert sum(one.count for one in first.buckets) == 2
    held = registry.store().summarize([key for key, _ in registry.store().series_after(0, 10)])
    total = 0
    for one in held:
        total ^= line(one.key, one.count, one.root_hash, one.identity)
    told = 0
    for bucket in first.buckets:
        told ^= int(bucket.total, 16)
    assert (told, sum(one.count for one in held)) == (total, len(uids))


def test_a_bucket_of_which_the_node_has_nothing_is_opened_too(state: JoinState, store: Store) -> None:  # noqa: F811
    study = new_uid()
    store(study=study)
    mine = key_of(study).bucket
    other = (mine + 1) % BUCKETS
    gone = SeriesKey("1.2", "P", "1.2.3")
    taken(state)

    def answer(question: HoldingsQuestion) -> HoldingsAnswer:
        if question.opened:
            return HoldingsAnswer(tell=[tuple(gone)])  # type: ignore[list-item]
        return HoldingsAnswer() if question.ended else HoldingsAnswer(differ=sorted([other, mine]))

    centre = Centre(answer)
    reconcile.begin_now(TellHoldings())
    steps(reconcile.Rounds(), centre, state)
    (opened,) = [question for question in centre.questions if question.opened]
    assert (sorted(opened.opened), len(opened.series)) == (sorted([mine, other]), 1)
    relay.number()
    (body,) = [event.body for event in NumberedEvent.objects.all() if event.body["type"] == "series.held"]
    assert (body["count"], body["held"], body["study_instance_uid"]) == (0, [], "1.2")


def test_a_series_is_told_in_full_before_it_is_said_that_this_is_all(
    state: JoinState,
    store: Store,  # noqa: F811
) -> None:
    study, series = new_uid(), new_uid()
    for number in (1, 2, 3):
        store(study=study, series=series, number=number)
    taken(state)
    before = NumberedEvent.objects.count()
    reconcile.tell_again(key_of(study))
    relay.number()
    changed, held = [event.body for event in NumberedEvent.objects.order_by("seq")[before:]][:2]
    assert (changed["type"], held["type"]) == ("series.changed", "series.held")
    assert len(changed["added"]) == held["count"] == 3
    assert held["root_hash"] == root_hash(tuple(one) for one in held["held"])


def test_series_are_listed_only_when_the_centre_has_taken_every_event(
    state: JoinState,
    store: Store,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reconcile, "ATTEMPTS", 2)
    monkeypatch.setattr(reconcile, "BUSY_SECONDS", 0.0)
    store()
    settle_all()
    centre = Centre(lambda question: HoldingsAnswer(differ=[] if question.ended else [1]))
    assert reconcile.compare(centre.client, state, {}) == 0
    assert not [question for question in centre.questions if question.opened]


def test_a_round_that_failed_is_begun_again_soon(state: JoinState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "FIRST_SECONDS", 0.0)
    calls = iter([RuntimeError("the line broke"), None])

    def answer(question: HoldingsQuestion) -> HoldingsAnswer:
        failure = None if question.ended else next(calls)
        if failure:
            raise failure
        return HoldingsAnswer()

    centre = Centre(answer)
    rounds = reconcile.Rounds()
    with pytest.raises(RuntimeError):
        rounds.step(centre.client, taken(state))
    steps(rounds, centre, state)


def test_what_a_destination_lost_is_delivered_again(state: JoinState, store: Store) -> None:  # noqa: F811
    study = new_uid()
    store(study=study)
    store()
    settle_all()
    Delivery.objects.update(status=Delivery.Status.RECEIPTED, receipt={"of": "before"})
    reconcile.prove_again(ProveAgain(**key_of(study)._asdict(), destination="archive"))
    again = Delivery.objects.get(study_instance_uid=study)
    assert (again.status, again.receipt, again.priority) == ("waiting", None, 20)
    assert Delivery.objects.filter(status="receipted").count() == 1

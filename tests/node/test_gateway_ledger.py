"""The ledger under rules: what is laid on it, what holds it, what it says, and when a copy may go."""

import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.db import connections
from django.utils import timezone

from gateway import actions, deliveries, ledger, relay
from gateway.envelope import (
    Configuration,
    Directory,
    HoldDelivery,
    JoinAnswer,
    MirrorPolicy,
    MirrorRule,
    OutsideDestination,
    Peer,
    RetryDelivery,
    SendStudy,
)
from gateway.ledger import Judge
from gateway.models import Delivery, JoinState, OutboxEntry
from gateway.protocols import Proof
from pacs_node.study_index.actions import ingest
from pacs_node.study_index.models import Instance
from standards.errors import PermanentError, TransientError
from standards.uids import new_uid
from tests.contract.region import make_instance

pytestmark = pytest.mark.django_db(transaction=True)

Store = Callable[..., str]
NOON = datetime(2026, 11, 21, 12, tzinfo=ZoneInfo("Europe/Moscow"))
VAULT = OutsideDestination(name="vault", kind="stow", url="https://127.0.0.1:9/dicom-web", ae_title="VAULT")


@pytest.fixture
def state() -> JoinState:
    peer = Peer(name="archive", kind="archive", ae_title="ARCHIVE", url="https://127.0.0.1:9", public_key="A" * 43)
    directory = Directory(peers=[peer], token_keys={}, mirror_to=["archive"])
    return actions.record_join(JoinAnswer(name="clinic", directory=directory), "https://127.0.0.1:8")


@pytest.fixture
def store(tmp_path: Path, state: JoinState) -> Store:
    """Take in one instance and lay it on the ledger; its study."""

    def take_in(*, source: str = "SCANNER", **attributes: Any) -> str:
        image = make_instance(**attributes)
        path = tmp_path / f"{new_uid()}.dcm"
        image.save_as(path, enforce_file_format=True)
        ingest(path, source_ae_title=source)
        lay_on()
        return str(image.StudyInstanceUID)

    return take_in


def lay_on() -> None:
    while relay.catch_up() or relay.catch_up_ledger() or relay.number():
        pass


def configure(**mirror: Any) -> None:
    actions.apply_configuration(Configuration(version=1, mirror=MirrorPolicy(**mirror)))
    decide()


def decide(now: datetime | None = None) -> int:
    return ledger.decide_again(Judge(JoinState.objects.get(), now))


def rows(study: str) -> list[tuple[str, str, str]]:
    found = Delivery.objects.filter(study_instance_uid=study).order_by("destination")
    return list(found.values_list("destination", "status", "held_by"))


def test_the_ledger_knows_size_and_modality(store: Store) -> None:
    study = store()
    row = Delivery.objects.get(study_instance_uid=study)
    assert (row.size, row.modality) == (Instance.objects.get().size, "CT")


def test_a_new_rule_holds_what_waits_and_the_ledger_says_until_when(store: Store) -> None:
    study = store()
    configure(rules=[MirrorRule(modalities=["CT"], when="night")])
    decide(NOON)
    told = ledger.progress_of(study, "archive")
    assert [(held["reason"], held["instances"]) for held in told["held"]] == [("night", 1)]
    assert datetime.fromisoformat(told["held"][0]["until"]) == NOON.replace(hour=20)
    decide(NOON.replace(hour=20))
    assert rows(study) == [("archive", "waiting", "")]
    decide(NOON.replace(hour=6))
    assert rows(study) == [("archive", "waiting", "night")]


def test_what_comes_while_a_rule_holds_is_held_from_the_first_moment(store: Store) -> None:
    configure(rules=[MirrorRule(when="on-demand", priority=70)])
    study = store()
    assert rows(study) == [("archive", "waiting", "on-demand")]
    assert Delivery.objects.get().priority == 70
    assert deliveries.next_waiting("archive") is None


def test_what_is_asked_for_goes_also_what_comes_later(store: Store) -> None:
    configure(rules=[MirrorRule(when="on-demand")])
    study = store()
    actions.apply_send_study(SendStudy(study_instance_uid=study, priority=0))
    store(study=study, number=2)
    assert rows(study) == [("archive", "waiting", "")] * 2
    actions.apply_hold(HoldDelivery(study_instance_uid=study, action="rule"))
    assert rows(study) == [("archive", "waiting", "on-demand")] * 2


def test_a_held_study_goes_when_it_is_sent(store: Store) -> None:
    study = store()
    actions.apply_hold(HoldDelivery(study_instance_uid=study))
    assert rows(study) == [("archive", "waiting", "held")]
    actions.apply_send_study(SendStudy(study_instance_uid=study))
    assert rows(study) == [("archive", "waiting", "")]


def test_a_place_outside_gets_what_is_held_and_nothing_of_its_own(store: Store) -> None:
    ours, theirs = store(), store(source="VAULT")
    configure(outside=[VAULT])
    lay_on()
    assert [row[0] for row in rows(ours)] == ["archive", "vault"]
    assert [row[0] for row in rows(theirs)] == ["archive"]


def test_what_no_rule_sends_there_any_more_leaves_the_ledger_but_proofs_stay(store: Store) -> None:
    proved, waiting = store(), store()
    deliveries.record_proof(Delivery.objects.get(study_instance_uid=proved), Proof("receipt", {}))
    configure(outside=[VAULT], rules=[MirrorRule(destinations=["vault"])])
    lay_on()
    assert rows(proved) == [("archive", "receipted", ""), ("vault", "waiting", "")]
    assert rows(waiting) == [("vault", "waiting", "")]
    configure()
    lay_on()
    assert rows(waiting) == [("archive", "waiting", "")]


def test_a_weaker_proof_never_takes_the_place_of_a_stronger_one(store: Store) -> None:
    study = store()
    row = Delivery.objects.get(study_instance_uid=study)
    for name, status in (("stored", "delivered"), ("read-back", "delivered"), ("committed", "delivered")):
        deliveries.record_proof(row, Proof(name, {"by": name}))  # type: ignore[arg-type]
        row.refresh_from_db()
        assert row.status == status
    assert (row.proof, row.receipt) == ("read-back", {"by": "read-back"})


def test_the_ledger_names_every_error_and_a_retry_clears_it(store: Store) -> None:
    study = new_uid()
    for number in range(1, 4):
        store(study=study, number=number)
    first, second, _ = Delivery.objects.order_by("pk")
    deliveries.record_failure(first, PermanentError("source-damaged", "on the disk"))
    deliveries.record_failure(second, TransientError("storage-full", "there"))
    told = ledger.progress_of(study, "archive")
    assert (told["total"], told["receipted"], told["failed"]) == (3, 0, 1)
    assert told["errors"] == {"source-damaged": 1, "storage-full": 1}
    assert told["failed_bytes"] == first.size
    actions.apply_retry(RetryDelivery(destination="archive"))
    assert Delivery.objects.filter(status="waiting", next_attempt_at__lte=timezone.now()).count() == 3
    assert OutboxEntry.objects.filter(kind="delivery.progress").exists(), "the centre is told"


def test_the_ledger_knows_since_when_something_fails_and_forgets_it_with_the_proof(store: Store) -> None:
    study = store()
    row = Delivery.objects.get()
    begun = timezone.now()
    deliveries.record_failure(row, TransientError("body-damaged"))
    first = Delivery.objects.get().failing_since
    assert first is not None
    assert first >= begun
    deliveries.record_failure(row, TransientError("not-restored"))
    assert Delivery.objects.get().failing_since == first, "another error is no other beginning"
    assert datetime.fromisoformat(ledger.progress_of(study, "archive")["failing_since"]) == first
    deliveries.record_proof(row, Proof("receipt", {}, 0))
    assert ledger.progress_of(study, "archive")["failing_since"] is None


def test_a_retry_of_another_destination_or_study_changes_nothing(store: Store) -> None:
    store()
    deliveries.record_failure(Delivery.objects.get(), PermanentError("source-damaged"))
    actions.apply_retry(RetryDelivery(destination="vault"))
    actions.apply_retry(RetryDelivery(study_instance_uid="1.2.3"))
    assert Delivery.objects.get().status == "failed"


def test_a_zero_retention_copy_goes_by_a_receipt_and_by_nothing_weaker(store: Store) -> None:
    configure(outside=[VAULT])
    lay_on()
    study = store()
    to_archive, to_vault = Delivery.objects.filter(study_instance_uid=study).order_by("destination")
    deliveries.record_proof(to_vault, Proof("read-back", {}))
    assert deliveries.release_delivered() == 0
    deliveries.record_proof(to_archive, Proof("receipt", {}))
    assert deliveries.release_delivered() == 1
    assert Instance.objects.get().released_at is not None


def test_a_copy_stays_while_it_is_to_go_anywhere_yet(store: Store) -> None:
    configure(outside=[VAULT])
    lay_on()
    study = store()
    to_archive = Delivery.objects.get(study_instance_uid=study, destination="archive")
    deliveries.record_proof(to_archive, Proof("receipt", {}))
    assert deliveries.release_delivered() == 0


def test_a_region_may_trust_another_proof_with_the_only_copy(store: Store) -> None:
    configure(outside=[VAULT], rules=[MirrorRule(destinations=["vault"])], release_by=["receipt", "read-back"])
    study = store()
    deliveries.record_proof(Delivery.objects.get(study_instance_uid=study), Proof("committed", {}))
    assert deliveries.release_delivered() == 0
    deliveries.record_proof(Delivery.objects.get(study_instance_uid=study), Proof("read-back", {}))
    assert deliveries.release_delivered() == 1


def test_many_threads_prove_at_once_and_each_row_is_proved(store: Store) -> None:
    study = new_uid()
    for number in range(1, 9):
        store(study=study, number=number)
    waiting = list(Delivery.objects.all())

    def prove(row: Delivery) -> None:
        deliveries.record_proof(row, Proof("receipt", {"of": row.pk}, wire_bytes=5))
        connections.close_all()

    threads = [threading.Thread(target=prove, args=(row,)) for row in waiting]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = ledger.progress_of(study, "archive")
    assert (told["receipted"], told["wire_bytes"], told["proofs"]) == (8, 40, {"receipt": 8})
    assert {row.receipt["of"] for row in Delivery.objects.all() if row.receipt} == {row.pk for row in waiting}

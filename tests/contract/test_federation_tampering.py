"""What passes from a clinic to the archive is held up, cut off, damaged and forged. Nothing may be lost or doubled."""

import json
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deploy.processes import wait_until
from gateway.envelope import Receipt
from gateway.keys import sign
from tests.contract.region import make_series
from tests.contract.region_with_middle import Setup, region_with_middle
from tests.contract.tampering import HANG_UP, Answer, Passage, honest

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    with region_with_middle(tmp_path_factory.mktemp("region"), Setup) as setup:
        yield setup


@pytest.fixture
def setup(shared: Setup) -> Iterator[Setup]:
    shared.middle.behaviour = honest
    shared.region.revive(shared.archive, shared.clinic)
    yield shared
    shared.middle.behaviour = honest


def test_a_study_travels_and_everybody_agrees_on_it(setup: Setup, tmp_path: Path) -> None:
    study, uids = make_series(12, tmp_path)
    setup.region.take_in(setup.clinic, tmp_path)
    setup.wait_for_receipts(study, 12)
    setup.assert_same_at_both_ends(uids)
    setup.wait_for_centre(setup.clinic)
    setup.wait_for_centre(setup.archive)
    assert sorted(setup.announced(setup.clinic, study)) == sorted(uids)
    assert sorted(setup.announced(setup.archive, study)) == sorted(uids)
    progress = setup.region.ask(
        "SELECT total, receipted, failed FROM federation_deliverystate WHERE study_instance_uid = %s", study
    )
    assert progress == [(12, 12, 0)]


def lose_the_receipt(passage: Passage) -> Answer:
    answer = passage.forward()
    return HANG_UP if passage.attempt == 1 else answer


def deliver_twice(passage: Passage) -> Answer:
    first, second = passage.forward(), passage.forward()
    assert first == second
    return second


def hold_back(passage: Passage) -> Answer:
    time.sleep(random.uniform(0, 0.6))
    return passage.forward()


def flip_a_bit(passage: Passage) -> Answer:
    if passage.attempt > 1:
        return passage.forward()
    at = random.randrange(len(passage.body))
    answer: Answer = passage.forward(passage.body[:at] + bytes([passage.body[at] ^ 1]) + passage.body[at + 1 :])
    assert (answer.status, json.loads(answer.body)["code"]) == (409, "body-damaged")
    return answer


def hang_up_at_once(passage: Passage) -> Answer:
    return HANG_UP if passage.attempt == 1 else passage.forward()


@pytest.mark.parametrize("behaviour", [lose_the_receipt, deliver_twice, hold_back, flip_a_bit, hang_up_at_once])
def test_a_bad_line_costs_time_and_nothing_else(setup: Setup, tmp_path: Path, behaviour: object) -> None:
    setup.middle.behaviour = behaviour  # type: ignore[assignment]
    study, uids = make_series(8, tmp_path)
    setup.region.take_in(setup.clinic, tmp_path)
    setup.wait_for_receipts(study, 8)
    setup.assert_same_at_both_ends(uids)
    passed = {uid: max(p.attempt for p in setup.middle.passages if p.uid == uid) for uid in uids}
    assert set(passed.values()) == ({1} if behaviour in (deliver_twice, hold_back) else {2})


def test_a_forged_receipt_is_never_believed(setup: Setup, tmp_path: Path) -> None:
    eve = Ed25519PrivateKey.generate()

    def forge(passage: Passage) -> Answer:
        truth = setup.clinic.query(
            "SELECT dataset_sha256, pixel_sha256, frames_sha256 FROM study_index_instance WHERE sop_instance_uid = ?",
            passage.uid,
        )[0]
        receipt = Receipt(
            receiver="archive",
            sender="clinic",
            sop_instance_uid=passage.uid,
            dataset_sha256=str(truth[0]),
            pixel_sha256=str(truth[1]),
            frames_sha256=str(truth[2]),
            checked=["dataset", "pixel", "frames"],
            received_at=datetime.now(UTC),
        )
        signed = receipt.model_copy(update={"signature": sign(eve, receipt.signed_text())})
        return Answer(200, signed.model_dump_json().encode())

    setup.middle.behaviour = forge
    study, uids = make_series(3, tmp_path)
    setup.region.take_in(setup.clinic, tmp_path)
    wait_until(lambda: sum(p.uid in uids for p in setup.middle.passages) >= 5, 240, "five forged receipts")
    rows = setup.deliveries(study)
    assert [row[1] for row in rows] == ["waiting"] * 3
    assert any("receipt-forged" in str(row[3]) for row in rows)
    assert not set(uids) & set(setup.archive.held())
    setup.middle.behaviour = honest
    setup.wait_for_receipts(study, 3)
    setup.assert_same_at_both_ends(uids)


def test_a_receipt_of_another_instance_is_not_believed(setup: Setup, tmp_path: Path) -> None:
    seen: dict[str, Answer] = {}

    def swap(passage: Passage) -> Answer:
        answer = passage.forward()
        seen.setdefault(passage.uid, answer)
        others = [other for uid, other in seen.items() if uid != passage.uid]
        return others[0] if others and passage.attempt == 1 else answer

    setup.middle.behaviour = swap
    study, uids = make_series(4, tmp_path)
    setup.region.take_in(setup.clinic, tmp_path)
    setup.wait_for_receipts(study, 4)
    setup.assert_same_at_both_ends(uids)
    receipts = setup.clinic.query(
        "SELECT sop_instance_uid, receipt FROM gateway_delivery WHERE study_instance_uid = ?", study
    )
    assert all(json.loads(str(receipt))["sop_instance_uid"] == uid for uid, receipt in receipts)


def test_a_file_that_rotted_on_the_clinics_disk_is_named_and_never_sent(setup: Setup, tmp_path: Path) -> None:
    setup.clinic.gateway.stop()
    study, uids = make_series(2, tmp_path)
    setup.region.take_in(setup.clinic, tmp_path)
    path = setup.clinic.query("SELECT path FROM study_index_instance WHERE sop_instance_uid = ?", uids[0])[0][0]
    file = setup.clinic.directory / "storage" / str(path)
    content = bytearray(file.read_bytes())
    content[-5] ^= 0x10
    file.write_bytes(bytes(content))
    setup.clinic.gateway.start()

    def settled() -> bool:
        return sorted(str(row[1]) for row in setup.deliveries(study)) == ["failed", "receipted"]

    wait_until(settled, 240, "one failed and one receipted")
    errors = {row[0]: str(row[3]) for row in setup.deliveries(study)}
    assert errors[uids[0]].startswith("source-damaged")
    assert uids[0] not in setup.archive.held()
    setup.wait_for_centre(setup.clinic)
    progress = setup.region.ask(
        "SELECT receipted, failed, last_error FROM federation_deliverystate WHERE study_instance_uid = %s", study
    )
    assert progress[0][:2] == (1, 1)
    assert str(progress[0][2]).startswith("source-damaged")


def test_an_urgent_study_overtakes_what_waits(setup: Setup, tmp_path: Path) -> None:
    def refuse(passage: Passage) -> Answer:
        return Answer(507, b'{"code": "storage-full"}')  # the archive's trouble, for which no instance is put off

    setup.middle.behaviour = refuse
    routine, _ = make_series(60, tmp_path / "routine")
    urgent, _ = make_series(3, tmp_path / "urgent")
    setup.region.take_in(setup.clinic, tmp_path / "routine")
    setup.region.take_in(setup.clinic, tmp_path / "urgent")
    setup.region.send("clinic", {"type": "study.send", "study_instance_uid": urgent, "priority": 0})

    def is_urgent() -> bool:
        return (
            setup.clinic.query("SELECT priority FROM gateway_delivery WHERE study_instance_uid = ?", urgent)
            == [(0,)] * 3
        )

    wait_until(is_urgent, 240, "the command arrived")
    setup.middle.behaviour = honest
    setup.wait_for_receipts(routine, 60)
    setup.wait_for_receipts(urgent, 3)
    last_urgent = setup.clinic.query(
        "SELECT max(receipted_at) FROM gateway_delivery WHERE study_instance_uid = ?", urgent
    )
    earlier = setup.clinic.query(
        "SELECT count(*) FROM gateway_delivery WHERE study_instance_uid = ? AND receipted_at < ?",
        routine,
        last_urgent[0][0],
    )
    assert int(str(earlier[0][0])) <= 48, "at most what was under way already"


def test_a_node_with_zero_retention_lets_go_of_what_is_safe_and_of_nothing_else(setup: Setup, tmp_path: Path) -> None:
    node = setup.region.add_node("transit", "gateway")
    setup.region.join(node, setup.region.prepare(("a", "gateway", "transit"))["transit"])
    _, uids = make_series(4, tmp_path)
    stubborn = uids[0]

    def refuse_one(passage: Passage) -> Answer:
        return Answer(503, b'{"code": "busy"}') if passage.uid == stubborn else passage.forward()

    setup.middle.behaviour = refuse_one
    setup.region.take_in(node, tmp_path)
    sent = {uid: dataset for uid, (dataset, _) in node.held().items()}
    node.gateway.start()
    wait_until(lambda: set(node.held()) == {stubborn}, 240, "three of four are released")
    setup.middle.behaviour = honest
    wait_until(lambda: node.held() == {}, 240, "all are released")
    # The index lets go first, so that no crash leaves a row without its file; the files follow.
    wait_until(lambda: not list((node.directory / "storage").rglob("*.dcm")), 240, "their files are gone")
    told = "SELECT count(*) FROM gateway_delivery WHERE released_at IS NULL"
    wait_until(lambda: node.query(told) == [(0,)], 240, "the ledger has it, and the event that tells of it")
    at_archive = setup.archive.held()
    assert {uid: at_archive[uid][0] for uid in uids} == sent
    assert all(len(at_archive[uid][1]) == 64 for uid in uids)
    setup.wait_for_centre(node)
    released = setup.region.ask(
        "SELECT e.body->'released', e.error FROM federation_inboxevent e JOIN federation_node n ON n.id = e.node_id"
        " WHERE n.name = 'transit' AND e.type = 'series.released'"
    )
    assert sorted(pair[0] for pairs, _ in released for pair in pairs) == sorted(uids)  # type: ignore[attr-defined]
    assert all(error == "" for _, error in released)
    node.gateway.stop()

"""A centre, an archive and a clinic as processes that are cut, killed and lied to. Nothing may be lost or doubled."""

import asyncio
import json
import random
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deploy.processes import wait_until
from gateway.envelope import Receipt
from gateway.keys import node_key, sign
from standards import http_signatures
from standards.http_signatures import EMPTY_BODY_SHA256
from tests.contract.region import NodeUnderTest, Region, make_series, region
from tests.contract.tampering import HANG_UP, Answer, MachineInTheMiddle, Passage, honest

pytestmark = pytest.mark.timeout(900)


class Setup:
    """What the tests of this file share; each uses studies of its own."""

    def __init__(self, made: Region, middle: MachineInTheMiddle) -> None:
        self.region, self.middle = made, middle
        self.archive = made.add_node("archive", "archive", federation_url=f"https://127.0.0.1:{middle.port}")
        self.clinic = made.add_node("clinic", "clinic")
        middle.upstream = f"https://127.0.0.1:{self.archive.https_port}"

    def start(self) -> None:
        codes = self.region.prepare(("centre", "archive", "archive"), ("a", "clinic", "clinic"))
        self.region.start_centre()
        self.region.join(self.archive, codes["archive"])
        self.region.join(self.clinic, codes["clinic"])
        self.region.start_pacs(self.archive)
        self.archive.gateway.start()
        self.clinic.gateway.start()

    def deliveries(self, study: str) -> list[tuple[object, ...]]:
        return self.clinic.query(
            "SELECT sop_instance_uid, status, attempts, last_error FROM gateway_delivery WHERE study_instance_uid = ?",
            study,
        )

    def wait_for_receipts(self, study: str, count: int, seconds: float = 200) -> None:
        def done() -> bool:
            return [row[1] for row in self.deliveries(study)] == ["receipted"] * count

        try:
            wait_until(done, seconds, f"{count} receipts")
        except TimeoutError:
            pytest.fail(f"{self.deliveries(study)[:5]}\n{self.region.last_words()}")

    def assert_same_at_both_ends(self, uids: list[str]) -> None:
        at_clinic, at_archive = self.clinic.held(), self.archive.held()
        assert {uid: at_archive.get(uid) for uid in uids} == {uid: at_clinic[uid] for uid in uids}

    def wait_for_centre(self, node: NodeUnderTest) -> None:
        """Until the centre took every event of the node, and nothing waits to be numbered."""

        def done() -> bool:
            waiting = node.query("SELECT count(*) FROM gateway_outboxentry")[0][0]
            highest = node.query(
                "SELECT max(seq) FROM gateway_numberedevent WHERE epoch = (SELECT epoch FROM gateway_joinstate)"
            )[0][0]
            cursor = self.region.ask("SELECT cursor FROM federation_node WHERE name = %s", node.name)[0][0]
            return waiting == 0 and cursor == highest

        try:
            wait_until(done, 150, f"the centre has all of {node.name}")
        except TimeoutError:
            pytest.fail(self.region.last_words())

    def announced(self, node: NodeUnderTest, study: str) -> list[str]:
        """SOP Instance UIDs that the centre took from the node as added, in the order of the inbox."""
        rows = self.region.ask(
            "SELECT e.body, e.error FROM federation_inboxevent e JOIN federation_node n ON n.id = e.node_id"
            " WHERE n.name = %s AND e.type = 'series.changed'"
            " AND e.body->'study'->>'study_instance_uid' = %s ORDER BY e.id",
            node.name,
            study,
        )
        assert all(error == "" for _, error in rows), rows
        return [item["sop_instance_uid"] for body, _ in rows for item in body["added"]]  # type: ignore[index]

    def assert_no_gaps(self) -> None:
        rows = self.region.ask(
            "SELECT node_id, epoch, array_agg(seq ORDER BY seq) FROM federation_inboxevent GROUP BY 1, 2"
        )
        for _, _, seqs in rows:
            assert seqs == list(range(1, len(seqs) + 1))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    directory = tmp_path_factory.mktemp("region")
    with region(directory) as made:
        middle = MachineInTheMiddle(directory / "tls")
        setup = Setup(made, middle)
        setup.start()
        yield setup
        middle.stop()


@pytest.fixture
def setup(shared: Setup) -> Iterator[Setup]:
    shared.middle.behaviour = honest
    shared.region.wait_for_pacs(shared.archive)  # a test before may have killed it last
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
    wait_until(lambda: sum(p.uid in uids for p in setup.middle.passages) >= 5, 120, "five forged receipts")
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

    wait_until(settled, 120, "one failed and one receipted")
    errors = {row[0]: str(row[3]) for row in setup.deliveries(study)}
    assert errors[uids[0]].startswith("source-damaged")
    assert uids[0] not in setup.archive.held()
    setup.wait_for_centre(setup.clinic)
    progress = setup.region.ask(
        "SELECT receipted, failed, last_error FROM federation_deliverystate WHERE study_instance_uid = %s", study
    )
    assert progress[0][:2] == (1, 1)
    assert str(progress[0][2]).startswith("source-damaged")


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_9_of_every_end_at_any_moment_loses_and_doubles_nothing(setup: Setup, tmp_path: Path, seed: int) -> None:
    """80 instances travel while the sender, the receiver and the centre are killed again and again."""
    dice = random.Random(seed)
    study, uids = make_series(80, tmp_path, text=f"seed {seed}")
    bringing = threading.Thread(target=setup.region.take_in, args=(setup.clinic, tmp_path))
    bringing.start()
    victims = [setup.clinic.gateway, setup.archive.pacs, setup.archive.gateway, setup.region.centre]
    kills = 0
    while kills < 12:
        time.sleep(dice.uniform(0.2, 1.2))
        victim = dice.choice(victims)
        victim.kill()
        time.sleep(dice.uniform(0, 0.3))
        victim.start()
        kills += 1
    bringing.join()
    setup.wait_for_receipts(study, 80, 400)
    setup.assert_same_at_both_ends(uids)
    for node in (setup.clinic, setup.archive):
        setup.wait_for_centre(node)
        assert sorted(setup.announced(node, study)) == sorted(uids)
    setup.assert_no_gaps()
    assert (
        len(
            setup.archive.query(
                "SELECT 1 FROM gateway_issuedreceipt WHERE sop_instance_uid IN (SELECT value FROM json_each(?))",
                json.dumps(uids),
            )
        )
        == 80
    )


def test_the_node_goes_on_without_the_centre_and_tells_it_later(setup: Setup, tmp_path: Path) -> None:
    setup.region.centre.kill()
    study, uids = make_series(5, tmp_path)
    setup.region.take_in(setup.clinic, tmp_path)
    setup.wait_for_receipts(study, 5)
    setup.region.start_centre()
    setup.wait_for_centre(setup.clinic)
    assert sorted(setup.announced(setup.clinic, study)) == sorted(uids)


def test_a_centre_restored_from_backup_hears_what_it_lost_again(setup: Setup, tmp_path: Path) -> None:
    early, _ = make_series(2, tmp_path / "early")
    setup.region.take_in(setup.clinic, tmp_path / "early")
    setup.wait_for_receipts(early, 2)
    setup.wait_for_centre(setup.clinic)
    backup = setup.region.ask("SELECT cursor FROM federation_node WHERE name = 'clinic'")[0][0]
    late, uids = make_series(3, tmp_path / "late")
    setup.region.take_in(setup.clinic, tmp_path / "late")
    setup.wait_for_receipts(late, 3)
    setup.wait_for_centre(setup.clinic)
    setup.region.tell(
        "DELETE FROM federation_inboxevent e USING federation_node n"
        " WHERE n.id = e.node_id AND n.name = 'clinic' AND e.epoch = n.epoch AND e.seq > %s",
        backup,
    )
    setup.region.tell("UPDATE federation_node SET cursor = %s WHERE name = 'clinic'", backup)
    assert setup.announced(setup.clinic, late) == []
    wait_until(lambda: sorted(setup.announced(setup.clinic, late)) == sorted(uids), 120, "the node told it again")
    setup.wait_for_centre(setup.clinic)
    setup.assert_no_gaps()


def test_an_urgent_study_overtakes_what_waits(setup: Setup, tmp_path: Path) -> None:
    def refuse(passage: Passage) -> Answer:
        return Answer(503, b'{"code": "busy"}')

    setup.middle.behaviour = refuse
    routine, _ = make_series(30, tmp_path / "routine")
    urgent, _ = make_series(3, tmp_path / "urgent")
    setup.region.take_in(setup.clinic, tmp_path / "routine")
    setup.region.take_in(setup.clinic, tmp_path / "urgent")
    setup.region.send("clinic", {"type": "study.send", "study_instance_uid": urgent, "priority": 0})

    def is_urgent() -> bool:
        return (
            setup.clinic.query("SELECT priority FROM gateway_delivery WHERE study_instance_uid = ?", urgent)
            == [(0,)] * 3
        )

    wait_until(is_urgent, 30, "the command arrived")
    setup.clinic.write("UPDATE gateway_delivery SET next_attempt_at = '2026-01-01 00:00:00' WHERE status = 'waiting'")
    setup.middle.behaviour = honest
    setup.wait_for_receipts(routine, 30)
    setup.wait_for_receipts(urgent, 3)
    last_urgent = setup.clinic.query(
        "SELECT max(receipted_at) FROM gateway_delivery WHERE study_instance_uid = ?", urgent
    )
    earlier = setup.clinic.query(
        "SELECT count(*) FROM gateway_delivery WHERE study_instance_uid = ? AND receipted_at < ?",
        routine,
        last_urgent[0][0],
    )
    assert int(str(earlier[0][0])) <= 24, "at most what was under way already"


def test_a_command_is_there_within_two_seconds(setup: Setup) -> None:
    before = setup.clinic.query("SELECT last_command_seq FROM gateway_joinstate")[0][0]
    setup.region.send("clinic", {"type": "study.send", "study_instance_uid": "1.2.3", "priority": 10})
    began = time.monotonic()
    wait_until(
        lambda: setup.clinic.query("SELECT last_command_seq FROM gateway_joinstate")[0][0] != before, 30, "applied"
    )
    assert time.monotonic() - began < 2


def test_the_gateway_ends_cleanly_when_asked(setup: Setup) -> None:
    assert setup.clinic.gateway.stop(15) == 0
    setup.clinic.gateway.start()


def test_a_node_with_another_key_is_refused_and_comes_back_with_its_own(setup: Setup, tmp_path: Path) -> None:
    setup.clinic.gateway.stop()
    key = setup.clinic.directory / "secrets" / "federation.pem"
    shutil.copy(key, tmp_path / "own.pem")
    key.unlink()
    study, uids = make_series(2, tmp_path / "in")
    setup.region.take_in(setup.clinic, tmp_path / "in")
    setup.clinic.gateway.start()

    def refused() -> bool:
        rows = setup.deliveries(study)
        trouble = str(setup.clinic.query("SELECT last_error FROM gateway_joinstate")[0][0])
        return len(rows) == 2 and any("signature-invalid" in str(row[3]) for row in rows) and "signature" in trouble

    wait_until(refused, 120, "centre and archive refuse")
    assert not set(uids) & set(setup.archive.held())
    assert setup.region.ask("SELECT count(*) FROM audit_auditevent WHERE action = 'node.refused'") != [(0,)]
    setup.clinic.gateway.stop()
    shutil.copy(tmp_path / "own.pem", key)
    setup.clinic.gateway.start()
    setup.wait_for_receipts(study, 2)


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
    wait_until(lambda: set(node.held()) == {stubborn}, 120, "three of four are released")
    setup.middle.behaviour = honest
    wait_until(lambda: node.held() == {}, 120, "all are released")
    # The index lets go first, so that no crash leaves a row without its file; the files follow.
    wait_until(lambda: not list((node.directory / "storage").rglob("*.dcm")), 30, "their files are gone")
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


def test_forty_waiting_nodes_cost_the_centre_no_thread_and_no_connection(setup: Setup) -> None:
    """The clinic's key is used for all of them: what counts is how many wait."""
    key = node_key(setup.clinic.directory)
    trust = ssl.create_default_context(cafile=str(setup.region.authority))
    after = int(str(setup.clinic.query("SELECT last_command_seq FROM gateway_joinstate")[0][0]))
    process = setup.region.centre.process
    assert process is not None

    def threads() -> int:
        return len(list(Path(f"/proc/{process.pid}/task").iterdir()))

    def connections() -> int:
        return int(
            str(setup.region.ask("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")[0][0])
        )

    async def wait_and_count() -> tuple[int, int, list[dict[str, object]], float]:
        async with httpx.AsyncClient(verify=trust, timeout=60, limits=httpx.Limits(max_connections=60)) as client:

            async def poll(wait: int) -> dict[str, object]:
                path = f"/federation/v1/commands?after={after}&wait={wait}"
                headers = http_signatures.sign("GET", path, EMPTY_BODY_SHA256, key, "clinic", int(time.time()))
                answer = await client.get(setup.region.centre_url + path, headers=headers)
                assert answer.status_code == 200
                return dict(answer.json())

            await asyncio.gather(*(poll(0) for _ in range(5)))
            before = threads(), connections()
            polls = [asyncio.create_task(poll(25)) for _ in range(40)]
            await asyncio.sleep(4)  # nothing may come in this time
            assert not any(task.done() for task in polls)
            while_waiting = threads(), connections()
            began = time.monotonic()
            await asyncio.to_thread(
                setup.region.send, "clinic", {"type": "study.send", "study_instance_uid": "1.2.4", "priority": 10}
            )
            answers = list(await asyncio.gather(*polls))
            took = time.monotonic() - began
            return while_waiting[0] - before[0], while_waiting[1] - before[1], answers, took

    more_threads, more_connections, answers, took = asyncio.run(wait_and_count())
    assert more_threads <= 2
    assert more_connections <= 3
    assert all(answer["commands"] for answer in answers)
    assert took < 20, "the wait was cut short by the command"


@pytest.fixture(scope="module")
def stranger(shared: Setup) -> NodeUnderTest:
    return shared.region.add_node("stranger", "clinic")


class TestJoining:
    """``join`` as a person runs it."""

    def said(self, result: subprocess.CompletedProcess[str]) -> str:
        assert result.returncode != 0
        assert "Traceback" not in result.stderr
        return result.stderr

    def test_a_wrong_code(self, setup: Setup, stranger: NodeUnderTest) -> None:
        result = stranger.manage("join", setup.region.centre_url, "AAAA-BBBB-CCCC-DDDD")
        assert "does not know this code" in self.said(result)

    def test_a_code_used_by_another_node(self, setup: Setup, stranger: NodeUnderTest) -> None:
        code = setup.region.join_code("a", "clinic", "third")
        third = setup.region.nodes.get("third") or setup.region.add_node("third", "clinic")
        assert third.manage("join", setup.region.centre_url, code, "--force").returncode == 0
        assert "already used" in self.said(stranger.manage("join", setup.region.centre_url, code))

    def test_two_nodes_with_one_code_at_once_get_one_winner(self, setup: Setup, stranger: NodeUnderTest) -> None:
        code = setup.region.join_code("a", "clinic", "race")
        rivals = [setup.region.add_node(f"rival-{number}", "clinic") for number in range(2)]
        results: list[int] = []
        threads = [
            threading.Thread(
                target=lambda node=rival: results.append(node.manage("join", setup.region.centre_url, code).returncode)
            )
            for rival in rivals
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == [0, 1]

    def test_a_code_past_its_time(self, setup: Setup, stranger: NodeUnderTest) -> None:
        code = setup.region.join_code("a", "clinic", "late")
        setup.region.tell(
            "UPDATE federation_joincode SET expires_at = '2026-01-01' FROM federation_node n"
            " WHERE n.id = node_id AND n.name = 'late'"
        )
        assert "past its time" in self.said(stranger.manage("join", setup.region.centre_url, code))

    def test_a_centre_that_is_not_there(self, setup: Setup, stranger: NodeUnderTest) -> None:
        assert "cannot be reached" in self.said(stranger.manage("join", "https://127.0.0.1:1", "AAAA-BBBB-CCCC"))

    def test_a_certificate_that_nobody_vouches_for(self, setup: Setup, stranger: NodeUnderTest) -> None:
        trusting_nobody = {name: value for name, value in stranger.environment.items() if name != "REGIS_NODE_TLS_CA"}
        wary = NodeUnderTest(**{**vars(stranger), "environment": trusting_nobody})
        assert "not trusted" in self.said(wary.manage("join", setup.region.centre_url, "AAAA-BBBB-CCCC"))

    def test_a_node_that_is_joined_already(self, setup: Setup) -> None:
        assert "--force" in self.said(setup.clinic.manage("join", setup.region.centre_url, "AAAA-BBBB-CCCC"))

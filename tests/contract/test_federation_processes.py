"""A centre, an archive and a clinic as processes that are killed, set back, locked out, kept waiting and joined."""

import asyncio
import json
import random
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deploy.processes import wait_until
from gateway.keys import node_key
from standards import http_signatures
from standards.http_signatures import EMPTY_BODY_SHA256
from tests.contract.region import NodeUnderTest, make_series
from tests.contract.region_with_middle import Setup, region_with_middle

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    with region_with_middle(tmp_path_factory.mktemp("region"), Setup) as setup:
        yield setup


@pytest.fixture
def setup(shared: Setup) -> Setup:
    shared.region.revive(shared.archive, shared.clinic)
    return shared


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
    setup.region.tell("UPDATE federation_node SET cursor = %s WHERE name = 'clinic'", backup)
    lost = setup.region.ask(  # not looked for afterwards: the node tells it again any moment
        "DELETE FROM federation_inboxevent e USING federation_node n"
        " WHERE n.id = e.node_id AND n.name = 'clinic' AND e.epoch = n.epoch AND e.seq > %s RETURNING e.type",
        backup,
    )
    assert ("series.changed",) in lost
    wait_until(lambda: sorted(setup.announced(setup.clinic, late)) == sorted(uids), 240, "the node told it again")
    setup.wait_for_centre(setup.clinic)
    setup.assert_no_gaps()


def test_a_command_is_there_at_once_and_not_at_the_next_question(setup: Setup) -> None:
    def took() -> float:
        before = setup.last_command(setup.clinic)
        setup.region.send("clinic", {"type": "study.send", "study_instance_uid": "1.2.3", "priority": 10})
        began = time.monotonic()
        seq = "SELECT last_command_seq FROM gateway_joinstate"
        wait_until(lambda: setup.clinic.query(seq)[0][0] != before, 240, "applied")
        return time.monotonic() - began

    assert min(took() for _ in range(3)) < 10, "a question waits for 25 s"


def test_the_gateway_ends_cleanly_when_asked(setup: Setup) -> None:
    gateway = setup.clinic.gateway
    gateway.stop()  # it may have been started a moment ago, and not hear signals yet
    before = gateway.log.stat().st_size
    gateway.start()
    wait_until(lambda: b"gateway-started" in gateway.log.read_bytes()[before:], 240, "the gateway runs")
    assert gateway.stop() == 0
    gateway.start()


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

    try:
        wait_until(refused, 240, "centre and archive refuse")
        assert not set(uids) & set(setup.archive.held())
        assert setup.region.ask("SELECT count(*) FROM audit_auditevent WHERE action = 'node.refused'") != [(0,)]
    finally:
        setup.clinic.gateway.stop()
        shutil.copy(tmp_path / "own.pem", key)
        setup.clinic.gateway.start()
    setup.wait_for_receipts(study, 2)


def test_forty_waiting_nodes_cost_the_centre_no_thread_and_no_connection(setup: Setup) -> None:
    """The clinic's key is used for all of them: what counts is how many wait."""
    key = node_key(setup.clinic.directory)
    trust = ssl.create_default_context(cafile=str(setup.region.authority))
    after = setup.last_command(setup.clinic)
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
    # The threads that serve the events and heartbeats of nodes at work may have become more meanwhile, up to four.
    assert more_threads <= 10
    assert more_connections <= 5
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

"""Large instances, rules and several destinations between real processes: what is cut goes on where it stopped."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deploy.processes import wait_until
from standards.uids import new_uid
from tests.contract.region import NodeUnderTest, Region, make_instance, make_series
from tests.contract.region_with_middle import Setup, region_with_middle
from tests.contract.tampering import HANG_UP, Answer, MachineInTheMiddle, Passage, honest

pytestmark = pytest.mark.timeout(900)

CHUNK = 4 << 20


def make_large(folder: Path, *, side: int) -> tuple[str, str, int]:
    """One image of ``side`` × ``side`` pixels: study, instance, and how many chunks it goes in."""
    folder.mkdir(parents=True, exist_ok=True)
    image = make_instance(study=new_uid(), size=side)
    path = folder / f"{image.SOPInstanceUID}.dcm"
    image.save_as(path, enforce_file_format=True)
    return str(image.StudyInstanceUID), str(image.SOPInstanceUID), -(-path.stat().st_size // CHUNK)


class Mirror(Setup):
    """A clinic that mirrors to an archive through a machine in the middle; each test uses studies of its own."""

    def __init__(self, made: Region, middle: MachineInTheMiddle) -> None:
        super().__init__(made, middle)
        # What a test holds back in the middle is not sent again meanwhile, however slow the machine is.
        self.clinic.environment["REGIS_NODE_NETWORK_TIMEOUT_SECONDS"] = "300"

    def rows(self, study: str, destination: str = "archive") -> list[tuple[object, ...]]:
        return self.clinic.query(
            "SELECT status, held_by, last_error FROM gateway_delivery WHERE study_instance_uid = ? AND destination = ?",
            study,
            destination,
        )

    def wait(self, study: str, count: int, *, destination: str = "archive", seconds: float = 240) -> None:
        def done() -> bool:
            return [row[0] for row in self.rows(study, destination)] == ["receipted"] * count

        try:
            wait_until(done, seconds, f"{count} receipts")
        except TimeoutError:
            pytest.fail(f"{self.rows(study, destination)[:5]}\n{self.region.last_words()}")

    def chunks(self, uid: str) -> list[int]:
        """Which chunks of an instance passed the middle, in their order."""
        return [p.index for p in list(self.middle.passages) if p.uid == uid and p.index is not None]

    def configure(self, **mirror: object) -> None:
        """Have the centre push other rules of the mirror, and wait until they are there.

        All is encoded, whatever this machine is measured to be faster with.
        """
        mirror = {"encode": "always", **mirror}
        self.region.configure(self.clinic, mirror=mirror)

    def told(self, study: str, destination: str = "archive") -> dict[str, object]:
        """The last the centre heard of the ledger about a study on its way to a destination."""
        rows = self.region.ask(
            "SELECT body FROM federation_inboxevent WHERE type = 'delivery.progress'"
            " AND body->>'study_instance_uid' = %s AND body->>'destination' = %s ORDER BY id DESC LIMIT 1",
            study,
            destination,
        )
        return dict(rows[0][0]) if rows else {}  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    with region_with_middle(tmp_path_factory.mktemp("region"), Mirror) as made:
        made.configure()
        yield made


@pytest.fixture
def setup(shared: Mirror) -> Iterator[Mirror]:
    shared.middle.behaviour = honest
    shared.region.revive(shared.archive, shared.clinic)
    yield shared
    shared.middle.behaviour = honest


def lose(passage: Passage) -> Answer:
    """Every other chunk is lost on its way, the rest loses its answer."""
    if passage.attempt > 1 or passage.index is None:
        return passage.forward()
    if passage.index % 2 == 0:
        passage.forward()
    return HANG_UP


def deliver_twice(passage: Passage) -> Answer:
    first = passage.forward()
    assert passage.forward() == first
    return first


class Reorder:
    """Chunks arrive last first: each waits until the one after it has passed, or for a second."""

    def __init__(self) -> None:
        self.passed = threading.Condition()
        self.seen: set[int] = set()

    def __call__(self, passage: Passage) -> Answer:
        if passage.index is None:
            return passage.forward()
        with self.passed:
            self.passed.wait_for(lambda: (passage.index or 0) + 1 in self.seen, 1)
            self.seen.add(passage.index)
            self.passed.notify_all()
        return passage.forward()


def flip(passage: Passage) -> Answer:
    if passage.attempt > 1 or passage.index is None:
        return passage.forward()
    at = passage.index * 997 % len(passage.body)
    answer: Answer = passage.forward(passage.body[:at] + bytes([passage.body[at] ^ 4]) + passage.body[at + 1 :])
    assert (answer.status, json.loads(answer.body)["code"]) == (409, "body-damaged")
    return answer


@pytest.mark.parametrize("make", [lambda: lose, lambda: deliver_twice, Reorder, lambda: flip])
def test_chunks_that_are_lost_doubled_reordered_or_damaged_make_the_same_instance(
    setup: Mirror, tmp_path: Path, make: Callable[[], Callable[[Passage], Answer]]
) -> None:
    setup.middle.behaviour = make()
    study, uid, count = make_large(tmp_path, side=3200)
    assert count > 3
    setup.region.take_in(setup.clinic, tmp_path)
    setup.wait(study, 1)
    setup.assert_same_at_both_ends([uid])
    assert set(setup.chunks(uid)) == set(range(count))
    assert not list((setup.archive.directory / "spool" / "uploads").iterdir()), "nothing is left in the spool"
    carried = setup.clinic.query(
        "SELECT size, wire_bytes FROM gateway_delivery WHERE study_instance_uid = ? AND destination = 'archive'", study
    )
    assert int(str(carried[0][1])) < 0.45 * int(str(carried[0][0]))


def test_after_kill_9_of_both_ends_only_what_had_not_arrived_is_sent(setup: Mirror, tmp_path: Path) -> None:
    arrived: set[int] = set()
    under_way: list[int] = []
    is_cut, lock = threading.Event(), threading.Lock()

    def cut_in_the_middle(passage: Passage) -> Answer:
        if passage.index is None:
            return passage.forward()
        with lock:
            if len(arrived) + len(under_way) >= 8:
                is_cut.set()
                return HANG_UP
            under_way.append(passage.index)
        try:
            answer = passage.forward()
            if answer.status == 204:
                arrived.add(passage.index)
            return answer
        finally:
            under_way.remove(passage.index)

    setup.middle.behaviour = cut_in_the_middle
    study, uid, count = make_large(tmp_path, side=5500)
    setup.region.take_in(setup.clinic, tmp_path)
    wait_until(lambda: is_cut.is_set() and len(arrived) >= 6, 240, "the line is cut")
    setup.clinic.gateway.kill()
    setup.archive.pacs.kill()
    wait_until(lambda: not under_way, 120, "nothing is on its way between them")
    before, passages = chunks_kept(setup.archive.directory), len(setup.middle.passages)
    assert arrived <= before, "what was answered is on the disk, and perhaps what was killed before its answer"
    assert 6 <= len(before) < count
    setup.region.start_pacs(setup.archive)
    setup.middle.behaviour = honest
    setup.clinic.gateway.start()
    setup.wait(study, 1)
    setup.assert_same_at_both_ends([uid])
    again = [p.index for p in setup.middle.passages[passages:] if p.uid == uid and p.index is not None]
    assert sorted(again) == sorted(set(range(count)) - before), "what was missing, once, and nothing else"


def chunks_kept(directory: Path) -> set[int]:
    """Which chunks of the one upload in a node's spool count, as its disk says."""
    (told,) = [path.read_bytes() for path in (directory / "spool" / "uploads").glob("*/chunks")]
    return {index for index in range(len(told) // 32) if any(told[index * 32 : (index + 1) * 32])}


def test_an_urgent_study_overtakes_a_large_one_between_its_chunks(setup: Mirror, tmp_path: Path) -> None:
    began = threading.Event()
    gate = threading.Semaphore(0)

    def slow(passage: Passage) -> Answer:
        if passage.index is not None:
            began.set()
            gate.acquire(timeout=600)
        return passage.forward()

    setup.middle.behaviour = slow
    large, uid, count = make_large(tmp_path / "large", side=7000)
    urgent, _ = make_series(3, tmp_path / "urgent")
    assert count > 20
    setup.region.send("clinic", {"type": "study.send", "study_instance_uid": urgent, "priority": 0})
    setup.region.take_in(setup.clinic, tmp_path / "large")
    assert began.wait(240)
    setup.region.take_in(setup.clinic, tmp_path / "urgent")
    wait_until(lambda: len(setup.rows(urgent)) == 3, 240, "the urgent one is on the ledger")
    waiting = threading.Event()

    def let_chunks_through() -> None:
        gate.release(3)  # a thread that comes free carries what is urgent next
        while not waiting.wait(10):
            gate.release()

    trickle = threading.Thread(target=let_chunks_through)
    trickle.start()
    try:
        setup.wait(urgent, 3)
        left = count - len(set(setup.chunks(uid)))
        assert [row[0] for row in setup.rows(large)] == ["waiting"]
        assert left > 0
    finally:
        waiting.set()
        trickle.join()
    setup.middle.behaviour = honest
    gate.release(1000)
    setup.wait(large, 1)
    assert sorted(setup.chunks(uid)) == list(range(count)), "its progress was kept: each chunk went once"


def test_what_a_rule_holds_says_why_and_goes_when_it_is_asked_for(setup: Mirror, tmp_path: Path) -> None:
    setup.configure(rules=[{"modalities": ["CT"], "when": "on-demand"}])
    try:
        study, uids = make_series(4, tmp_path)
        setup.region.take_in(setup.clinic, tmp_path)
        wait_until(lambda: setup.rows(study) == [("waiting", "on-demand", "")] * 4, 240, "held")

        def centre_knows() -> bool:
            held = setup.told(study).get("held")
            return bool(held) and (held[0]["reason"], held[0]["instances"]) == ("on-demand", 4)  # type: ignore[index]

        wait_until(centre_knows, 240, "the centre knows why")
        assert not [p for p in list(setup.middle.passages) if p.uid in uids]
        setup.region.send("clinic", {"type": "study.send", "study_instance_uid": study, "priority": 10})
        setup.wait(study, 4)
        wait_until(lambda: setup.told(study).get("proofs") == {"receipt": 4}, 240, "the centre knows the proofs")
    finally:
        setup.configure()


def test_other_rules_decide_again_what_waits(setup: Mirror, tmp_path: Path) -> None:
    setup.configure(checkpoints=["203.0.113.0/24"])
    try:
        study, _ = make_series(3, tmp_path)
        setup.region.send("clinic", {"type": "study.send", "study_instance_uid": study, "priority": 0})
        setup.region.take_in(setup.clinic, tmp_path)
        wait_until(lambda: setup.rows(study) == [("waiting", "checkpoint", "")] * 3, 240, "held for a network")
    finally:
        setup.configure()
    setup.wait(study, 3)


def test_an_hour_of_nothing_holds_routine_and_lets_urgent_go_and_a_cap_lets_both(setup: Mirror, tmp_path: Path) -> None:
    routine, _ = make_series(3, tmp_path / "routine")
    urgent, _ = make_series(3, tmp_path / "urgent")
    setup.configure(rates=[{"since": "00:00", "until": "00:00", "kilobits_per_second": 0}])
    try:
        setup.region.take_in(setup.clinic, tmp_path / "routine")
        wait_until(lambda: setup.rows(routine) == [("waiting", "rate", "")] * 3, 240, "held for an hour with a rate")
        held = "SELECT held_until IS NOT NULL FROM gateway_delivery WHERE study_instance_uid = ? AND destination = ?"
        assert setup.clinic.query(held, routine, "archive") == [(1,)] * 3, "and it says until when"
        setup.region.send("clinic", {"type": "study.send", "study_instance_uid": urgent, "priority": 0})
        setup.region.take_in(setup.clinic, tmp_path / "urgent")
        setup.wait(urgent, 3)
        assert setup.rows(routine) == [("waiting", "rate", "")] * 3
        setup.configure(rates=[{"since": "00:00", "until": "00:00", "kilobits_per_second": 800}])
        setup.wait(routine, 3)
    finally:
        setup.configure()


def test_what_a_rule_keeps_for_the_night_goes_when_night_comes(setup: Mirror, tmp_path: Path) -> None:
    night = [{"when": "night"}]
    study, _ = make_series(3, tmp_path)
    here = datetime.now(UTC)  # whatever the zone of the site, its clock is outside of three hours so far off
    later, soon = (f"{here + timedelta(hours=hours):%H:%M}" for hours in (9, 12))
    setup.configure(rules=night, night_since=later, night_until=soon)
    try:
        setup.region.take_in(setup.clinic, tmp_path)
        wait_until(lambda: setup.rows(study) == [("waiting", "night", "")] * 3, 240, "held for the night")
        setup.configure(rules=night, night_since=soon, night_until=later)
        setup.wait(study, 3)
    finally:
        setup.configure()


def test_a_person_holds_a_study_and_gives_it_back(setup: Mirror, tmp_path: Path) -> None:
    study, _ = make_series(2, tmp_path)
    setup.region.send("clinic", {"type": "delivery.hold", "study_instance_uid": study})
    seq = "SELECT count(*) FROM gateway_studypriority WHERE study_instance_uid = ? AND is_held"
    wait_until(lambda: setup.clinic.query(seq, study) == [(1,)], 240, "the command came")
    setup.region.take_in(setup.clinic, tmp_path)
    wait_until(lambda: setup.rows(study) == [("waiting", "held", "")] * 2, 240, "held by a person")
    setup.region.send("clinic", {"type": "delivery.hold", "study_instance_uid": study, "action": "rule"})
    setup.wait(study, 2)


def test_a_failed_study_is_tried_again_when_the_centre_says_so(setup: Mirror, tmp_path: Path) -> None:
    study, uids = make_series(1, tmp_path)
    setup.middle.behaviour = lambda passage: Answer(422, b'{"code": "refused-once", "title": "no"}')
    setup.region.take_in(setup.clinic, tmp_path)
    wait_until(lambda: [row[0] for row in setup.rows(study)] == ["failed"], 240, "failed")
    wait_until(lambda: setup.told(study).get("errors") == {"refused-once": 1}, 240, "the centre knows why")
    setup.middle.behaviour = honest
    setup.region.send("clinic", {"type": "delivery.retry", "destination": "archive"})
    setup.wait(study, 1)
    setup.assert_same_at_both_ends(uids)


def test_a_receiver_of_an_older_version_gets_whole_files(setup: Mirror, tmp_path: Path) -> None:
    setup.clinic.gateway.stop()
    setup.middle.is_old = True
    try:
        setup.clinic.gateway.start()
        small, uids = make_series(2, tmp_path / "small")
        large, uid, _ = make_large(tmp_path / "large", side=2000)
        setup.region.take_in(setup.clinic, tmp_path / "small")
        setup.region.take_in(setup.clinic, tmp_path / "large")
        setup.wait(small, 2)
        setup.wait(large, 1)
        setup.assert_same_at_both_ends([*uids, uid])
        passed = [p for p in setup.middle.passages if p.uid in (*uids, uid)]
        assert {p.what for p in passed} == {"instances"}
        assert all(b"DICM" in p.body[:140] for p in passed)
    finally:
        setup.middle.is_old = False
        setup.clinic.gateway.stop()
        setup.clinic.gateway.start()


def test_a_dead_destination_does_not_slow_another(setup: Mirror, tmp_path: Path) -> None:
    second = setup.region.add_node("second", "archive")
    ports = [int(second.environment[f"REGIS_NODE_{name}_PORT"]) for name in ("HTTP", "HTTPS")]
    kept = [socket.socket() for _ in ports]  # bound and not listening: refused, and nobody else takes them meanwhile
    for one, port in zip(kept, ports, strict=True):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("127.0.0.1", port))
    setup.region.join(second, setup.region.prepare(("centre", "archive", "second"))["second"])

    def knows() -> bool:
        directory = json.loads(str(setup.clinic.query("SELECT directory FROM gateway_joinstate")[0][0]))
        return sorted(directory["mirror_to"]) == ["archive", "second"]

    wait_until(knows, 240, "the clinic knows of two archives")
    study, uids = make_series(20, tmp_path)
    setup.region.take_in(setup.clinic, tmp_path)
    setup.wait(study, 20)
    rows = setup.rows(study, "second")
    assert [row[0] for row in rows] == ["waiting"] * 20
    _wait_for_status(setup, second)
    for one in kept:
        one.close()
    setup.region.start_pacs(second)
    second.gateway.start()
    setup.wait(study, 20, destination="second")
    assert set(uids) <= set(second.held())


def _wait_for_status(setup: Mirror, second: NodeUnderTest) -> None:
    """The heartbeat names the queue of each destination, and what is wrong with one."""

    def told() -> bool:
        status = setup.region.ask("SELECT status FROM federation_node WHERE name = 'clinic'")[0][0]
        queues = {queue["destination"]: queue for queue in status.get("queues", [])}  # type: ignore[attr-defined]
        return "unreachable" in queues.get(second.name, {}).get("trouble", "")

    wait_until(told, 240, "the heartbeat says what is wrong with the second archive")

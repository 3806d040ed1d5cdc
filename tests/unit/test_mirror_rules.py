"""What the rules of the mirror let go, when, and how fast; no database and no waiting: the clock is given."""

import errno
import os
import threading
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway import rules
from gateway.envelope import MirrorPolicy, MirrorRule, RateWindow
from gateway.rates import PIECE, Flow, Meter, Throttle
from gateway.rules import Asked, Decision, decide

MOSCOW = ZoneInfo("Europe/Moscow")
MANY = MirrorPolicy(
    rules=[
        MirrorRule(modalities=["CT", "MR"], when="night"),
        MirrorRule(modalities=["US"], when="on-demand"),
        MirrorRule(modalities=["XA"], destinations=["second"], priority=20),
    ]
)


def at(clock: str, day: int = 21) -> datetime:
    hour, minute = clock.split(":")
    return datetime(2026, 11, day, int(hour), int(minute), tzinfo=MOSCOW)


def test_what_no_rule_names_goes_now_to_all() -> None:
    assert decide(MANY, "archive", "DX", at("12:00")) == Decision(50)
    assert decide(MirrorPolicy(), "archive", "CT", at("12:00")) == Decision(50)


def test_by_day_a_night_rule_says_from_when() -> None:
    assert decide(MANY, "archive", "CT", at("12:00")) == Decision(50, "night", at("20:00"))


@pytest.mark.parametrize("clock", ["20:00", "23:59", "00:00", "05:59"])
def test_at_night_it_goes(clock: str) -> None:
    assert decide(MANY, "archive", "CT", at(clock)) == Decision(50)


def test_when_the_night_is_over_the_rest_waits_for_the_next() -> None:
    assert decide(MANY, "archive", "CT", at("06:00")) == Decision(50, "night", at("20:00"))


def test_on_demand_waits_for_somebody_and_no_hour() -> None:
    assert decide(MANY, "archive", "US", at("03:00")) == Decision(50, "on-demand")


@pytest.mark.parametrize("modality", ["CT", "US"])
def test_what_is_asked_for_goes_at_once(modality: str) -> None:
    assert decide(MANY, "archive", modality, at("12:00"), asked=Asked(10)) == Decision(10)


def test_a_rule_sends_to_whom_it_names_only() -> None:
    assert decide(MANY, "archive", "XA", at("12:00")) is None
    assert decide(MANY, "archive", "XA", at("12:00"), asked=Asked(0)) is None
    assert decide(MANY, "second", "XA", at("12:00")) == Decision(20)


def test_what_a_person_held_stays_whatever_the_rules_say() -> None:
    assert decide(MANY, "archive", "DX", at("12:00"), asked=Asked(50, is_held=True)) == Decision(50, "held")


def test_outside_its_networks_even_an_urgent_study_waits_and_says_why() -> None:
    assert decide(MANY, "archive", "DX", at("12:00"), asked=Asked(0), may_leave=False) == Decision(0, "checkpoint")


CAPPED = MirrorPolicy(
    rates=[
        RateWindow(since="08:00", until="12:00", kilobits_per_second=2000),
        RateWindow(since="12:00", until="14:00", kilobits_per_second=0),
        RateWindow(since="22:00", until="02:00", kilobits_per_second=500),
    ]
)


@pytest.mark.parametrize(
    ("clock", "cap"), [("07:59", None), ("08:00", 2000), ("12:00", 0), ("14:00", None), ("23:00", 500), ("01:59", 500)]
)
def test_caps_follow_the_clock_of_the_site(clock: str, cap: int | None) -> None:
    assert rules.cap_at(CAPPED, at(clock))[0] == cap


def test_an_hour_of_nothing_holds_routine_and_lets_urgent_go() -> None:
    assert decide(CAPPED, "archive", "CT", at("13:00")) == Decision(50, "rate", at("14:00"))
    assert decide(CAPPED, "archive", "CT", at("13:00"), asked=Asked(10)) == Decision(10)


@given(st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(ZoneInfo("Europe/Berlin"))))
def test_the_night_that_is_waited_for_is_night_when_it_comes(now: datetime) -> None:
    decision = decide(MANY, "archive", "CT", now)
    assert decision is not None
    if decision.held_by:
        assert decision.until is not None
        assert decision.until > now
        assert decide(MANY, "archive", "CT", decision.until) == Decision(50)


def test_a_machine_knows_in_which_networks_it_is() -> None:
    assert rules.in_checkpoint([])
    assert rules.in_checkpoint(["127.0.0.0/8"])
    assert rules.in_checkpoint(["203.0.113.0/24", "127.0.0.0/8"])
    assert not rules.in_checkpoint(["203.0.113.0/24"])
    assert not rules.in_checkpoint(["no network"])


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@given(st.lists(st.integers(1, 3 * PIECE), min_size=1, max_size=60), st.integers(1_000, 10_000_000))
def test_a_cap_is_kept_whatever_the_pieces(pieces: list[int], rate: int) -> None:
    clock = Clock()
    throttle = Throttle(clock, clock.sleep)
    throttle.set(rate)
    for count in pieces:
        throttle.take(count)
    assert clock.now - 1000 >= sum(pieces) / rate - 0.001
    assert clock.now - 1000 <= sum(pieces) / rate + 1.0


def test_without_a_cap_nobody_waits() -> None:
    clock = Clock()
    throttle = Throttle(clock, clock.sleep)
    throttle.take(1 << 40)
    assert clock.now == 1000


def test_threads_share_one_cap() -> None:
    clock = Clock()
    lock = threading.Lock()

    def sleep(seconds: float) -> None:
        with lock:
            clock.now += seconds

    throttle = Throttle(clock, sleep)
    throttle.set(100_000)

    def take() -> None:
        for _ in range(5):
            throttle.take(10_000)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.now - 1000 >= 1.99, "200 kB at 100 kB/s"


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 3 * PIECE), st.booleans(), st.booleans()), min_size=1, max_size=30),
    st.integers(50_000, 10_000_000),
)
def test_two_processes_of_a_node_keep_one_cap(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[int, bool, bool]], rate: int
) -> None:
    clock, folder = Clock(), tmp_path_factory.mktemp("node")
    gateway, web = (Throttle(clock, clock.sleep) for _ in range(2))
    for one in (gateway, web):
        one.share(folder)
    gateway.set(rate)
    assert web.bytes_per_second == rate
    for count, by_web, urgent in pieces:
        one = web if by_web else gateway
        one.carry(urgent=urgent)
        one.take(count)
    for file in (gateway._file, web._file):
        assert file is not None
        os.close(file)
    seconds = sum(count for count, _, _ in pieces) / rate
    assert seconds - 0.001 <= clock.now - 1000 <= seconds + 1.0


def test_what_somebody_waits_for_goes_before_what_waits_already(tmp_path: Path) -> None:
    """Six pieces of the mirror are waiting when a recall begins: it has the whole cap until it is through."""
    clock = Clock()
    order: list[str] = []

    def recall(seconds: float) -> None:
        """The mirror has begun to wait: in this time the other process gives back what somebody asked for."""
        if not order:
            order.append("recall begins")
            begun = clock.now
            web.carry(urgent=True)
            for _ in range(4):
                web.take(100_000)
            assert clock.now - begun <= 4.1, "400 kB at 100 kB/s, whatever else waits"
            order.append("recall ends")
        clock.sleep(seconds)

    gateway, web = Throttle(clock, recall), Throttle(clock, clock.sleep)
    for one in (gateway, web):
        one.share(tmp_path)
    gateway.set(100_000)
    gateway.take(600_000)
    assert order == ["recall begins", "recall ends"]
    assert clock.now - 1000 >= 9.99, "all together keep the cap"


def test_a_machine_that_began_anew_is_no_reason_to_wait(tmp_path: Path) -> None:
    before, after = Clock(), Clock()
    after.now = 3.0
    one = Throttle(before, before.sleep)
    one.share(tmp_path)
    one.set(1000)
    one.take(1_000)
    other = Throttle(after, after.sleep)
    other.share(tmp_path)
    other.take(2_000)
    assert 4.9 <= after.now <= 5.1


def test_a_disk_that_cannot_share_the_cap_keeps_nobody_from_sending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    throttle = Throttle(clock, clock.sleep)
    throttle.share(tmp_path)
    throttle.set(1_000)

    def no_locks(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with capture_logs() as logs:
        throttle.take(3_000)
    assert 1002.9 <= clock.now <= 1003.1, "the cap is kept all the same"
    assert [line["event"] for line in logs] == ["cap-not-shared"]


def test_lifting_a_cap_lets_those_go_that_wait() -> None:
    clock = Clock()
    throttle = Throttle(clock, lambda seconds: throttle.set(None))
    throttle.set(1)
    throttle.take(1_000_000)
    assert clock.now == 1000


def test_a_body_comes_whole_in_its_pieces() -> None:
    body = bytes(range(256)) * 1000
    assert b"".join(Throttle().pieces(body)) == body


def test_a_meter_forgets_what_is_longer_ago_than_half_a_minute() -> None:
    clock = Clock()
    meter = Meter(clock)
    for _ in range(10):
        meter.add(1000)
        clock.now += 1
    assert meter.rate() == 1000
    clock.now += 60
    assert meter.rate() == 0


def test_how_long_it_takes_is_not_guessed_without_a_rate() -> None:
    flow = Flow()
    assert flow.seconds(1000) is None
    flow.went(5000, 1000)
    assert flow.seconds(50_000) == 10

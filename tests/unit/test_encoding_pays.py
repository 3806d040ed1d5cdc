"""Encoding for the line is decided from what was measured: no test here takes time, the clock is told what it shows."""

from contextlib import suppress

import pytest

from gateway.paying import TRY_SECONDS, Measured, Paying, Setting, decide

MB = 1 << 20


@pytest.mark.parametrize(
    ("measured", "encode", "why"),
    [
        (Measured(), True, "measuring"),
        (Measured(encoder=1 / 140, ratio=0.37), True, "measuring"),
        # 100 Mbit/s: what arrives encoded is a fifth of what the encoder could do
        (Measured(encoder=1 / 140, ratio=0.37, encoded=1 / 32), True, "line"),
        # the encoder is what everything waits for: nobody knows whether the line would take more
        (Measured(encoder=1 / 140, ratio=0.37, encoded=1 / 100), False, "measuring"),
        (Measured(encoder=1 / 140, ratio=0.37, encoded=1 / 100, plain=1 / 220), False, "slower"),
        (Measured(encoder=1 / 140, ratio=0.37, encoded=1 / 100, plain=1 / 60), True, "faster"),
        # a receiver that is slow at decoding, on a fast line
        (Measured(encoder=1 / 140, ratio=0.37, encoded=1 / 20, plain=1 / 90), False, "slower"),
        # one stretch found an idle processor, and says less than the encoder itself
        (Measured(encoder=1 / 70, ratio=0.37, encoded=1 / 300, plain=1 / 110), False, "slower"),
    ],
)
def test_it_is_encoded_where_a_byte_of_files_takes_less_time_so(measured: Measured, encode: bool, why: str) -> None:
    decision = decide("auto", measured)
    assert (decision.encode, decision.why) == (encode, why)


@pytest.mark.parametrize(("setting", "encode"), [("always", True), ("never", False)])
def test_a_setting_is_obeyed_whatever_was_measured(setting: Setting, encode: bool) -> None:
    for measured in (Measured(), Measured(1 / 140, 0.37, 1 / 100, 1 / 220), Measured(1 / 140, 0.37, 1 / 100, 1 / 20)):
        assert decide(setting, measured).encode is encode


def test_ways_that_are_about_the_same_are_not_changed_to_and_fro() -> None:
    measured = Measured(encoder=1 / 140, ratio=0.37, encoded=1 / 100, plain=1 / 104)
    assert decide("auto", measured, now=True).encode
    assert not decide("auto", measured, now=False).encode


class World:
    """One sender at a time on a line of ``line`` MB/s, with an encoder of ``encoder`` MB/s that gains ``ratio``."""

    def __init__(self, line: float, *, encoder: float = 100, ratio: float = 0.4) -> None:
        self.line, self.encoder, self.ratio = line, encoder, ratio
        self.now = self.seconds = 0.0
        self.decoder, self.size = float("inf"), 4.0
        self.paying = Paying(1, lambda: self.now)

    def send(self, megabytes: int, setting: Setting = "auto", *, counts: bool = True) -> list[bool]:
        """Whether each stretch of ``size`` MB was encoded."""
        ways, begun, size = [], self.now, self.size
        for _ in range(int(megabytes / size)):
            with self.paying.stretch(int(size * MB), setting, counts=counts) as stretch:
                if stretch.encode:
                    stretch.processor_seconds, stretch.wire = size / self.encoder, int(size * MB * self.ratio)
                share = self.ratio if stretch.encode else 1.0
                self.now += size * share / self.line + size * (1 / self.encoder + 1 / self.decoder) * stretch.encode
            ways.append(stretch.encode)
        self.seconds += self.now - begun
        return ways


def test_a_slow_line_gets_encoded_bytes_from_the_first_on() -> None:
    world = World(12.5)
    assert all(world.send(200))
    told = world.paying.told()
    assert told is not None
    assert (told.encodes, told.why, told.plain, told.ratio) == (True, "line", None, 0.4)
    assert told.encoder == pytest.approx(100 * MB, rel=0.01)
    assert told.encoded == pytest.approx(MB / (0.4 / 12.5 + 0.01), rel=0.01)


def test_a_fast_line_gets_plain_bytes_once_that_is_known_and_loses_little_until_then() -> None:
    world = World(1000)
    ways = world.send(4000)
    assert sum(ways) <= 5
    assert not any(ways[-500:])
    assert world.seconds < 1.1 * 4000 / 1000
    told = world.paying.told()
    assert told is not None
    assert (told.encodes, told.why) == (False, "slower")


def test_a_line_that_became_slow_gets_encoded_bytes_soon() -> None:
    world = World(1000)
    world.send(2000)
    world.line = 12.5
    ways = world.send(600)
    assert all(ways[-50:])
    assert ways.index(True) <= 40


def test_a_line_that_became_fast_is_found_out_by_trying() -> None:
    world = World(12.5)
    world.send(200)
    world.line = 1000
    assert not any(world.send(1000)[-100:])


def test_the_other_way_is_tried_now_and_then_for_about_a_second() -> None:
    world = World(12.5)
    world.send(100)
    world.now += TRY_SECONDS
    ways = world.send(400)
    assert 1 <= ways.count(False) <= 6, "one trial, and short"
    assert all(ways[10:])
    told = world.paying.told()
    assert told is not None
    assert (told.encodes, told.why) == (True, "faster")
    assert told.plain == pytest.approx(12.5 * MB, rel=0.05)


def test_on_a_very_slow_line_a_trial_is_one_stretch() -> None:
    world = World(0.2)
    assert world.send(40).count(False) == 1
    world.now += TRY_SECONDS
    assert world.send(40).count(False) == 1


@pytest.mark.parametrize("size", [0.5, 4.0])
def test_a_receiver_that_is_slow_at_decoding_is_found_out_by_the_first_trial(size: float) -> None:
    world = World(100, encoder=400)
    world.size = size
    for decoder in (10, 5, 2):
        world.paying.forget()
        world.decoder = decoder
        world.send(400)
        assert not any(world.send(400)), decoder


def test_a_line_that_was_cut_is_measured_anew() -> None:
    world = World(1000)
    world.send(1000)
    world.paying.forget()
    assert world.paying.told() is None
    world.line = 12.5
    assert all(world.send(100))


def test_nothing_is_learnt_from_what_is_compressed_already_or_small() -> None:
    world = World(1000)
    assert all(world.send(1000, counts=False))
    with world.paying.stretch(2000, "auto") as stretch:
        assert stretch.encode
    with world.paying.stretch(2000, "never") as stretch:
        assert not stretch.encode
    assert world.paying.told() is None
    assert world.paying.measured == Measured()


def test_what_fails_is_not_counted_and_what_goes_beside_it_is_counted_right() -> None:
    world = World(12.5)
    with suppress(OSError), world.paying.stretch(4 * MB, "auto"):
        world.now += 1000
        raise OSError("cut")
    assert world.paying.measured == Measured()
    with world.paying.stretch(16 * MB, "never"), world.paying.stretch(16 * MB, "never"):
        world.now += 4
    assert world.paying.measured.plain == pytest.approx(4 / (32 * MB)), "two at once: each has half of the time"


def test_time_in_which_nothing_is_under_way_costs_nothing() -> None:
    world = World(12.5)
    world.send(20, "never")
    world.now += 10_000
    world.send(20, "never")
    assert world.paying.measured.plain == pytest.approx(1 / (12.5 * MB))

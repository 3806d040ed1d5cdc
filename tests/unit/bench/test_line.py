"""The bad line of the benchmarks: rate, delay, queue and loss of one direction, and the real thing where root runs."""

import socket
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench._line import FAR, HOME, Channel, Shape, line, why_not

PERFECT = Shape(bits_per_second=8_000_000, delay_seconds=0.04, loss=0, queue_bytes=10_000)
"""A byte a microsecond."""


def test_a_packet_comes_out_after_its_time_on_the_line_and_the_delay() -> None:
    channel = Channel(PERFECT, 1)
    channel.put(b"x" * 1000, 5.0)
    assert channel.next_arrival() == pytest.approx(5.041)
    assert channel.arrived(5.0409) == []
    assert channel.arrived(5.0411) == [b"x" * 1000]
    assert channel.arrived(6.0) == []
    assert channel.next_arrival() is None


def test_packets_queue_behind_each_other_and_keep_their_order() -> None:
    channel = Channel(PERFECT, 1)
    for number in range(5):
        channel.put(bytes([number]) * 1000, 0.0)
    assert channel.arrived(0.0431) == [bytes([number]) * 1000 for number in range(3)]
    assert channel.arrived(1.0) == [bytes([number]) * 1000 for number in (3, 4)]


def test_a_full_queue_drops_the_newest_and_says_so() -> None:
    channel = Channel(PERFECT, 1)
    for number in range(15):
        channel.put(bytes([number]) * 1000, 0.0)
    assert channel.overflowed == 5
    assert [packet[0] for packet in channel.arrived(9.0)] == list(range(10))
    channel.put(b"x", 10.0)
    assert channel.overflowed == 5, "the queue is empty again"


def test_the_die_loses_its_share_and_the_same_seed_the_same_packets() -> None:
    shape = Shape(loss=0.01, queue_bytes=10**9)
    survivors = []
    for _ in range(2):
        channel = Channel(shape, 7)
        for number in range(20_000):
            channel.put(number.to_bytes(4, "big"), number / 1000)
        assert channel.lost / channel.packets == pytest.approx(0.01, abs=0.003)
        assert channel.bytes == 80_000, "what is lost was put on the line all the same"
        survivors.append(channel.arrived(10**6))
    assert survivors[0] == survivors[1]


def test_a_cut_loses_what_is_under_way_and_nothing_later() -> None:
    channel = Channel(PERFECT, 1)
    channel.put(b"before", 0.0)
    channel.cut()
    channel.put(b"after", 0.1)
    assert channel.arrived(1.0) == [b"after"]
    assert channel.lost == 1


@given(st.lists(st.tuples(st.integers(1, 1500), st.floats(0, 0.01)), max_size=200), st.floats(0, 0.5))
def test_every_packet_arrives_is_lost_or_overflows(packets: list[tuple[int, float]], loss: float) -> None:
    channel = Channel(Shape(8_000_000, 0.01, loss, 5_000), 3)
    now = 0.0
    for size, gap in packets:
        now += gap
        channel.put(b"x" * size, now)
    arrived = channel.arrived(now + 10**6)
    assert len(arrived) + channel.lost + channel.overflowed == len(packets) == channel.packets
    assert channel.bytes == sum(size for size, _ in packets)


@given(st.lists(st.integers(1, 1500), min_size=2, max_size=100))
def test_no_more_comes_out_than_the_rate_allows(sizes: list[int]) -> None:
    channel = Channel(Shape(8_000_000, 0.0, 0.0, 10**9), 3)
    for size in sizes:
        channel.put(b"x" * size, 0.0)
    for at in (0.0001, 0.001, 0.01, 0.05):
        fresh = Channel(Shape(8_000_000, 0.0, 0.0, 10**9), 3)
        for size in sizes:
            fresh.put(b"x" * size, 0.0)
        assert sum(map(len, fresh.arrived(at))) <= at * 1_000_000 + 1


_SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as there:
    there.sendall(b"x" * 3_000_000)
"""


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "a line can be made")
def test_tcp_gets_everything_through_a_line_that_loses_and_it_takes_its_time() -> None:
    with line(Shape(bits_per_second=40e6, delay_seconds=0.01, loss=0.02)) as made, socket.socket() as server:
        server.bind((HOME, 0))
        server.listen()
        sender = subprocess.Popen(
            made.at_far_end(sys.executable, "-c", _SEND, HOME, str(server.getsockname()[1])), stderr=subprocess.PIPE
        )
        server.settimeout(120)
        connection, peer = server.accept()
        with connection:
            received = 0
            while block := connection.recv(1 << 16):
                received += len(block)
        assert sender.wait(60) == 0
        counts = made.counts()
    assert peer[0] == FAR
    assert received == 3_000_000
    assert counts.far_bytes > 3_000_000 * 1500 / 1448, "headers and what was lost come on top"
    assert counts.lost > 0


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "a line can be made")
def test_nothing_goes_through_a_cut_line_until_it_is_mended() -> None:
    with line(Shape(delay_seconds=0.005, loss=0)) as made:
        with made.far_end():
            far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            far.bind((FAR, 0))
        home = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with far, home:
            made.cut()
            home.sendto(b"lost", far.getsockname())
            made.counts()
            far.settimeout(0.2)
            with pytest.raises(TimeoutError):
                far.recv(99)
            made.mend()
            home.sendto(b"through", far.getsockname())
            far.settimeout(30)
            assert far.recv(99) == b"through"


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "a line can be made")
def test_only_the_thread_that_makes_a_line_stands_at_it_and_comes_back() -> None:
    seen: list[bool] = []
    before = socket.if_nameindex()
    with line(Shape(loss=0)):
        assert "line0" in [name for _, name in socket.if_nameindex()]
        inside = threading.Thread(target=lambda: seen.append("line0" in [name for _, name in socket.if_nameindex()]))
        inside.start()
        inside.join()
    assert seen == [True], "a thread that is made now stands here too"
    assert socket.if_nameindex() == before

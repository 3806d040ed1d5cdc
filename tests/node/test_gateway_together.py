"""What several threads write at once: one commit, nobody fails for a neighbour, and nobody is told what is not so."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from django.db import OperationalError, connection, transaction

from deploy.processes import wait_until
from gateway.together import Together

pytestmark = pytest.mark.django_db(transaction=True)


class Writing:
    """Items in lots; the first lot is held up until ``go``, so that others gather behind it."""

    def __init__(self, broken: type[BaseException] = ValueError) -> None:
        self.lots: list[list[int]] = []
        self.go, self.begun = threading.Event(), threading.Event()
        self.together = Together(self.write)
        self._broken = broken

    def write(self, items: list[int]) -> list[int]:
        self.lots.append(items)
        if items == [0]:
            self.begun.set()
            assert self.go.wait(60)
        if 13 in items:
            raise self._broken("thirteen")
        return [item * 10 for item in items]

    def ask(self, item: int) -> int | BaseException:
        try:
            return self.together(item)
        except BaseException as error:  # looked at below
            return error
        finally:
            connection.close()

    def has_waiting(self, number: int) -> bool:
        return len(self.together._waiting) == number

    def all_at_once(self, *items: int) -> list[int | BaseException]:
        with ThreadPoolExecutor(len(items) + 1) as pool:
            first = pool.submit(self.ask, 0)
            assert self.begun.wait(60)
            others = []
            for number, item in enumerate(items, 1):
                others.append(pool.submit(self.ask, item))
                wait_until(partial(self.has_waiting, number), 60, "it waits")
            self.go.set()
            assert first.result() == 0
            return [one.result() for one in others]


def test_those_that_wait_are_written_together_and_each_gets_its_own_result() -> None:
    writing = Writing()
    assert writing.all_at_once(1, 2, 3) == [10, 20, 30]
    assert writing.lots == [[0], [1, 2, 3]]


def test_one_that_fails_fails_alone() -> None:
    writing = Writing()
    one, wrong, other = writing.all_at_once(1, 13, 3)
    assert (one, other) == (10, 30)
    assert str(wrong) == "thirteen"
    assert writing.lots == [[0], [1, 13, 3], [1], [13], [3]]


def test_where_the_common_commit_is_broken_off_nobody_is_told_that_it_was_made() -> None:
    writing = Writing(KeyboardInterrupt)
    results = writing.all_at_once(1, 13, 3)
    assert [type(one) for one in results].count(KeyboardInterrupt) == 1, "whose turn it was"
    assert [str(one) for one in results if isinstance(one, OperationalError)] == [
        "the common commit was broken off"
    ] * 2


def test_within_a_transaction_it_waits_for_nobody_and_breaks_nothing() -> None:
    writing = Writing()
    with transaction.atomic():
        with pytest.raises(ValueError, match="thirteen"):
            writing.together(13)
        assert writing.together(7) == 70

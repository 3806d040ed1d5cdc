"""What several threads write at the same moment becomes durable by one commit."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar, cast

from django.db import DEFAULT_DB_ALIAS, OperationalError, connections, transaction

T = TypeVar("T")
R = TypeVar("R")
_AT_ONCE: Final = 64


@dataclass(eq=False)
class _Waiting(Generic[T, R]):
    item: T
    result: R | None = None
    error: Exception | None = field(default_factory=lambda: OperationalError("the common commit was broken off"))
    """None once it is written."""
    done: bool = False


class Together(Generic[T, R]):
    """Calls ``write`` with all items that wait, in one transaction; it gives their results in the same order.

    Whoever gets its turn writes for the others too. Where that fails each is written by itself, so nobody fails for a
    neighbour.
    """

    def __init__(self, write: Callable[[list[T]], list[R]]) -> None:
        self._write = write
        self._waiting: list[_Waiting[T, R]] = []
        self._queue, self._turn = threading.Lock(), threading.Lock()

    def __call__(self, item: T) -> R:
        """Return when ``item`` is committed; its result. Raises: what its own writing raised."""
        if connections[DEFAULT_DB_ALIAS].in_atomic_block:
            # The caller's transaction may hold what the one whose turn it is waits for.
            with transaction.atomic():
                return self._write([item])[0]
        mine: _Waiting[T, R] = _Waiting(item)
        with self._queue:
            self._waiting.append(mine)
        with self._turn:
            if not mine.done:
                with self._queue:
                    batch, self._waiting = self._waiting[:_AT_ONCE], self._waiting[_AT_ONCE:]
                if mine not in batch:
                    batch.append(mine)
                    with self._queue:
                        self._waiting.remove(mine)
                self._commit(batch)
        if mine.error is not None:
            raise mine.error
        return cast(R, mine.result)

    def _commit(self, batch: list[_Waiting[T, R]]) -> None:
        try:
            with transaction.atomic():
                results = self._write([one.item for one in batch])
            for one, result in zip(batch, results, strict=True):
                one.result, one.error = result, None
        except Exception as error:  # raised to the thread that waits for it
            if len(batch) == 1:
                batch[0].error = error
            else:
                for one in batch:
                    self._commit([one])
        finally:
            for one in batch:
                one.done = True

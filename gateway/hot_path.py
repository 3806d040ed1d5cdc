"""Statements that every stored instance costs, run past what Django does for each: that takes longer than they do.

They are written with ``%s``, once, by :func:`statement`; values are given as the database takes them.
"""

from collections.abc import Sequence
from typing import Any

from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper


def statement(text: str) -> str:
    """``text`` as the database's own module takes it."""
    return text.replace("%s", "?") if connection.vendor == "sqlite" else text


def run(here: BaseDatabaseWrapper, text: str, values: Sequence[Any]) -> Any:
    """Run a statement in the transaction that is open on ``here``; its cursor. Raises: as Django's cursors."""
    with here.wrap_database_errors:
        return here.connection.execute(text, values)


def run_many(here: BaseDatabaseWrapper, text: str, rows: Sequence[Sequence[Any]]) -> None:
    """Run a statement for each of ``rows``. Raises: as Django's cursors."""
    with here.wrap_database_errors:
        here.connection.cursor().executemany(text, rows)

"""Putting instances into the index: those that several associations bring at once become durable by one commit."""

import fcntl
import json
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from django.db import (
    DEFAULT_DB_ALIAS,
    DatabaseError,
    IntegrityError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from gateway.actions import record_conflict, record_held
from gateway.hot_path import run, run_many, statement
from gateway.protocols import HeldInstance
from pacs_node.config import config
from pacs_node.study_index.attributes import IndexRows
from pacs_node.study_index.models import Instance, Series, Study

_BATCH: Final = 64
_REMEMBERED: Final = 1024


@dataclass(eq=False)
class Entry:
    """An instance whose file lies at ``key``, on its way into the index; afterwards it has an ``instance_key``.

    ``conflicts_with``: the data set digest of the instance that has its UID, when it is kept as a variant.
    """

    rows: IndexRows
    key: str
    is_variant: bool = False
    conflicts_with: str = ""
    instance_key: int = 0
    series_key: int = 0
    error: DatabaseError | None = None
    done: bool = field(default=False, repr=False)


@cache
def _is_sqlite() -> bool:
    return connections[DEFAULT_DB_ALIAS].vendor == "sqlite"


@cache
def _turn_file() -> int:
    return os.open(config().data_dir / "index.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


@contextmanager
def turn_of_process() -> Iterator[None]:
    """SQLite has processes wait for each other by sleeping; the kernel wakes the next one when its turn comes."""
    if not _is_sqlite():
        yield
        return
    fcntl.lockf(_turn_file(), fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.lockf(_turn_file(), fcntl.LOCK_UN)


class GroupCommit:
    """Calls ``write`` with all entries that wait: whoever gets its turn writes for the others too."""

    def __init__(self, write: Callable[[list[Entry]], None]) -> None:
        self._write = write
        self._waiting: list[Entry] = []
        self._queue = threading.Lock()
        self._turn = threading.Lock()

    def __call__(self, entry: Entry) -> None:
        """Return when ``entry`` is committed. Raises: what its own writing raised."""
        if connections[DEFAULT_DB_ALIAS].in_atomic_block:
            # The caller's transaction may hold what the one whose turn it is waits for.
            self._write([entry])
        else:
            self._write_in_turn(entry)
        if entry.error is not None:
            raise entry.error
        if not entry.instance_key:
            raise OperationalError("the commit that this instance was part of was broken off")

    def _write_in_turn(self, entry: Entry) -> None:
        with self._queue:
            self._waiting.append(entry)
        while not self._is_done(entry):
            with self._turn:
                if self._is_done(entry):
                    break
                with self._queue:
                    batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
                try:
                    with turn_of_process():
                        self._write(batch)
                finally:
                    for member in batch:
                        member.done = True

    @staticmethod
    def _is_done(entry: Entry) -> bool:
        return entry.done  # another thread may have made it so


def write_rows(batch: list[Entry]) -> None:
    """One transaction for all; where it fails, one for each, so that nobody fails for a neighbour."""
    try:
        # The proxy that Django offers looks the thread's own connection up at each use.
        here = connections[DEFAULT_DB_ALIAS]
        now = here.ops.adapt_datetimefield_value(timezone.now())
        with transaction.atomic():
            for entry in batch:
                _insert(entry, here, now)
            _count(batch, here)
            _announce(batch)
    except DatabaseError as error:
        for entry in batch:
            entry.instance_key = 0
        if len(batch) == 1:
            batch[0].error = error
            return
        for entry in batch:
            write_rows([entry])
        return
    for entry in batch:
        _remember(entry.rows)


commit = GroupCommit(write_rows)


def _insert(entry: Entry, here: BaseDatabaseWrapper, now: Any) -> None:
    if entry.rows.origin not in _merged:
        _merge(entry.rows)
    if not _insert_instance(entry, here, now):
        _merge(entry.rows)  # remembered, yet gone: another process emptied the tables
        if not _insert_instance(entry, here, now):
            raise IntegrityError("the series of the instance is not in the index")


# The statements of the hot path are not left to the ORM; this one finds the series and inserts in one go.


@cache
def _statement() -> tuple[str, list[tuple[str, Any]]]:
    """The statement, and of each column the field's name and default."""
    fields = tuple(f for f in Instance._meta.local_concrete_fields if f.name not in ("id", "series"))
    quote = connection.ops.quote_name
    series, study = quote(Series._meta.db_table), quote(Study._meta.db_table)
    columns = ", ".join(quote(f.column or f.name) for f in fields)
    values = ", ".join(["%s"] * len(fields))
    return statement(
        f"INSERT INTO {quote(Instance._meta.db_table)} (series_id, {columns}) "  # noqa: S608  names of our own models
        f"SELECT {series}.id, {values} FROM {series} JOIN {study} ON {study}.id = {series}.study_id "
        f"WHERE {series}.series_instance_uid = %s AND {study}.study_instance_uid = %s "
        f"AND {study}.patient_id = %s AND {study}.issuer_of_patient_id = %s RETURNING id, series_id"
    ), [(f.name, f.get_default()) for f in fields]


def _insert_instance(entry: Entry, here: BaseDatabaseWrapper, now: Any) -> bool:
    text, columns = _statement()
    rows = entry.rows
    values = {
        **rows.instance,
        "attributes": json.dumps(rows.instance["attributes"]),
        "path": entry.key,
        "is_variant": entry.is_variant,
        "variant_sha256": rows.instance["dataset_sha256"] if entry.is_variant else "",
        "created_at": now,
    }
    given = [values.get(name, default) for name, default in columns]
    given += (
        rows.series["series_instance_uid"],
        rows.study["study_instance_uid"],
        rows.study["patient_id"],
        rows.study["issuer_of_patient_id"],
    )
    found = run(here, text, given).fetchone()
    if found is None:
        return False
    entry.instance_key, entry.series_key = found
    return True


def _count(batch: list[Entry], here: BaseDatabaseWrapper) -> None:
    added = Counter(entry.series_key for entry in batch if not entry.is_variant)
    run_many(here, _count_statement(), [(count, key) for key, count in added.items()])


@cache
def _count_statement() -> str:
    series = connection.ops.quote_name(Series._meta.db_table)
    return statement(f"UPDATE {series} SET instances_count = instances_count + %s WHERE id = %s")  # noqa: S608


def _announce(batch: list[Entry]) -> None:
    record_held(
        [
            HeldInstance(
                entry.instance_key,
                entry.series_key,
                entry.rows.study["study_instance_uid"],
                entry.rows.instance["sop_instance_uid"],
                entry.rows.instance["dataset_sha256"],
            )
            for entry in batch
        ]
    )
    for entry in batch:
        if entry.is_variant:
            record_conflict(
                study_instance_uid=entry.rows.study["study_instance_uid"],
                sop_instance_uid=entry.rows.instance["sop_instance_uid"],
                kept_sha256=entry.conflicts_with,
                variant_sha256=entry.rows.instance["dataset_sha256"],
                source_ae_title=entry.rows.instance["source_ae_title"],
            )


# Study and series rows

_merged: OrderedDict[Hashable, None] = OrderedDict()
"""Of which study and series values the rows have taken over: all but the first image of a series find theirs."""
_merged_lock = threading.Lock()


def _remember(rows: IndexRows) -> None:
    if rows.origin in _merged:
        return
    with _merged_lock:
        _merged[rows.origin] = None
        if len(_merged) > _REMEMBERED:
            _merged.popitem(last=False)


def _merge(rows: IndexRows) -> None:
    study, created = Study.objects.get_or_create(
        study_instance_uid=rows.study["study_instance_uid"],
        patient_id=rows.study["patient_id"],
        issuer_of_patient_id=rows.study["issuer_of_patient_id"],
        defaults=rows.study,
    )
    if not created:
        _fill_blanks(study, rows.study)
    series, created = Series.objects.get_or_create(
        study=study, series_instance_uid=rows.series["series_instance_uid"], defaults=rows.series
    )
    if not created:
        _fill_blanks(series, rows.series)


def _fill_blanks(row: Study | Series, values: dict[str, Any]) -> None:
    """What the first instance did not say, a later one may; nothing that was said changes."""
    missing = [name for name, value in values.items() if value not in ("", None, {}) and not getattr(row, name)]
    missing = [name for name in missing if getattr(row, name) != values[name]]
    if missing:
        for name in missing:
            setattr(row, name, values[name])
        row.save(update_fields=[*missing, "updated_at"])

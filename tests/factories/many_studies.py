"""An index as a region's archive has it after years: made-up patients with Russian names, their studies and series.

The rows go straight into the tables of a migrated node, since storing as many instances would take days.
"""

import json
import random
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from django.db import connection, models

from pacs_node.study_index.models import Instance, Series, Study
from standards.person_names import folds, rough_name, sort_key
from tests.factories.made_up_names import MadeUpPatient, patients

UID_ROOT: Final = "2.25.93"
LAST_DAY: Final = date(2026, 11, 20)
DAYS: Final = 8 * 365
_BATCH: Final = 20_000

_STUDIES: Final = (
    ("CT", 22, "КТ|грудной клетки|головного мозга|брюшной полости|пазух носа", "1.2.840.10008.5.1.4.1.1.2"),
    ("MR", 14, "МРТ|головного мозга|коленного сустава|поясничного отдела", "1.2.840.10008.5.1.4.1.1.4"),
    ("DX", 34, "Рентгенография|органов грудной клетки|кисти|таза", "1.2.840.10008.5.1.4.1.1.1.1"),
    ("MG", 10, "Маммография|обзорная|прицельная", "1.2.840.10008.5.1.4.1.1.1.2"),
    ("US", 17, "УЗИ|брюшной полости|щитовидной железы", "1.2.840.10008.5.1.4.1.1.6.1"),
    ("XA", 2, "Ангиография|коронарных артерий", "1.2.840.10008.5.1.4.1.1.12.1"),
    ("NM", 1, "Сцинтиграфия|костей скелета", "1.2.840.10008.5.1.4.1.1.20"),
)


def _row(model: type[models.Model], fixed: dict[str, Any]) -> tuple[tuple[str, ...], list[Any]]:
    """Columns of a table and the values of a row that says nothing but ``fixed``."""
    now = datetime(2026, 11, 20, 12, tzinfo=UTC)
    names, values = [], []
    for field in model._meta.concrete_fields:
        value = fixed.get(field.attname, field.get_default())
        if value is None and isinstance(field, models.DateTimeField) and not field.null:
            value = now
        names.append(field.attname)
        values.append(field.get_db_prep_save(value, connection) if field.attname != "attributes" else json.dumps({}))
    return tuple(names), values


class _Table:
    """Rows of one table on their way into it."""

    def __init__(self, model: type[models.Model], **fixed: Any) -> None:
        self.name = model._meta.db_table
        self.columns, self._template = _row(model, fixed)
        self._places = {name: place for place, name in enumerate(self.columns)}
        self.rows: list[list[Any]] = []

    def add(self, **values: Any) -> None:
        """One more row."""
        row = self._template.copy()
        for name, value in values.items():
            row[self._places[name]] = value
        self.rows.append(row)


def fill(count: int, seed: int = 1) -> None:
    """Put ``count`` studies with one to three series of one to three instances into the empty tables of this node."""
    generator = random.Random(seed)
    study, series = _Table(Study), _Table(Series)
    instance = _Table(Instance, rows=512, columns=512, size=526_000, digests_done=True)
    tables = (study, series, instance)
    with closing(_Loader(tables)) as loader:
        for number in _numbered(count, generator, tables):
            if number % _BATCH == 0:
                loader.load()
        loader.load()
        loader.finish()


def _numbered(count: int, generator: random.Random, tables: tuple[_Table, _Table, _Table]) -> Iterator[int]:
    study, series, instance = tables
    kinds, weights = list(_STUDIES), [kind[1] for kind in _STUDIES]
    known: list[tuple[MadeUpPatient, dict[str, str]]] = []
    new = patients(generator)
    series_key = instance_key = 0
    for number in range(1, count + 1):
        if known and generator.random() < 0.55:
            patient, names = generator.choice(known)
        else:
            patient = next(new)
            names = {
                "patient_name_fold": folds(patient.name)[0],
                "patient_name_latin": rough_name(patient.name),
                "patient_name_sort": sort_key(patient.name),
            }
            known.append((patient, names))
        # Studies come in as they are made; one in twenty is brought in from elsewhere, years later.
        age = DAYS - number * DAYS // count if generator.random() < 0.95 else generator.randrange(DAYS)
        day = LAST_DAY - timedelta(days=age)
        if day.weekday() > 4 and generator.random() < 0.7:
            day -= timedelta(days=2)
        time = f"{generator.randrange(8, 21):02}{generator.randrange(60):02}{generator.randrange(60):02}"
        modality, _, words, sop_class = generator.choices(kinds, weights)[0]
        what, *regions = words.split("|")
        study_uid = f"{UID_ROOT}.{number}"
        study.add(
            id=number,
            study_instance_uid=study_uid,
            patient_id=patient.patient_id,
            patient_name=patient.name,
            patient_birth_date=patient.birth_date,
            patient_sex=patient.sex,
            study_date=f"{day:%Y%m%d}",
            study_time=time,
            accession_number=f"K{number % 7}-{number:08}",
            study_id=str(number),
            study_description=f"{what} {generator.choice(regions)}",
            **names,
        )
        for series_number in range(1, generator.choice((1, 1, 1, 2, 2, 3)) + 1):
            series_key += 1
            held = generator.randrange(1, 4)
            series_uid = f"{study_uid}.{series_number}"
            series.add(
                id=series_key,
                study_id=number,
                series_instance_uid=series_uid,
                modality=modality if series_number < 3 else "SR",
                series_number=series_number,
                series_date=f"{day:%Y%m%d}",
                series_time=time,
                instances_count=held,
            )
            for instance_number in range(1, held + 1):
                instance_key += 1
                uid = f"{series_uid}.{instance_number}"
                instance.add(
                    id=instance_key,
                    series_id=series_key,
                    sop_instance_uid=uid,
                    sop_class_uid=sop_class,
                    transfer_syntax_uid="1.2.840.10008.1.2.1",
                    dataset_sha256=f"{instance_key:064x}",
                    instance_number=instance_number,
                    path=f"studies/{number % 256:02x}/{study_uid}/{series_uid}/{uid}.dcm",
                )
        yield number


class _Loader:
    """Rows into the tables in the quickest way of each database; what is loaded is not durable before the end."""

    def __init__(self, tables: Iterable[_Table]) -> None:
        self._tables = tables
        self._indexes: list[tuple[str, str]] = []
        connection.ensure_connection()
        self._raw = connection.connection
        if connection.vendor == "sqlite":
            self._prepare()

    def _prepare(self) -> None:
        for pragma in ("synchronous=OFF", "cache_size=-1000000", "foreign_keys=OFF"):
            self._raw.execute(f"PRAGMA {pragma}")
        names = ", ".join(f"'{table.name}'" for table in self._tables)
        found = (
            f"SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL AND tbl_name IN ({names})"
        )
        self._indexes = self._raw.execute(found).fetchall()
        for name, _ in self._indexes:
            self._raw.execute(f'DROP INDEX "{name}"')

    def load(self) -> None:
        """What has been added since the last time."""
        for table in self._tables:
            columns = ", ".join(f'"{name}"' for name in table.columns)
            if connection.vendor == "sqlite":
                marks = ", ".join("?" * len(table.columns))
                self._raw.execute("BEGIN")
                self._raw.executemany(f'INSERT INTO "{table.name}" ({columns}) VALUES ({marks})', table.rows)
                self._raw.execute("COMMIT")
            else:
                with connection.cursor() as cursor, cursor.copy(f'COPY "{table.name}" ({columns}) FROM STDIN') as copy:
                    for row in table.rows:
                        copy.write_row(row)
            table.rows.clear()

    def finish(self) -> None:
        """Indexes, statistics and the disk."""
        for _, sql in self._indexes:
            self._raw.execute(sql)
        if connection.vendor == "sqlite":
            self._raw.execute("PRAGMA synchronous=FULL")
            self._raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return
        with connection.cursor() as cursor:
            for table in self._tables:
                cursor.execute(
                    f'SELECT setval(pg_get_serial_sequence(%s, %s), (SELECT max(id) FROM "{table.name}"))',
                    [table.name, "id"],
                )
                cursor.execute(f'ANALYZE "{table.name}"')

    def close(self) -> None:
        """The connection with its settings goes."""
        connection.close()

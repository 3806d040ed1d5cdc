"""Study and series values are made once for all images that share them, and never for one that says otherwise."""

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.db.models import Model
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence

from gateway.models import OutboxEntry
from pacs_node.study_index import attributes
from pacs_node.study_index.actions import ingest
from pacs_node.study_index.attributes import index_rows
from pacs_node.study_index.models import Instance, Series
from standards.errors import PermanentError
from standards.part10 import Header, read_header
from tests.factories.dicom import ct_instance, ct_series, part10


def header_of(dataset: FileDataset) -> Header:
    return read_header(BytesIO(part10(dataset)))


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    attributes._upper.clear()


def test_slices_of_one_series_share_their_values() -> None:
    first, second = ct_series(2)
    one, two = index_rows(header_of(first)), index_rows(header_of(second))
    assert one.origin == two.origin
    assert one.study is two.study
    assert one.instance["sop_instance_uid"] != two.instance["sop_instance_uid"]


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientName", "Пётр"),
        ("PatientID", "OTHER"),
        ("SeriesDescription", "Другая"),
        ("StudyTime", "235959"),
        ("OperatorsName", "Кто"),
        ("SliceThickness", "3"),
    ],
)
def test_whoever_says_otherwise_gets_values_of_his_own(keyword: str, value: str) -> None:
    first = ct_instance()
    before = index_rows(header_of(first))
    setattr(first, keyword, value)
    after = index_rows(header_of(first))
    attributes._upper.clear()
    fresh = index_rows(header_of(first))
    assert after.origin != before.origin
    assert (after.study, after.series) == (fresh.study, fresh.series)


def test_what_differs_deep_in_a_sequence_differs() -> None:
    dataset = ct_instance()
    item, code = Dataset(), Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "A1", "99", "one"
    item.ScheduledProcedureStepID = "1"
    item.ScheduledProtocolCodeSequence = Sequence([code])
    dataset.RequestAttributesSequence = Sequence([item])
    before = index_rows(header_of(dataset))
    code.CodeMeaning = "two"
    after = index_rows(header_of(dataset))
    assert before.origin != after.origin
    assert before.series["attributes"] != after.series["attributes"]


def test_an_issuer_or_character_set_assumed_otherwise_makes_other_rows() -> None:
    header = header_of(ct_instance())
    assert index_rows(header).origin != index_rows(header, default_issuer="CLINIC").origin


def test_remembered_rows_are_those_that_fresh_ones_would_be(sample_data: Path) -> None:
    headers = []
    for path in sorted(sample_data.rglob("*.dcm")):
        try:
            headers.append(read_header(BytesIO(path.read_bytes())))
        except PermanentError:
            continue
    remembered = [index_rows(header) for header in headers + headers[::-1]][: len(headers)]
    for header, rows in zip(headers, remembered, strict=True):
        attributes._upper.clear()
        fresh = index_rows(header)
        assert (fresh.study, fresh.series, fresh.instance) == (rows.study, rows.series, rows.instance)
    assert len(headers) > 200


def in_the_table(row: Model) -> tuple[Any, ...]:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT * FROM {row._meta.db_table} WHERE id = %s", [row.pk])
        found: tuple[Any, ...] = cursor.fetchone()
    return found


@pytest.mark.django_db(transaction=True)
def test_what_is_written_past_the_orm_is_what_the_orm_would_write() -> None:
    for dataset in ct_series(2):
        taken = ingest(BytesIO(part10(dataset)), source_ae_title="CT")
    instance = taken.instance
    told = OutboxEntry.objects.get(instance_key=instance.pk)
    rows: tuple[Model, ...] = (instance, told)
    written = [in_the_table(row) for row in rows]
    for row in rows:
        row.save()
    assert [in_the_table(row) for row in rows] == written
    assert Series.objects.get(pk=instance.series_id).instances_count == 2
    assert Instance.objects.filter(created_at__gte=instance.created_at).count() == 1

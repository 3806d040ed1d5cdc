"""The trail is chained without gaps, shows tampering, and cannot be changed."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from django.db import DatabaseError, connection, transaction
from django.test import Client

from ris_central.accounts.models import Role, User
from ris_central.audit import sealer
from ris_central.audit.actions import record
from ris_central.audit.models import AuditEvent
from ris_central.celery import periodic
from tests.factories import centre

pytestmark = pytest.mark.django_db


def write(count: int) -> None:
    for number in range(count):
        record("thing.done", actor="test", entity=("thing", number), detail={"имя": "ё", "n": number})


def tamper(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute("ALTER TABLE audit_auditevent DISABLE TRIGGER audit_event_immutable")
        cursor.execute(statement)
        cursor.execute("ALTER TABLE audit_auditevent ENABLE TRIGGER audit_event_immutable")


def test_rows_are_chained_in_order_without_gaps() -> None:
    write(5)
    assert sealer.seal() == 5
    write(3)
    assert sealer.seal() == 3
    assert sealer.seal() == 0
    rows = list(AuditEvent.objects.order_by("sequence"))
    assert [row.sequence for row in rows] == list(range(1, 9))
    assert rows[0].previous_hash == sealer.GENESIS
    assert all(later.previous_hash == earlier.hash for earlier, later in pairwise(rows))
    assert sealer.verify() == sealer.Verdict(8, None, rows[-1].hash)


@pytest.mark.parametrize(
    ("statement", "broken_at"),
    [
        ("UPDATE audit_auditevent SET actor_name = 'x' WHERE sequence = 3", 3),
        ("UPDATE audit_auditevent SET detail = '{}' WHERE sequence = 5", 5),
        ("UPDATE audit_auditevent SET occurred_at = occurred_at - interval '1 second' WHERE sequence = 1", 1),
        ("DELETE FROM audit_auditevent WHERE sequence = 2", 2),
        ("UPDATE audit_auditevent SET outcome = 'refused', hash = repeat('0', 64) WHERE sequence = 4", 4),
    ],
)
def test_tampering_shows_where_it_happened(statement: str, broken_at: int) -> None:
    write(5)
    sealer.seal()
    tamper(statement)
    assert sealer.verify().broken_at == broken_at


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_auditevent SET action = 'x'",
        "UPDATE audit_auditevent SET actor_id = NULL, address = '1'",
        "DELETE FROM audit_auditevent",
        "UPDATE audit_auditevent SET hash = 'x' WHERE sequence IS NOT NULL",
        "TRUNCATE audit_auditevent",
    ],
)
def test_the_database_refuses_to_change_delete_or_empty_rows(statement: str) -> None:
    write(1)
    sealer.seal()
    connection.check_constraints()  # nothing of this test's own waits, which alone would refuse a TRUNCATE
    with (
        pytest.raises(DatabaseError, match="audit trail cannot be"),
        transaction.atomic(),
        connection.cursor() as cursor,
    ):
        cursor.execute(statement)


def test_two_sealers_at_once_leave_one_whole_chain(transactional_db: None) -> None:
    write(40)

    def seal(_: int) -> int:
        try:
            return sealer.seal()
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        sealed = sum(pool.map(seal, range(4)))
    sealed += sealer.seal()
    assert sealed == 40
    assert sealer.verify().broken_at is None
    assert sealer.verify().checked == 40


def test_a_row_lives_and_dies_with_what_it_records() -> None:
    def fail_after_recording() -> None:
        with transaction.atomic():
            record("thing.done", actor="test")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_recording()
    assert not AuditEvent.objects.exists()


def test_the_page_is_filtered_and_reading_it_is_recorded(browser_of: Callable[[User | None], Client]) -> None:
    admin = centre.user(Role.ADMINISTRATOR)
    patient = centre.patient(centre.site())
    write(2)
    browser = browser_of(admin)
    page = browser.get(f"/audit/?patient={patient.pk}").content.decode()
    assert "patient.created" in page
    assert "thing.done" not in page
    assert "thing.done" in browser.get("/audit/?what=thing").content.decode()
    assert "thing.done" not in browser.get("/audit/?until=2020-01-01").content.decode()
    assert "thing.done" not in browser.get("/audit/?since=not-a-day&who=nobody").content.decode()
    assert AuditEvent.objects.filter(action="audit.read", actor=admin).count() == 4
    assert browser.get("/api/v1/audit-events?what=thing").json()["count"] == 2


def test_the_page_checks_the_chain(browser_of: Callable[[User | None], Client]) -> None:
    browser = browser_of(centre.user(Role.ADMINISTRATOR))
    write(3)
    sealer.seal()
    assert "The chain holds: 4 rows" in browser.post("/audit/verify/").content.decode()
    tamper("UPDATE audit_auditevent SET action = 'x' WHERE sequence = 2")
    assert "does not hold from row 2" in browser.post("/audit/verify/").content.decode()


def test_sealing_runs_by_the_clock() -> None:
    entry = periodic()["audit-seal"]
    assert (entry["task"], entry["schedule"]) == ("audit.seal", 3.0)

"""What node and centre both changed: merged by the table, shown, and decided otherwise by a person."""

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import pytest
from django.test import Client
from hypothesis import given
from hypothesis import strategies as st

from ris_central.accounts.models import Role, User
from ris_central.orders import actions, node_feed, rules
from ris_central.orders.models import (
    Device,
    ReturnDifference,
    ScheduledProcedureStep,
    ServiceRequest,
)
from ris_central.orders.placing import facts_of
from ris_central.patients.models import Patient
from tests.factories import centre
from tests.factories.van import NAME, Van, decide, only_difference, step_of

pytestmark = pytest.mark.django_db
Browser = Callable[[User | None], Client]
Status = ScheduledProcedureStep.Status
Side = ReturnDifference.Side


@pytest.fixture
def van() -> Van:
    return Van()


@pytest.fixture
def registrar(van: Van) -> User:
    return centre.user(Role.REGISTRAR, van.site)


TEXTS = st.sampled_from(["", "A", "B", "C"])
URGENCIES = st.sampled_from(["routine", "urgent", "stat"])


@given(st.sampled_from([*rules.FIELDS]), st.data())
def test_merging_invents_nothing_and_loses_nothing_silently(field: str, data: st.DataObject) -> None:
    values = URGENCIES if field == "priority" else TEXTS
    before, node, here = (data.draw(values) for _ in range(3))
    merged = rules.merge_field(field, before, node, here)
    assert merged.value in (node, here)
    assert merged.differs == (node not in (before, here) and here != before)
    if node == before:
        assert merged.value == here
    if here == before:
        assert merged.value == node


@pytest.mark.parametrize("field", rules.FIELDS)
def test_each_field_changed_at_both_ends_goes_by_the_table(
    van: Van, registrar: User, browser_of: Browser, field: str
) -> None:
    patient = centre.patient(van.site, name=NAME, born=date(1970, 2, 28), number="1001")
    device = centre.device(van.site, ae_title="CT2", at=van.node)
    order = centre.booking(van.site, who=patient, on=van.device)
    base = node_feed.worklist_item(step_of(order))
    theirs: dict[str, dict[str, Any]] = {
        "device": {"scheduled_station_ae_title": "CT3"},
        "slot": {"starts_at": base.starts_at + timedelta(hours=3), "ends_at": base.ends_at + timedelta(hours=3)},
        "description": {"requested_procedure_description": "КТ шеи"},
        "reason": {"reason_for_the_requested_procedure": "боль"},
        "referring_physician_name": {"referring_physician_name": "Врачов^Иван"},
        "priority": {"requested_procedure_priority": "STAT"},
        "patient_name": {"patient_name": "Другов^Пётр"},
        "patient_birth_date": {"patient_birth_date": "19700301"},
        "patient_sex": {"patient_sex": "F"},
    }
    centre.device(van.site, ae_title="CT3", at=van.node)
    at_centre(order, field, device)
    van.change(base, revision=1, **theirs[field])
    row = only_difference()
    kept = Side.NODE if field == "priority" else rules.FIELDS[field].keeps
    assert (row.rule, row.field, row.kept) == ("field", field, kept)
    facts = {side: getattr(row, f"{side}_value") for side in ("node", "centre")}
    assert fact(order, field) == facts[kept]
    assert van.last_schedule()["settled"] == {base.scheduled_procedure_step_id: 1}
    other = Side.CENTRE if kept == Side.NODE else Side.NODE
    decide(browser_of, registrar, other)
    assert fact(order, field) == facts[other]
    decide(browser_of, registrar, kept)
    assert fact(order, field) == facts[kept]


def fact(order: ServiceRequest, field: str) -> str:
    return facts_of(node_feed.worklist_item(step_of(ServiceRequest.objects.get(pk=order.pk))))[field]


def at_centre(order: ServiceRequest, field: str, device: Device) -> None:
    """The centre changes the same field meanwhile."""
    step = step_of(order)
    if field == "device":
        actions.reschedule(step, device=device, starts_at=step.slot.lower, actor="test")
    elif field == "slot":
        later = step.slot.lower + timedelta(hours=1)
        actions.reschedule(step, device=step.device, starts_at=later, actor="test")
    elif field.startswith("patient_"):
        values = {"patient_name": "name", "patient_birth_date": "birth_date", "patient_sex": "sex"}
        there = {"name": "Третьяков^Павел", "birth_date": date(1971, 1, 1), "sex": "O"}
        Patient.objects.filter(pk=order.patient_id).update(**{values[field]: there[values[field]]})
    else:
        value = "urgent" if field == "priority" else "Здесь"
        ServiceRequest.objects.filter(pk=order.pk).update(**{field: value})


def test_different_fields_changed_at_both_ends_are_both_kept_and_differ_not(van: Van) -> None:
    order = centre.booking(van.site, on=van.device)
    base = node_feed.worklist_item(step_of(order))
    ServiceRequest.objects.filter(pk=order.pk).update(reason="боль")
    van.change(base, revision=1, requested_procedure_priority="STAT")
    order.refresh_from_db()
    assert (order.reason, order.priority) == ("боль", "stat")
    assert not ReturnDifference.objects.exists()


def test_images_of_an_order_the_centre_cancelled_open_it_again(van: Van, registrar: User, browser_of: Browser) -> None:
    order = centre.booking(van.site, on=van.device)
    actions.cancel(order, actor="test")
    later = centre.booking(van.site, on=van.device)
    actions.step_in_progress(order, "CT")
    order.refresh_from_db()
    assert (order.status, step_of(order).status) == ("active", Status.IN_PROGRESS)
    assert step_of(later).status == Status.REBOOK, "the time is the examination's"
    assert set(ReturnDifference.objects.values_list("rule", flat=True)) == {"cancelled-but-examined", "slot-taken"}
    ReturnDifference.objects.filter(rule="slot-taken").delete()
    decide(browser_of, registrar, Side.CENTRE)
    order.refresh_from_db()
    assert order.status == "revoked"
    actions.step_in_progress(order, "CT")
    assert step_of(order).status == Status.CANCELLED, "a person has decided"


def test_a_change_at_the_node_does_not_bring_back_what_the_centre_cancelled_but_a_person_can(
    van: Van, registrar: User, browser_of: Browser
) -> None:
    order = centre.booking(van.site, on=van.device)
    base = node_feed.worklist_item(step_of(order))
    actions.cancel(order, actor="test")
    van.change(base, revision=1, requested_procedure_priority="STAT")
    assert step_of(order).status == Status.CANCELLED
    assert only_difference().rule == "cancelled-but-changed"
    assert van.last_schedule()["removed"] == [base.scheduled_procedure_step_id]
    decide(browser_of, registrar, Side.NODE)
    order.refresh_from_db()
    assert (order.status, order.priority, step_of(order).status) == ("active", "stat", Status.SCHEDULED)


def test_what_the_node_cancelled_and_nobody_touched_is_cancelled(van: Van) -> None:
    order = centre.booking(van.site, on=van.device)
    van.cancel(node_feed.worklist_item(step_of(order)), revision=1)
    order.refresh_from_db()
    assert (order.status, step_of(order).status) == ("revoked", Status.CANCELLED)
    assert not ReturnDifference.objects.exists()


def test_what_the_centre_moved_while_the_node_cancelled_it_stays_booked(
    van: Van, registrar: User, browser_of: Browser
) -> None:
    order = centre.booking(van.site, on=van.device)
    base = node_feed.worklist_item(step_of(order))
    actions.reschedule(step_of(order), device=van.device, starts_at=centre.tomorrow(15), actor="test")
    van.cancel(base, revision=1)
    assert step_of(order).status == Status.SCHEDULED
    assert van.last_schedule()["items"][0]["scheduled_procedure_step_id"] == base.scheduled_procedure_step_id
    decide(browser_of, registrar, Side.NODE)
    assert step_of(order).status == Status.CANCELLED


def test_an_examined_order_is_not_cancelled_by_the_node(van: Van) -> None:
    order = centre.booking(van.site, on=van.device)
    base = node_feed.worklist_item(step_of(order))
    actions.step_in_progress(order, "CT")
    van.cancel(base, revision=1)
    assert step_of(order).status == Status.IN_PROGRESS
    assert only_difference().rule == "examined-but-cancelled"


def test_the_vans_examination_takes_the_time_and_the_booking_needs_another(
    van: Van, registrar: User, browser_of: Browser
) -> None:
    booked = centre.booking(van.site, on=van.device)
    made = van.register()
    assert (step_of(booked).status, step_of(made).status) == (Status.REBOOK, Status.SCHEDULED)
    page = browser_of(registrar).get(f"/schedule/?site=a&day={centre.tomorrow():%Y-%m-%d}").content.decode()
    assert "Need another time" in page
    decide(browser_of, registrar, Side.CENTRE)
    assert step_of(booked).status == Status.SCHEDULED
    assert step_of(made).slot.lower == step_of(booked).slot.upper
    decide(browser_of, registrar, Side.NODE)
    assert step_of(booked).status == Status.REBOOK
    actions.reschedule(step_of(booked), device=van.device, starts_at=centre.tomorrow(16), actor="test")
    assert step_of(booked).status == Status.SCHEDULED


def test_a_booking_that_lost_its_time_and_got_another_at_the_node_has_that(van: Van) -> None:
    booked = centre.booking(van.site, on=van.device)
    base = node_feed.worklist_item(step_of(booked))
    van.register()
    assert step_of(booked).status == Status.REBOOK
    later = {"starts_at": centre.tomorrow(17), "ends_at": centre.tomorrow(18)}
    van.change(base, revision=1, **later)
    assert (step_of(booked).status, step_of(booked).slot.lower) == (Status.SCHEDULED, centre.tomorrow(17))
    assert van.last_schedule()["items"][0]["accession_number"] == booked.accession_number
    assert not ReturnDifference.objects.filter(state="open").exists()


def test_two_examinations_of_the_van_at_one_time_stand_one_after_the_other(van: Van) -> None:
    first, second = van.register(), van.register(van.item(502, patient_name="Другов^Пётр"))
    assert step_of(second).slot.lower == step_of(first).slot.upper
    assert only_difference().rule == "slot-shifted"


def test_a_change_of_an_order_that_a_restored_centre_lost_makes_it_again(van: Van) -> None:
    item = van.item()
    van.change(item, revision=3, requested_procedure_description="КТ шеи")
    order = ServiceRequest.objects.get()
    assert (order.description, step_of(order).node_revision) == ("КТ шеи", 3)

"""Booking: one slot has one winner, the node gets what it must scan, and the picture of the day is right."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from zoneinfo import ZoneInfo

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.backends.postgresql.psycopg_any import DateTimeTZRange
from django.test import Client
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from ris_central.accounts import actions as accounts
from ris_central.accounts.models import Role, User
from ris_central.audit.models import AuditEvent
from ris_central.federation.listeners import node_joined
from ris_central.federation.models import Command, Node
from ris_central.orders import actions, node_feed, queries
from ris_central.orders.models import Device, ScheduledProcedureStep, ServiceRequest
from ris_central.orders.transitions import STEP, move
from ris_central.patients.models import CareLink
from standards.errors import PermanentError
from tests.factories import centre

pytestmark = pytest.mark.django_db
Browser = Callable[[User | None], Client]
Status = ScheduledProcedureStep.Status


def test_a_booking_makes_order_step_care_link_audit_row_and_command_together() -> None:
    site = centre.site()
    node = centre.node(site)
    order = centre.booking(site, on=centre.device(site, at=node))
    step = order.steps.get()
    assert order.accession_number == "A00000001"
    assert step.slot.upper - step.slot.lower == timedelta(minutes=30)
    assert CareLink.objects.get().patient == order.patient
    assert AuditEvent.objects.get(action="order.booked").patient_key == order.patient_id
    item = Command.objects.get(node=node, type="schedule").body["items"][0]
    assert item["accession_number"] == order.accession_number
    assert item["study_instance_uid"] == order.study_instance_uid
    assert item["patient_name"] == centre.NAME
    assert (item["patient_id"], item["issuer_of_patient_id"]) == (f"A{order.patient_id:07d}", "CLINIC-A")
    assert (item["patient_birth_date"], item["patient_sex"]) == ("19801231", "M")
    assert (item["scheduled_station_ae_title"], item["modality"], item["status"]) == ("CT1", "CT", "SCHEDULED")


def test_a_patient_of_another_site_gets_a_number_of_the_site_that_books() -> None:
    there, here = centre.site("b"), centre.site()
    node = centre.node(here)
    order = centre.booking(here, who=centre.patient(there, number="B-5"), on=centre.device(here))
    item = Command.objects.get(node=node).body["items"][0]
    assert item["issuer_of_patient_id"] == "CLINIC-A"
    assert item["patient_id"] != "B-5"
    assert order.patient.identifiers.count() == 2


def test_a_refused_booking_leaves_nothing_behind() -> None:
    site = centre.site()
    node = centre.node(site)
    device, patient = centre.device(site), centre.patient(site)
    centre.booking(site, who=patient, on=device)
    with pytest.raises(PermanentError, match="slot-taken"):
        centre.booking(site, who=patient, on=device)
    assert ServiceRequest.objects.count() == 1
    assert Command.objects.filter(node=node).count() == 1
    assert centre.booking(site, who=patient, on=device, hour=11).accession_number == "A00000002"


@pytest.mark.parametrize(("shift", "is_free"), [(-30, True), (-29, False), (0, False), (29, False), (30, True)])
def test_slots_may_touch_and_not_overlap(shift: int, is_free: bool) -> None:
    site = centre.site()
    device, patient = centre.device(site), centre.patient(site)
    centre.booking(site, who=patient, on=device)
    begin = centre.tomorrow() + timedelta(minutes=shift)

    def book() -> None:
        actions.book(patient=patient, device=device, starts_at=begin, description="CT", actor="test")

    if is_free:
        book()
    else:
        with pytest.raises(PermanentError, match="slot-taken"):
            book()


def test_the_database_itself_forbids_double_booking() -> None:
    site = centre.site()
    step = centre.booking(site).steps.get()
    slot = DateTimeTZRange(step.slot.lower + timedelta(minutes=10), step.slot.lower + timedelta(minutes=20))
    with pytest.raises(IntegrityError, match="no_double_booking"), transaction.atomic():
        ScheduledProcedureStep.objects.create(
            service_request=step.service_request, device=step.device, scheduled_procedure_step_id="x", slot=slot
        )


def test_two_registrars_at_once_get_one_winner_and_one_clear_sentence(transactional_db: None) -> None:
    site = centre.site()
    device = centre.device(site)
    people = [centre.patient(site), centre.patient(site, name="Иванова^Анна")]
    together = Barrier(2)

    def book(number: int) -> str:
        try:
            together.wait()
            return centre.booking(site, who=people[number], on=device).accession_number
        except PermanentError as error:
            return error.code
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as pool:
        outcome = sorted(pool.map(book, range(2)))
    assert outcome == ["A00000001", "slot-taken"]
    assert ServiceRequest.objects.count() == 1


def test_accession_numbers_are_never_given_twice(transactional_db: None) -> None:
    site = centre.site()
    together = Barrier(4)

    def take(_: int) -> list[str]:
        try:
            together.wait()
            taken = []
            for _ in range(5):
                with transaction.atomic():
                    taken.append(actions.next_accession_number(site))
            return taken
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        numbers = [number for taken in pool.map(take, range(4)) for number in taken]
    assert sorted(numbers) == [f"A{number:08d}" for number in range(1, 21)]
    assert max(map(len, numbers)) <= 16


def test_a_moved_step_frees_its_old_time_and_the_node_hears_of_it() -> None:
    site = centre.site()
    node = centre.node(site)
    order = centre.booking(site)
    later = centre.tomorrow(15)
    step = actions.reschedule(order.steps.get(), device=order.steps.get().device, starts_at=later, actor="test")
    assert step.slot.lower == later
    command = Command.objects.filter(node=node).latest("pk")
    assert command.body["items"][0]["starts_at"].startswith(later.strftime("%Y-%m-%dT15:00"))
    centre.booking(site, who=order.patient, on=step.device)


def test_a_step_that_moves_to_a_device_of_another_node_leaves_the_first() -> None:
    site = centre.site()
    first, second = centre.node(site, "one"), centre.node(site, "two")
    order = centre.booking(site, on=centre.device(site, "CT1", at=first))
    step = order.steps.get()
    actions.reschedule(step, device=centre.device(site, "CT2", at=second), starts_at=step.slot.lower, actor="test")
    command = Command.objects.filter(node=first).latest("pk")
    assert command.body["removed"] == [step.scheduled_procedure_step_id]
    assert Command.objects.filter(node=second).get().body["items"]


def test_a_cancelled_order_frees_its_time_and_leaves_the_node() -> None:
    site = centre.site()
    node = centre.node(site)
    order = centre.booking(site)
    actions.cancel(order, reason="the patient is ill", actor="test")
    assert Command.objects.filter(node=node).order_by("pk").last().body["removed"] == ["A00000001-1"]  # type: ignore[union-attr]
    centre.booking(site, who=order.patient)
    with pytest.raises(PermanentError, match="state-conflict"):
        actions.cancel(order, actor="test")


def test_an_examination_that_has_begun_is_neither_moved_nor_cancelled() -> None:
    order = centre.booking(centre.site())
    actions.step_in_progress(order, "CT")
    step = order.steps.get()
    assert step.status == Status.IN_PROGRESS
    with pytest.raises(PermanentError, match="state-conflict"):
        actions.reschedule(step, device=step.device, starts_at=centre.tomorrow(16), actor="test")
    with pytest.raises(PermanentError, match="state-conflict"):
        actions.cancel(order, actor="test")


def test_images_begin_the_step_and_a_complete_study_ends_it() -> None:
    site = centre.site()
    node = centre.node(site)
    order = centre.booking(site)
    actions.step_in_progress(order, "CT")
    actions.step_in_progress(order, "CT")
    actions.steps_completed(order)
    order.refresh_from_db()
    assert (order.status, order.steps.get().status) == (ServiceRequest.Status.COMPLETED, Status.COMPLETED)
    assert [row.body["removed"] for row in Command.objects.filter(node=node).order_by("pk")][-1] == ["A00000001-1"]
    assert AuditEvent.objects.filter(action__in=["order.begun", "order.performed"]).count() == 2


@given(st.sampled_from(Status.values), st.sampled_from(Status.values))
def test_a_step_moves_only_as_the_table_says(before: str, after: str) -> None:
    step = ScheduledProcedureStep(status=before)
    step.save = lambda **kwargs: None  # type: ignore[method-assign]  # only the decision is tried here
    if after in STEP[before]:
        move(step, after)
        assert step.status == after
    else:
        with pytest.raises(PermanentError, match="state-conflict"):
            move(step, after)


def test_the_first_free_time_lies_between_what_is_booked() -> None:
    site = centre.site()
    device, patient = centre.device(site), centre.patient(site)
    for hour in (10, 11):
        centre.booking(site, who=patient, on=device, hour=hour)
    ten = centre.tomorrow(10)
    assert queries.first_free(device, ten, 30) == ten + timedelta(minutes=30)
    assert queries.first_free(device, ten, 45) == ten + timedelta(minutes=90)
    assert queries.first_free(device, ten - timedelta(hours=1), 60) == ten - timedelta(hours=1)


def test_a_node_that_joins_gets_devices_people_and_the_schedule() -> None:
    site = centre.site()
    device = centre.device(site)
    order = centre.booking(site, on=device)
    done = centre.booking(site, who=order.patient, on=device, hour=12)
    actions.cancel(done, actor="test")
    person = centre.user(Role.RADIOLOGIST, site)
    owes_change = centre.user(Role.REGISTRAR, site)
    accounts.reset_password(owes_change)
    node = centre.node(site)
    Command.objects.all().delete()
    node_joined(node)
    bodies = {command.type: command.body for command in Command.objects.filter(node=node)}
    assert [rule["ae_title"] for rule in bodies["devices"]["devices"]] == ["CT1"]
    assert [item["accession_number"] for item in bodies["schedule"]["items"]] == [order.accession_number]
    assert [entry["username"] for entry in bodies["roster"]["entries"]] == [person.username]


def test_the_archive_gets_no_schedule_of_its_site() -> None:
    node = centre.node(centre.site(), kind=Node.Kind.ARCHIVE)
    node_joined(node)
    assert set(Command.objects.filter(node=node).values_list("type", flat=True)) >= {"devices"}
    assert not Command.objects.filter(node=node, type="schedule").exists()


def test_a_closed_account_leaves_the_roster_at_once() -> None:
    site = centre.site()
    node = centre.node(site)
    person = centre.user(Role.RADIOLOGIST, site)
    accounts.set_active(person, False)
    assert Command.objects.filter(node=node, type="roster").get().body["entries"] == []


def test_a_changed_device_reaches_its_node() -> None:
    site = centre.site()
    node = centre.node(site)
    device = centre.device(site)
    device.character_set = "ISO_IR 144"
    actions.save_device(device, actor="test")
    sent = Command.objects.filter(node=node, type="devices").get().body["devices"][0]
    assert (sent["character_set"], sent["issuer_of_patient_id"]) == ("ISO_IR 144", "CLINIC-A")
    assert node_feed.node_of(device) == node


def test_a_second_device_with_the_same_ae_title_is_refused_by_name() -> None:
    site = centre.site()
    centre.device(site)
    with pytest.raises(PermanentError, match="ae-title-taken"):
        actions.save_device(Device(site=site, name="Other", ae_title="CT1"), actor="test")


def booking_form(device: Device, **other: str) -> dict[str, str]:
    return {
        "device": str(device.pk),
        "day": centre.tomorrow().date().isoformat(),
        "time": "10:00",
        "minutes": "30",
        "description": "CT of the chest",
        "priority": "routine",
        **other,
    }


def test_a_registrar_books_a_new_patient_in_the_zone_of_the_site(browser_of: Browser) -> None:
    site = centre.site(time_zone="Europe/Samara")
    device = centre.device(site)
    browser = browser_of(centre.user(Role.REGISTRAR, site))
    new = {"patient": "new", "new-name": "Щёголев Пётр Ёжикович", "new-birth_date": "1980-12-31", "new-sex": "M"}
    answer = browser.post("/schedule/book/", booking_form(device, **new))
    assert answer.status_code == 302
    step = ScheduledProcedureStep.objects.get()
    assert step.slot.lower.astimezone(ZoneInfo("Europe/Samara")).strftime("%H:%M") == "10:00"
    assert step.service_request.patient.name == "Щёголев^Пётр^Ёжикович"
    day = browser.get(answer["Location"]).content.decode()
    assert "10:00–10:30" in day
    assert "Щёголев Пётр Ёжикович" in day


def test_a_booking_on_a_taken_slot_says_so_and_makes_no_patient(browser_of: Browser) -> None:
    site = centre.site()
    device = centre.device(site)
    when = booking_form(device, patient="new", **{"new-name": "Иванова Анна"})
    browser = browser_of(centre.user(Role.REGISTRAR, site))
    assert browser.post("/schedule/book/", when).status_code == 302
    answer = browser.post("/schedule/book/", {**when, "new-name": "Петрова Ольга"})
    assert answer.status_code == 409
    assert "This time is taken already" in answer.content.decode()
    assert not AuditEvent.objects.filter(action="patient.created").count() > 1


def test_a_registrar_cannot_book_for_a_patient_they_neither_see_nor_found(browser_of: Browser) -> None:
    site = centre.site()
    device, stranger = centre.device(site), centre.patient(centre.site("b"))
    browser = browser_of(centre.user(Role.REGISTRAR, site))
    assert browser.post("/schedule/book/", booking_form(device, patient=str(stranger.pk))).status_code == 409
    assert "Щёголев" in browser.get("/schedule/patients/?q=щеголев 31.12.1980").content.decode()
    assert browser.post("/schedule/book/", booking_form(device, patient=str(stranger.pk))).status_code == 302


def test_devices_of_another_site_cannot_be_booked(browser_of: Browser) -> None:
    device = centre.device(centre.site("b"))
    browser = browser_of(centre.user(Role.REGISTRAR, centre.site()))
    assert browser.post("/schedule/book/", booking_form(device, patient="new")).status_code == 404


def test_an_examination_over_midnight_is_on_both_days(browser_of: Browser) -> None:
    site = centre.site(time_zone="UTC")
    device = centre.device(site)
    late = centre.tomorrow(23, 45)
    actions.book(
        patient=centre.patient(site), device=device, starts_at=late, minutes=60, description="Night MR", actor="test"
    )
    browser = browser_of(centre.user(Role.REGISTRAR, site))
    for day in (late.date(), late.date() + timedelta(days=1)):
        assert "Night MR" in browser.get(f"/schedule/?day={day}").content.decode()


def test_the_api_books_cancels_and_names_a_conflict() -> None:
    site = centre.site()
    device, patient = centre.device(site), centre.patient(site)
    token = accounts.issue_token(centre.user(Role.REGISTRAR, site), "test")
    client = Client(headers={"Authorization": f"Bearer {token}"})
    asked = {
        "patient": patient.pk,
        "device": device.pk,
        "starts_at": centre.tomorrow().isoformat(),
        "description": "CT",
    }
    made = client.post("/api/v1/orders", asked, content_type="application/json")
    assert made.status_code == 201
    assert made.json()["steps"][0]["status"] == "SCHEDULED"
    again = client.post("/api/v1/orders", asked, content_type="application/json")
    assert (again.status_code, again.json()["code"]) == (409, "slot-taken")
    assert again["Content-Type"] == "application/problem+json"
    cancelled = client.post(f"/api/v1/orders/{made.json()['id']}/cancel", {}, content_type="application/json")
    assert cancelled.json()["status"] == "revoked"
    assert client.post("/api/v1/orders", asked, content_type="application/json").status_code == 201
    found = client.get(f"/api/v1/orders?accession_number={made.json()['accession_number']}").json()
    assert found["count"] == 1
    Device.objects.update(is_active=False)
    idle = client.post("/api/v1/orders", {**asked, "starts_at": centre.tomorrow(15).isoformat()}, "application/json")
    assert (idle.status_code, idle.json()["code"]) == (409, "device-inactive")


def test_another_site_sees_neither_order_nor_step(browser_of: Browser) -> None:
    order = centre.booking(centre.site())
    other = centre.user(Role.REGISTRAR, centre.site("b"))
    assert not queries.visible_to(other).exists()
    assert browser_of(other).get(f"/schedule/steps/{order.steps.get().pk}/").status_code == 404
    assert browser_of(other).get(f"/api/v1/orders/{order.pk}").status_code == 404
    assert order.created_at <= timezone.now()

"""A node that was alone comes back: its orders become ours, differences are decided by the table and shown."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.test import Client
from django.utils import timezone

from gateway.envelope import RawEvent
from ris_central.accounts.models import Role, User
from ris_central.audit.models import AuditEvent
from ris_central.federation import intake
from ris_central.federation.models import Command, InboxEvent, Node
from ris_central.orders import accessions, actions, node_feed, rules
from ris_central.orders.models import (
    AccessionBlock,
    AccessionCounter,
    Device,
    ReturnDifference,
    ScheduledProcedureStep,
    ServiceRequest,
)
from ris_central.orders.placing import facts_of
from ris_central.orders.views.returned import FIELDS, TITLES
from ris_central.organizations.models import Site
from ris_central.patients import actions as patients
from ris_central.patients import merging
from ris_central.patients.models import Patient, PatientIdentifier
from standards.errors import PermanentError
from standards.uids import new_uid
from tests.factories import centre
from worklist.feed import WorklistItem

pytestmark = pytest.mark.django_db
Browser = Callable[[User | None], Client]
Status = ScheduledProcedureStep.Status
Side = ReturnDifference.Side
NAME = "Выдумкин^Пример^Ёлкович"


class Van:
    """A node of a site that speaks to the centre in numbered events."""

    def __init__(self) -> None:
        self.site = centre.site()
        self.node = centre.node(self.site, name="van")
        self.device = centre.device(self.site, ae_title="VANCT", at=self.node)
        self.seq = 0

    def tell(self, kind: str, **body: Any) -> None:
        self.seq += 1
        raw = RawEvent(
            schema_version=1, epoch="e1", seq=self.seq, occurred_at=timezone.now(), body={"type": kind, **body}
        )
        intake.take(self.node, [raw])
        row = InboxEvent.objects.get(node=self.node, seq=self.seq)
        assert row.error == ""

    def item(self, number: int = 501, hour: int = 10, **changes: Any) -> WorklistItem:
        accession = f"A{number:08d}"
        starts = centre.tomorrow(hour)
        values = {
            "scheduled_procedure_step_id": f"{accession}-1",
            "scheduled_station_ae_title": "VANCT",
            "modality": "CT",
            "starts_at": starts,
            "ends_at": starts + timedelta(minutes=30),
            "accession_number": accession,
            "requested_procedure_id": accession,
            "requested_procedure_description": "КТ груди",
            "study_instance_uid": new_uid(),
            "requested_procedure_priority": "HIGH",
            "patient_name": NAME,
            "patient_id": f"P{accession}",
            "issuer_of_patient_id": "CLINIC-A",
            "patient_birth_date": "19700228",
            "patient_sex": "M",
        }
        return WorklistItem.model_validate(values | changes)

    def register(self, item: WorklistItem | None = None, **more: Any) -> ServiceRequest:
        item = item or self.item()
        said = {"item": item.model_dump(mode="json"), "revision": 1, "by": "anna", "at": now(), **more}
        self.tell("order.registered", **said)
        return ServiceRequest.objects.get(study_instance_uid=item.study_instance_uid)

    def change(self, base: WorklistItem, revision: int = 2, **changes: Any) -> WorklistItem:
        item = base.model_copy(update=changes)
        self.tell(
            "order.changed",
            item=item.model_dump(mode="json"),
            base=base.model_dump(mode="json"),
            revision=revision,
            by="anna",
            at=now(),
        )
        return item

    def cancel(self, item: WorklistItem, revision: int = 2) -> None:
        self.tell("order.cancelled", item=item.model_dump(mode="json"), revision=revision, by="anna", at=now())

    def last_schedule(self) -> dict[str, Any]:
        found = Command.objects.filter(node=self.node, type="schedule").order_by("pk").last()
        assert found is not None
        return dict(found.body)


def now() -> str:
    return datetime.now(UTC).isoformat()


def step_of(order: ServiceRequest) -> ScheduledProcedureStep:
    return order.steps.select_related("device", "service_request__patient").get()


def only_difference() -> ReturnDifference:
    return ReturnDifference.objects.get()


@pytest.fixture
def van() -> Van:
    return Van()


@pytest.fixture
def registrar(van: Van) -> User:
    return centre.user(Role.REGISTRAR, van.site)


def decide(browser_of: Browser, who: User, side: str) -> ReturnDifference:
    row = only_difference()
    answer = browser_of(who).post(f"/schedule/returned/{row.pk}/decide/", {"side": side}, follow=True)
    assert answer.status_code == 200
    row.refresh_from_db()
    return row


def test_a_joining_node_gets_numbers_that_the_centre_never_gives(van: Van) -> None:
    accessions.reserve(van.node)
    body = Command.objects.get(type="accession.block").body
    assert (body["prefix"], body["first"], body["last"]) == ("A", 1, 500)
    assert centre.booking(van.site, on=van.device).accession_number == "A00000501"
    assert accessions.remaining(van.node) == (500, 500)


def test_no_two_blocks_of_a_site_overlap_in_the_database(van: Van) -> None:
    AccessionBlock.objects.create(site=van.site, node=van.node, first=1, last=500)
    with pytest.raises(IntegrityError, match="accession_blocks_apart"), transaction.atomic():
        AccessionBlock.objects.create(site=van.site, node=van.node, first=500, last=999)
    other = centre.site("b")
    AccessionBlock.objects.create(site=other, node=centre.node(other), first=500, last=999)


def test_a_node_with_a_third_left_gets_more_once(van: Van) -> None:
    accessions.reserve(van.node)
    van.tell("accession.state", left=400, highest=500)
    assert AccessionBlock.objects.count() == 1
    van.tell("accession.state", left=166, highest=500)
    van.tell("accession.state", left=0, highest=500)
    assert list(AccessionBlock.objects.order_by("first").values_list("first", "last")) == [(1, 500), (501, 1000)]


def test_a_restored_centre_passes_over_what_a_node_was_given(van: Van) -> None:
    van.tell("accession.state", left=400, highest=1500)
    assert centre.booking(van.site, on=van.device).accession_number == "A00001501"
    van.tell("accession.state", left=400, highest=10**9)
    assert AccessionCounter.objects.get().next_number < 10**6


def test_an_examination_of_the_van_becomes_patient_order_and_step_with_its_own_numbers(van: Van) -> None:
    item = van.item()
    order = van.register(item)
    step = step_of(order)
    assert (order.accession_number, order.study_instance_uid) == (item.accession_number, item.study_instance_uid)
    assert (step.scheduled_procedure_step_id, step.device, step.status) == ("A00000501-1", van.device, "SCHEDULED")
    assert (order.priority, order.description, order.patient.name) == ("urgent", "КТ груди", NAME)
    assert (order.patient.birth_date, order.patient.sex) == (date(1970, 2, 28), "M")
    assert order.patient.identifiers.get().value == "PA00000501"
    assert not ReturnDifference.objects.exists()
    assert van.last_schedule()["settled"] == {"A00000501-1": 1}
    row = AuditEvent.objects.get(action="order.registered-at-node")
    assert (row.actor_name, row.patient_key) == ("anna (van)", order.patient_id)


def test_an_order_told_twice_is_one_order(van: Van) -> None:
    item = van.item()
    van.register(item)
    van.register(item)
    van.change(item, requested_procedure_description="КТ шеи")
    van.change(item, requested_procedure_description="КТ таза")
    assert ServiceRequest.objects.get().description == "КТ шеи", "revision 2 counts once"


def test_a_patient_of_the_same_number_is_the_same_and_keeps_the_centres_identity(
    van: Van, registrar: User, browser_of: Browser
) -> None:
    known = centre.patient(van.site, name="Выдумкин^Пример", born=date(1970, 2, 28), number="1001")
    order = van.register(van.item(patient_id="1001"))
    assert order.patient == known
    row = only_difference()
    assert (row.rule, row.kept, row.state) == ("patient-differs", Side.CENTRE, "by-rule")
    known.refresh_from_db()
    assert known.name == "Выдумкин^Пример"
    decide(browser_of, registrar, Side.NODE)
    known.refresh_from_db()
    assert known.name == NAME


def test_a_patient_registered_at_both_ends_is_proposed_merged_and_parted_again(
    van: Van, registrar: User, browser_of: Browser
) -> None:
    known = centre.patient(van.site, name="Выдумкин^Пример^Елкович", born=date(1970, 2, 28), number="1001")
    order = van.register()
    assert order.patient != known
    row = only_difference()
    assert (row.rule, row.state, row.kept) == ("patient-alike", "open", Side.NODE)
    decide(browser_of, registrar, Side.CENTRE)
    order.refresh_from_db()
    assert order.patient == known
    assert set(known.identifiers.values_list("value", flat=True)) == {"1001", "PA00000501"}
    assert van.register(van.item(502, hour=12, patient_id="PA00000501")).patient == known
    ReturnDifference.objects.exclude(pk=row.pk).delete()
    decide(browser_of, registrar, Side.NODE)
    order.refresh_from_db()
    assert order.patient.merged_into is None
    assert order.patient != known
    assert PatientIdentifier.objects.get(value="PA00000501").patient == order.patient


def test_a_merge_moves_everything_and_hides_the_other_row(van: Van, registrar: User) -> None:
    first, second = centre.patient(van.site, number="1"), centre.patient(van.site, number="2")
    order = centre.booking(van.site, who=second, on=van.device)
    merging.merge(second, first, actor="test")
    order.refresh_from_db()
    assert order.patient == first
    with pytest.raises(PermanentError, match="merged-already"):
        merging.merge(second, first, actor="test")
    with pytest.raises(PermanentError, match="same-patient"):
        merging.merge(first, first, actor="test")
    assert Patient.objects.get(pk=second.pk).merged_into == first


def test_an_unknown_patient_waits_for_a_name_and_then_for_a_match(
    van: Van, registrar: User, browser_of: Browser
) -> None:
    order = van.register(van.item(patient_name="Неизвестный^A00000501", patient_birth_date=""), unknown_patient=True)
    assert (only_difference().rule, only_difference().state) == ("patient-unknown", "open")
    assert order.patient.birth_date is None
    known = centre.patient(van.site, name=NAME, born=date(1970, 2, 28), number="1001")
    patients.edit(order.patient, name=NAME, birth_date=date(1970, 2, 28), sex="M", actor="test")
    decide(browser_of, registrar, Side.NODE)
    proposal = ReturnDifference.objects.get(rule="patient-alike")
    assert (proposal.state, proposal.detail["other"]) == ("open", known.pk)


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


def test_a_correction_of_the_patient_by_the_node_alone_holds_and_is_shown(van: Van) -> None:
    order = centre.booking(van.site, on=van.device)
    van.change(node_feed.worklist_item(step_of(order)), revision=1, patient_sex="F")
    assert only_difference().rule == "patient-corrected"
    assert Patient.objects.get(pk=order.patient_id).sex == "F"


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


def test_an_accession_number_used_twice_gives_the_second_order_another(van: Van) -> None:
    booked = centre.booking(van.site, on=van.device)
    item = van.item(1, hour=12)
    order = van.register(item)
    assert booked.accession_number == item.accession_number
    assert order.accession_number == "A00000002"
    assert step_of(order).scheduled_procedure_step_id == "A00000002-1"
    row = only_difference()
    assert (row.rule, row.node_value, row.centre_value) == ("accession-twice", "A00000001", "A00000002")
    bodies = [command.body for command in Command.objects.filter(node=van.node, type="schedule").order_by("pk")]
    assert {"A00000001-1": 1} in [body["settled"] for body in bodies if body["removed"] == ["A00000001-1"]]
    assert bodies[-1]["items"][0]["accession_number"] == "A00000002"


def test_an_emergency_number_is_kept_and_shown(van: Van) -> None:
    item = van.item(accession_number="A-E7-00001", scheduled_procedure_step_id="A-E7-00001-1")
    assert van.register(item, emergency_number=True).accession_number == "A-E7-00001"
    assert only_difference().rule == "emergency-number"


def test_a_device_the_centre_does_not_know_is_on_file_out_of_use(van: Van) -> None:
    order = van.register(van.item(scheduled_station_ae_title="VANUS", modality="US"))
    device = step_of(order).device
    assert (device.ae_title, device.modality, device.is_active) == ("VANUS", "US", False)
    assert only_difference().rule == "device-unknown"


def test_a_change_of_an_order_that_a_restored_centre_lost_makes_it_again(van: Van) -> None:
    item = van.item()
    van.change(item, revision=3, requested_procedure_description="КТ шеи")
    order = ServiceRequest.objects.get()
    assert (order.description, step_of(order).node_revision) == ("КТ шеи", 3)


def test_a_node_of_another_site_cannot_touch_the_order(van: Van) -> None:
    order = centre.booking(van.site, on=van.device)
    base = node_feed.worklist_item(step_of(order))
    stranger = Van.__new__(Van)
    stranger.site = centre.site("b")
    stranger.node, stranger.seq = centre.node(stranger.site), 0
    stranger.cancel(base, revision=9)
    assert step_of(order).status == Status.SCHEDULED
    assert step_of(order).node_revision == 0


def test_the_page_lists_differences_of_ones_own_sites_and_every_rule_reads(
    van: Van, registrar: User, browser_of: Browser
) -> None:
    order = van.register(van.item(accession_number="A-E7-00001"), emergency_number=True)
    for rule in rules.HAPPENINGS:
        values = {"node_value": "X^Y", "centre_value": "X^Y"}
        if rule == "patient-differs":
            values = {"node_value": f"{NAME}|19700228|M", "centre_value": f"{NAME}||"}
        if rule == "slot-shifted":
            slot = "2026-11-24T09:00:00+00:00/2026-11-24T09:20:00+00:00"
            values = {"node_value": slot, "centre_value": slot}
        ReturnDifference.objects.create(
            node=van.node, site=van.site, service_request=order, rule=rule, kept=Side.NODE, **values
        )
    page = browser_of(registrar).get("/schedule/returned/").content.decode()
    assert "Emergency accession number" in page
    assert "12:00–12:20" in page, "in the zone of the site"
    stranger = centre.user(Role.REGISTRAR, centre.site("b"))
    assert "Emergency accession number" not in browser_of(stranger).get("/schedule/returned/").content.decode()
    row = ReturnDifference.objects.first()
    assert row is not None
    assert browser_of(stranger).post(f"/schedule/returned/{row.pk}/decide/", {"side": "node"}).status_code == 404


def test_every_rule_has_a_title_and_every_field_a_name() -> None:
    assert rules.HAPPENINGS.keys() == TITLES.keys()
    assert rules.FIELDS.keys() == FIELDS.keys()


def test_a_decision_is_in_the_trail(van: Van, registrar: User, browser_of: Browser) -> None:
    centre.booking(van.site, on=van.device)
    van.register()
    row = decide(browser_of, registrar, Side.NODE)
    assert (row.state, row.decided_by) == ("by-person", registrar)
    assert AuditEvent.objects.get(action="return.decided").actor == registrar
    assert AuditEvent.objects.filter(action="return.differs").count() == 1


def test_joining_reserves_numbers_but_not_for_the_archive() -> None:
    site = centre.site()
    accessions.node_joined(centre.node(site))
    accessions.node_joined(centre.node(site, name="archive", kind=Node.Kind.ARCHIVE))
    assert AccessionBlock.objects.count() == 1
    assert Site.objects.count() == 1
    assert accessions.ensure_blocks() == 0

"""A node that was alone comes back: its orders become ours, differences are decided by the table and shown."""

from collections.abc import Callable
from datetime import date

import pytest
from django.db import IntegrityError, transaction
from django.test import Client

from ris_central.accounts.models import Role, User
from ris_central.audit.models import AuditEvent
from ris_central.federation.models import Command, Node
from ris_central.orders import accessions, node_feed, rules
from ris_central.orders.models import (
    AccessionBlock,
    AccessionCounter,
    ReturnDifference,
    ScheduledProcedureStep,
    ServiceRequest,
)
from ris_central.orders.views.returned import FIELDS, TITLES
from ris_central.organizations.models import Site
from ris_central.patients import actions as patients
from ris_central.patients import merging
from ris_central.patients.models import CareLink, Patient, PatientIdentifier
from standards.errors import PermanentError
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


def test_a_node_cannot_open_earlier_studies_of_another_sites_patient_by_naming_them(
    van: Van, registrar: User, browser_of: Browser
) -> None:
    there = centre.site("b")
    stranger = centre.patient(there, name=NAME, born=date(1970, 2, 28), number="B-7")
    order = van.register(van.item(patient_id="B-7", issuer_of_patient_id="CLINIC-B"))
    assert order.patient == stranger
    number = van.last_schedule()["items"][0]
    assert number["issuer_of_patient_id"] == "CLINIC-A"
    again = van.item(502, hour=12, patient_id=number["patient_id"])
    assert van.register(again).patient == stranger, "by the number that the centre gave"
    assert not CareLink.objects.filter(patient=stranger, site=van.site).exists()
    ReturnDifference.objects.order_by("pk").last().delete()  # type: ignore[union-attr]
    assert only_difference().rule == "patient-elsewhere"
    decide(browser_of, registrar, Side.NODE)
    assert CareLink.objects.filter(patient=stranger, site=van.site).exists()
    decide(browser_of, registrar, Side.CENTRE)
    assert not CareLink.objects.filter(patient=stranger, site=van.site).exists()


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


def test_a_correction_of_the_patient_by_the_node_alone_holds_and_is_shown(van: Van) -> None:
    order = centre.booking(van.site, on=van.device)
    van.change(node_feed.worklist_item(step_of(order)), revision=1, patient_sex="F")
    assert only_difference().rule == "patient-corrected"
    assert Patient.objects.get(pk=order.patient_id).sex == "F"


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

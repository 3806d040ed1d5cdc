"""A node that lives alone: numbers of its own, registration, and what the scanner and the centre hear of it."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.test import Client
from django.utils import timezone

from gateway.envelope import AccessionBlock, Schedule
from gateway.models import OutboxEntry, StudyPriority
from pacs_node.clinic.models import ApplicationEntity, AuditEntry, RosterMember, WorklistEntry
from pacs_node.offline import accessions, actions, merging, models
from pacs_node.offline.models import LocalStep
from standards.errors import PermanentError
from standards.uids import new_uid
from tests.node.dicomweb_node import ct_slice, take_in
from worklist.feed import WorklistItem

pytestmark = pytest.mark.django_db

NAME = "Выдумкин^Пример^Ёлкович"


@pytest.fixture
def scanner() -> ApplicationEntity:
    return ApplicationEntity.objects.create(ae_title="VANCT", modality="CT", issuer_of_patient_id="CLINIC-A")


@pytest.fixture
def anna() -> User:
    user = User.objects.create_user("anna", password="radiant-day")
    expires = timezone.now() + timedelta(days=30)
    RosterMember.objects.create(user=user, role="registrar", expires_at=expires)
    return user


def reserve(first: int = 1, last: int = 500) -> None:
    accessions.take_block(AccessionBlock(prefix="A", first=first, last=last, mark="7"))


def examination(**changes: Any) -> actions.Examination:
    values: dict[str, Any] = {
        "ae_title": "VANCT",
        "description": "КТ груди",
        "starts_at": timezone.now(),
        "minutes": 20,
    }
    return actions.Examination(**(values | changes))


def register(key: str = "", person: actions.Person | None = None, **changes: Any) -> LocalStep:
    who = person or actions.Person(NAME, "19700228", "M")
    return actions.register(who, examination(**changes), key=key or str(uuid4()), actor="anna")


def entry_of(step: LocalStep) -> WorklistEntry:
    return WorklistEntry.objects.get(scheduled_procedure_step_id=step.scheduled_procedure_step_id)


def told(kind: str) -> list[dict[str, Any]]:
    return [row.body for row in OutboxEntry.objects.filter(kind=kind).order_by("pk")]


def centre_item(**changes: Any) -> WorklistItem:
    starts = datetime(2026, 11, 24, 9, tzinfo=UTC)
    values = {
        "scheduled_procedure_step_id": "A00000009-1",
        "scheduled_station_ae_title": "VANCT",
        "modality": "CT",
        "starts_at": starts,
        "ends_at": starts + timedelta(minutes=20),
        "accession_number": "A00000009",
        "requested_procedure_id": "A00000009",
        "requested_procedure_description": "КТ головы",
        "scheduled_procedure_step_description": "КТ головы",
        "study_instance_uid": new_uid(),
        "patient_name": NAME,
        "patient_id": "1001",
        "issuer_of_patient_id": "CLINIC-A",
    }
    return WorklistItem.model_validate(values | changes)


def test_reserved_numbers_are_given_once_each_and_in_order(scanner: ApplicationEntity) -> None:
    reserve(41, 43)
    reserve(41, 43)
    numbers = [register().accession_number for _ in range(3)]
    assert numbers == ["A00000041", "A00000042", "A00000043"]
    assert accessions.numbers() == accessions.Numbers(left=0, block=3, highest=43)


def test_the_database_itself_holds_a_number_to_be_used_once(scanner: ApplicationEntity) -> None:
    reserve()
    step = register()
    twin = LocalStep(
        scheduled_procedure_step_id="OTHER",
        accession_number=step.accession_number,
        study_instance_uid=new_uid(),
        made_here=True,
        item=step.item,
    )
    with pytest.raises(IntegrityError), transaction.atomic():
        twin.save()
    with pytest.raises(IntegrityError), transaction.atomic():
        models.AccessionBlock.objects.update(next_number=502)


def test_a_third_left_and_none_left_are_told_once(scanner: ApplicationEntity) -> None:
    reserve(1, 6)
    for _ in range(6):
        register()
    assert [body["left"] for body in told("accession.state")] == [6, 2, 0]
    assert {body["highest"] for body in told("accession.state")} == {6}


def test_after_the_block_registration_goes_on_with_marked_numbers(scanner: ApplicationEntity) -> None:
    reserve(1, 1)
    register()
    numbers = [register() for _ in range(2)]
    assert [step.accession_number for step in numbers] == ["A-E7-00001", "A-E7-00002"]
    assert all(step.emergency_number for step in numbers)
    assert told("order.registered")[-1]["emergency_number"] is True
    reserve(501, 1000)
    assert register().accession_number == "A00000501"


def test_a_node_that_never_had_a_block_registers_as_well(scanner: ApplicationEntity) -> None:
    number = register().accession_number
    assert "-E" in number
    assert len(number) <= 16


def test_registration_is_on_the_worklist_audited_and_told_in_one(scanner: ApplicationEntity) -> None:
    reserve()
    step = register(priority="STAT", referring_physician_name="Врачов^Иван")
    item = WorklistItem.model_validate(entry_of(step).item)
    assert (item.patient_name, item.issuer_of_patient_id) == (NAME, "CLINIC-A")
    assert re.fullmatch(r"PA00000001-\w{4}", item.patient_id)
    assert item.scheduled_procedure_step_id == "A00000001-1"
    event = told("order.registered")[0]
    assert WorklistItem.model_validate(event["item"]) == item
    assert (event["revision"], event["by"]) == (1, "anna")
    assert AuditEntry.objects.get(action="order.registered").entity == "A00000001"
    assert StudyPriority.objects.get(study_instance_uid=item.study_instance_uid).priority == 0


def test_a_form_sent_twice_makes_one_examination(scanner: ApplicationEntity) -> None:
    reserve()
    key = str(uuid4())
    assert register(key).pk == register(key).pk
    assert accessions.numbers().left == 499
    assert len(told("order.registered")) == 1


@pytest.mark.parametrize(
    ("person", "changes", "code"),
    [
        (actions.Person(" ^ "), {}, "name-missing"),
        (actions.Person(NAME, patient_id="NOBODY"), {}, "patient-unknown"),
        (actions.Person(NAME), {"ae_title": "NOWHERE"}, "device-unknown"),
        (actions.Person(NAME), {"description": " "}, "description-missing"),
        (actions.Person(NAME), {"minutes": 0}, "slot-invalid"),
        (actions.Person(NAME), {"priority": "SOON"}, "priority-unknown"),
    ],
)
def test_what_is_wrong_is_named_and_costs_no_number(
    scanner: ApplicationEntity, person: actions.Person, changes: dict[str, Any], code: str
) -> None:
    reserve()
    with pytest.raises(PermanentError, match=code):
        register(person=person, **changes)
    assert accessions.numbers().left == 500
    assert not WorklistEntry.objects.exists()


def test_a_restored_node_that_gives_a_number_again_makes_no_two_people_one(scanner: ApplicationEntity) -> None:
    reserve(1, 1)
    first = register()
    first.delete()
    models.AccessionBlock.objects.update(next_number=1)
    again = register(person=actions.Person("Другов^Пётр"))
    assert again.accession_number == first.accession_number
    assert again.item["patient_id"] != first.item["patient_id"]


def test_an_unknown_patient_is_named_by_the_number(scanner: ApplicationEntity) -> None:
    reserve()
    step = actions.register(
        actions.Person(unknown=True), examination(), key=str(uuid4()), actor="anna", unknown_name="Неизвестный"
    )
    assert step.item["patient_name"] == "Неизвестный^A00000001"
    assert told("order.registered")[0]["unknown_patient"] is True


def test_a_change_names_what_was_before_and_is_refused_over_what_somebody_changed(scanner: ApplicationEntity) -> None:
    reserve()
    step = register()
    entry = entry_of(step)
    seen = actions.mark_of(WorklistItem.model_validate(entry.item))
    person = actions.Person("Другова^Анна", "19700228", "F")
    actions.change(entry, person, examination(priority="HIGH"), actor="anna", seen=seen)
    event = told("order.changed")[0]
    assert (event["base"]["patient_name"], event["item"]["patient_name"]) == (NAME, "Другова^Анна")
    assert event["revision"] == 2
    assert entry_of(step).item["requested_procedure_priority"] == "HIGH"
    assert StudyPriority.objects.get().priority == 20
    with pytest.raises(PermanentError, match="changed-meanwhile"):
        actions.change(entry_of(step), person, examination(), actor="boris", seen=seen)


def test_what_is_routine_again_leaves_by_the_rules_of_the_mirror(scanner: ApplicationEntity) -> None:
    reserve()
    step = register(priority="STAT")
    actions.change(entry_of(step), actions.Person(NAME, "19700228", "M"), examination(), actor="anna")
    assert not StudyPriority.objects.exists()


def test_what_has_images_cannot_be_cancelled(scanner: ApplicationEntity) -> None:
    reserve()
    step, other = register(), register()
    take_in(ct_slice(step.study_instance_uid, new_uid()))
    with pytest.raises(PermanentError, match="has-images"):
        actions.cancel(entry_of(step), actor="anna")
    actions.cancel(entry_of(other), actor="anna", reason="не пришёл")
    assert told("order.cancelled")[0]["reason"] == "не пришёл"
    assert WorklistEntry.objects.count() == 1


def test_the_centre_does_not_overwrite_what_it_does_not_know_yet(scanner: ApplicationEntity) -> None:
    item = centre_item()
    merging.take_schedule(Schedule(items=[item]))
    entry = WorklistEntry.objects.get()
    local = actions.change(
        entry,
        actions.Person(NAME),
        examination(description="КТ шеи", starts_at=item.starts_at),
        actor="anna",
    )
    moved = item.model_copy(
        update={"reason_for_the_requested_procedure": "боль", "requested_procedure_description": "МРТ"}
    )
    merging.take_schedule(Schedule(items=[moved]))
    shown = WorklistEntry.objects.get().item
    assert shown["requested_procedure_description"] == "КТ шеи"
    merging.take_schedule(Schedule(removed=[item.scheduled_procedure_step_id]))
    assert WorklistEntry.objects.exists(), "what was changed here stays until the centre has decided"
    settled = {item.scheduled_procedure_step_id: local.revision}
    merging.take_schedule(Schedule(items=[moved], settled=settled))
    assert WorklistEntry.objects.get().item["requested_procedure_description"] == "МРТ"
    merging.take_schedule(Schedule(removed=[item.scheduled_procedure_step_id], settled=settled))
    assert not WorklistEntry.objects.exists()


def test_what_was_cancelled_here_comes_back_only_when_the_centre_has_decided(scanner: ApplicationEntity) -> None:
    item = centre_item()
    merging.take_schedule(Schedule(items=[item]))
    local = actions.cancel(WorklistEntry.objects.get(), actor="anna")
    merging.take_schedule(Schedule(items=[item]))
    assert not WorklistEntry.objects.exists()
    merging.take_schedule(Schedule(items=[item], settled={item.scheduled_procedure_step_id: local.revision}))
    assert WorklistEntry.objects.exists()


def test_urgent_orders_of_the_schedule_go_first_and_a_wish_by_hand_stays(scanner: ApplicationEntity) -> None:
    urgent, asked = centre_item(requested_procedure_priority="STAT"), new_uid()
    StudyPriority.objects.create(study_instance_uid=asked, priority=5)
    again = centre_item(scheduled_procedure_step_id="X", study_instance_uid=asked, requested_procedure_priority="HIGH")
    merging.take_schedule(Schedule(items=[urgent, again]))
    assert StudyPriority.objects.get(study_instance_uid=urgent.study_instance_uid).priority == 0
    assert StudyPriority.objects.get(study_instance_uid=asked).priority == 5


def form(**changes: str) -> dict[str, str]:
    now = timezone.localtime()
    values = {
        "key": str(uuid4()),
        "name": "Выдумкин Пример Ёлкович",
        "birth_date": "1970-02-28",
        "sex": "M",
        "ae_title": "VANCT",
        "description": "КТ груди",
        "day": now.date().isoformat(),
        "time": f"{now:%H:%M}",
        "minutes": "20",
        "priority": "HIGH",
    }
    return values | changes


def test_the_registrar_registers_by_the_page_and_finds_the_patient_again(
    client: Client, anna: User, scanner: ApplicationEntity
) -> None:
    reserve()
    client.force_login(anna)
    assert client.get("/registration/new/").status_code == 200
    answer = client.post("/registration/new/", form(), follow=True)
    assert "A00000001" in answer.content.decode()
    assert LocalStep.objects.get().item["patient_name"] == NAME
    found = client.get("/registration/patients/", {"q": "елк выду"}).content.decode()
    number = LocalStep.objects.get().item["patient_id"]
    assert f'data-id="{number}"' in found
    client.post("/registration/new/", form(patient_id=number, issuer="CLINIC-A"))
    assert LocalStep.objects.order_by("pk").last().item["patient_id"] == number  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": ""}, "Write the name"),
        ({"birth_date": "1970-02-31"}, "no date"),
        ({"time": "25:00"}, "Day and time"),
        ({"description": ""}, "what is to be examined"),
    ],
)
def test_a_wrong_form_says_what_to_do_and_keeps_what_was_typed(
    client: Client, anna: User, scanner: ApplicationEntity, changes: dict[str, str], sentence: str
) -> None:
    client.force_login(anna)
    answer = client.post("/registration/new/", form(**changes))
    text = answer.content.decode()
    assert answer.status_code == 422
    assert sentence in text
    assert "1970-02" in text


def test_two_registrars_at_one_examination_get_one_winner(
    client: Client, anna: User, scanner: ApplicationEntity
) -> None:
    reserve()
    key = entry_of(register()).pk
    client.force_login(anna)
    seen = client.get(f"/registration/{key}/").context["form"]["seen"]
    first = client.post(f"/registration/{key}/", form(seen=seen, description="КТ шеи"))
    assert first.status_code == 302
    second = client.post(f"/registration/{key}/", form(seen=seen, description="КТ таза"))
    assert second.status_code == 409
    assert "meanwhile" in second.content.decode()
    assert client.post(f"/registration/{key}/cancel/", {"reason": "ошибка"}).status_code == 302
    assert not WorklistEntry.objects.exists()


def test_an_engineer_does_not_register_and_the_try_is_written_down(client: Client, anna: User) -> None:
    RosterMember.objects.update(role="engineer")
    client.force_login(anna)
    assert client.get("/registration/new/").status_code == 403
    assert client.get("/registration/").status_code == 200
    assert AuditEntry.objects.filter(action="page.refused", actor="anna").exists()

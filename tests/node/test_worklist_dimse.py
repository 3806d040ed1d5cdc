"""The Modality Worklist by DCMTK's findscu, in the character set of the device that asks."""

import re
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from standards.uids import new_uid
from tests.node.conftest import NodeProcess, need
from worklist.feed import WorklistItem

NAME = "Щёголев-Ящуржинский^Пётр^Ёжикович"
APPLY = """
from pacs_node.clinic.actions import apply_schedule
from worklist.feed import WorklistItem
apply_schedule([WorklistItem.model_validate_json({item!r})], {removed!r})
"""


def schedule(node: NodeProcess, item: WorklistItem, *, removed: list[str] | None = None) -> None:
    node.python(APPLY.format(item=item.model_dump_json(), removed=removed or []))


def an_item(**changes: object) -> WorklistItem:
    # 22:30 UTC on the 21st is already the 22nd in Moscow, and a device asks by the clock on its wall.
    starts = datetime(2026, 11, 21, 22, 30, tzinfo=UTC)
    values: dict[str, object] = {
        "scheduled_procedure_step_id": uuid.uuid4().hex[:12].upper(),
        "scheduled_procedure_step_description": "КТ головы № 1 — с контрастом",
        "scheduled_station_ae_title": uuid.uuid4().hex[:8].upper(),
        "modality": "CT",
        "starts_at": starts,
        "ends_at": starts + timedelta(minutes=20),
        "accession_number": "A-77",
        "requested_procedure_id": "RP-77",
        "study_instance_uid": new_uid(),
        "patient_name": NAME,
        "patient_id": "1001",
        "patient_birth_date": "19700228",
        "patient_sex": "M",
        "allergies": "йод",
    }
    return WorklistItem.model_validate(values | changes)


def ask(node: NodeProcess, item: WorklistItem, charset: str, encoding: str, *keys: str, name: str = "") -> str:
    """What findscu prints, decoded; asks for the item's station and day."""
    step = "(0040,0100)[0]."
    arguments = [
        f"0008,0005={charset}",
        f"PatientName={name}",
        "AccessionNumber",
        "StudyInstanceUID",
        "PatientID",
        "Allergies",
        "MedicalAlerts",
        f"{step}ScheduledStationAETitle={item.scheduled_station_ae_title}",
        f"{step}ScheduledProcedureStepStartDate=20261122",
        f"{step}ScheduledProcedureStepStartTime",
        f"{step}ScheduledProcedureStepDescription",
        f"{step}PreMedication",
        *keys,
    ]
    encoded = [part.encode(encoding) for argument in arguments for part in ("-k", argument)]
    done = node.dcmtk(need("findscu"), "-v", "-W", *encoded)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr
    return (done.stdout + done.stderr).decode(encoding, errors="replace")


@pytest.mark.parametrize(("charset", "encoding"), [("ISO_IR 192", "utf-8"), ("ISO_IR 144", "iso-8859-5")])
def test_a_scanner_finds_the_patient_in_its_own_character_set(
    node_process: NodeProcess, charset: str, encoding: str
) -> None:
    item = an_item()
    schedule(node_process, item)
    printed = ask(node_process, item, charset, encoding, name="щеголев-ящур*")
    answers = printed[printed.index("Find Response: 1") :]
    assert f"[{NAME}" in answers
    assert f"CS [{charset}" in answers
    assert "ScheduledProcedureStepStartDate" in answers
    assert "[20261122]" in answers
    assert "[013000]" in answers
    assert item.study_instance_uid in answers
    assert "[йод" in answers
    assert re.search(r"\(0010,2000\) LO \(no value available\)", answers), "a return key without value must be there"
    assert re.search(r"\(0040,0012\) LO \(no value available\)", answers)
    assert "№ 1" in answers
    assert "?" not in answers.split("ScheduledProcedureStepDescription")[0].rsplit("\n", 1)[-1]


def test_a_latin_device_gets_a_transliterated_name_and_never_a_question_mark(node_process: NodeProcess) -> None:
    item = an_item()
    schedule(node_process, item)
    printed = ask(node_process, item, "ISO_IR 100", "latin-1")
    name = re.findall(r"\(0010,0010\) PN \[(.*?)\]", printed)[-1]
    assert name.startswith("Shch")
    assert "?" not in name


def test_the_study_uid_is_the_same_each_time_and_a_finished_step_disappears(node_process: NodeProcess) -> None:
    item = an_item()
    schedule(node_process, item)
    uids = set()
    for _ in range(2):
        printed = ask(node_process, item, "ISO_IR 192", "utf-8")
        uids |= set(re.findall(r"\(0020,000d\) UI \[([0-9.]+)", printed))
    assert uids == {item.study_instance_uid}
    schedule(node_process, item.model_copy(update={"status": "COMPLETED"}))
    assert "Find Response: 1" not in ask(node_process, item, "ISO_IR 192", "utf-8")


def test_another_station_and_another_day_see_nothing(node_process: NodeProcess) -> None:
    item = an_item()
    schedule(node_process, item)
    other = item.model_copy(update={"scheduled_station_ae_title": "ELSEWHERE"})
    assert "Find Response: 1" not in ask(node_process, other, "ISO_IR 192", "utf-8")
    later = an_item(starts_at=datetime(2026, 11, 23, 9, tzinfo=UTC))
    schedule(node_process, later)
    assert "Find Response: 1" not in ask(node_process, later, "ISO_IR 192", "utf-8")


def test_a_removed_item_is_gone(node_process: NodeProcess) -> None:
    item = an_item()
    schedule(node_process, item)
    schedule(node_process, an_item(), removed=[item.scheduled_procedure_step_id])
    assert "Find Response: 1" not in ask(node_process, item, "ISO_IR 192", "utf-8")

"""The first half of the story: booked, acquired, held at the clinic, known and safe at the centre."""

from collections import Counter
from functools import partial
from pathlib import Path

from deploy.people import until
from deploy.simulator.acquisition import acquire
from deploy.simulator.populate import Visit, book_first_free, send_folder
from deploy.story.stage import PATIENT, Stage
from standards.person_names import display

SLICES = 24


def book_examination(stage: Stage) -> str:
    """The registrar of clinic A books a CT for the patient with the long name."""
    visit = Visit("CT_A", PATIENT, "1980-02-29", "M", "КТ головного мозга", 0, SLICES)
    stage.order = book_first_free(stage.person("registrar"), visit)
    return f"{display(PATIENT)}, {stage.order['accession_number']}"


def acquire_study(stage: Stage) -> str:
    """The scanner asks its worklist in its own character set, and sends what it makes (or the files of --data)."""
    scanner = stage.scanner("CT_A")
    scanner.echo()
    accession = stage.order["accession_number"]
    answers = until("the scanner's worklist has the order", lambda: scanner.worklist(AccessionNumber=accession))
    assert len(answers) == 1, f"{len(answers)} entries for one order"
    scheduled = answers[0]
    assert str(scheduled.PatientName) == PATIENT, f"the name arrived as {scheduled.PatientName}"
    assert scheduled.StudyInstanceUID == stage.order["study_instance_uid"], "another Study Instance UID"
    by_name = scanner.worklist(PatientName="щеголев*")
    assert any(a.AccessionNumber == accession for a in by_name), "not found by name without case and ё"
    extra = _acquire_folder(stage, stage.data) if stage.data else ""
    sent = scanner.send(acquire(scheduled, images=SLICES, station=scanner.ae_title))
    assert not sent.refused, f"refused: {sent.refused}"
    assert len(sent.stored) == SLICES, f"{len(sent.stored)} of {SLICES} stored"
    stage.sent, stage.study_instance_uid = set(sent.stored), str(scheduled.StudyInstanceUID)
    return f"name as written in {scheduled.SpecificCharacterSet}, {len(sent.stored)} images stored{extra}"


def _acquire_folder(stage: Stage, folder: Path) -> str:
    """Send the folder's files as they are; each that cannot be sent or is refused is named, and the rest goes on."""
    sent, usable = send_folder(stage.scanner("CT_A"), folder)
    assert sent.stored, f"nothing of {folder} was accepted"
    study_of = {str(instance.SOPInstanceUID): str(instance.StudyInstanceUID) for instance in usable}
    stage.folder_studies = dict(Counter(study_of[uid] for uid in set(sent.stored)))
    return f"; of {folder.name}: {len(sent.stored)} stored, {len(sent.refused)} refused by name"


def look_at_node(stage: Stage) -> str:
    """The clinic's node answers for every instance, over DICOMweb, at once and to nobody without a token."""
    uid = stage.study_instance_uid
    with stage.node_client("clinic-a", uid) as client:
        found = client.get(f"/studies/{uid}/instances").raise_for_status().json()
        held = {item["00080018"]["Value"][0] for item in found}
        assert held == stage.sent, f"the node lists {len(held & stage.sent)} of {len(stage.sent)}"
        refused = client.get(f"/studies/{uid}/instances", headers={"Authorization": ""})
        assert refused.status_code == 401, f"without a token it answered {refused.status_code}"
        foreign = client.get("/studies/1.2.3.4/metadata")
        assert foreign.status_code in (403, 404), f"another study answered {foreign.status_code}"
    return f"{len(held)} instances by QIDO-RS; a stranger and a token of another study are refused"


def watch_it_arrive(stage: Stage) -> str:
    """The centre counts until all are safe at the archive; the archive's copies have the same bytes."""
    uid, count = stage.study_instance_uid, len(stage.sent)

    def safe() -> bool:
        rows = stage.studies("radiologist", uid)
        return bool(rows) and rows[0]["instances_known"] == rows[0]["instances_safe"] == count

    until(f"{count} of {count} safe at the archive", safe)
    stage.study = stage.studies("radiologist", uid)[0]
    held = {}
    for name in ("clinic-a", "archive"):
        with stage.node_client(name, uid) as client:
            answer = client.get(f"/studies/{uid}", headers={"Accept": "multipart/related; type=application/dicom"})
            held[name] = len(answer.raise_for_status().content)
    assert held["clinic-a"] == held["archive"], f"other bytes at the archive: {held}"

    def holders() -> list[str]:
        detail = stage.person("radiologist").json(f"/api/v1/studies/{stage.study['id']}")
        return sorted(holder["node"] for holder in detail["holders"] if holder["held"] == count)

    until("clinic and archive are known to hold all", lambda: holders() == ["archive", "clinic-a"])
    for folder_study, taken in stage.folder_studies.items():
        until(f"{taken} of {folder_study} safe at the archive", partial(_safe, stage, folder_study, taken))
    extra = f"; {sum(stage.folder_studies.values())} of --data too" if stage.folder_studies else ""
    return f"{count} of {count} safe, held by clinic and archive{extra}"


def _safe(stage: Stage, study_instance_uid: str, taken: int) -> bool:
    """Whether the archive has all that the clinic took of a study (one UID may stand for several patients)."""
    rows = stage.studies("radiologist", study_instance_uid)
    known, safe = (sum(row[name] for row in rows) for name in ("instances_known", "instances_safe"))
    return bool(known == safe >= taken)

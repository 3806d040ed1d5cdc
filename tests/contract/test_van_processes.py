"""A van that is alone for days: it registers, scans and drafts, while the centre changes the same things."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4
from zoneinfo import ZoneInfo

import httpx
import pytest
from pydicom import dcmread

from deploy.processes import free_port, wait_until
from standards.uids import new_uid
from tests.contract.region import NodeUnderTest, Region, make_instance, region

pytestmark = pytest.mark.timeout(900)

PASSWORD = "correct-horse-7"
PEOPLE = """
from tests.factories import centre
from ris_central.accounts.models import Role
site = centre.site("a")
centre.user(Role.REGISTRAR, site, username="anna")
centre.user(Role.RADIOLOGIST, site, username="dr-somova")
"""
BOOKINGS = """
import json
from datetime import date
from tests.factories import centre
from ris_central.federation.models import Node
from ris_central.orders import actions
site, van = centre.site("a"), Node.objects.get(name="van")
device = centre.device(site, ae_title="VANCT", at=van)
actions.save_device(device, actor="test")
made = {}
for name, hour in (("changed", 8), ("scanned", 9), ("early", 10)):
    patient = centre.patient(site, name=f"Выдумкин^{name}", number=name.upper())
    order = centre.booking(site, who=patient, on=device, hour=hour)
    made[name] = {"accession": order.accession_number, "uid": order.study_instance_uid}
print(json.dumps(made))
"""
MEANWHILE = """
from datetime import date, timedelta
from tests.factories import centre
from ris_central.accounts.models import User
from ris_central.catalogue.models import Study
from ris_central.orders import actions
from ris_central.orders.models import Device, ServiceRequest
from ris_central.reporting.actions import save_draft
site, device = centre.site("a"), Device.objects.get(ae_title="VANCT")
order = ServiceRequest.objects.get(accession_number="{changed}")
step = order.steps.get()
actions.reschedule(step, device=device, starts_at=centre.tomorrow(15), actor="test")
ServiceRequest.objects.filter(pk=order.pk).update(reason="по звонку")
actions.cancel(ServiceRequest.objects.get(accession_number="{scanned}"), actor="test")
known = centre.patient(site, name="Ёжиков^Пётр", born=date(1970, 2, 28), sex="M", number="OLD-1")
centre.booking(site, who=known, on=device, hour=18)
save_draft(Study.objects.get(study_instance_uid="{early}"), User.objects.get(username="dr-somova"),
           version=0, findings="Начато в центре", conclusion="")
"""


def need(tool: str) -> str:
    """Skip, by name, when the peer ``tool`` is not installed."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    return tool


class Browser:
    """A person of the site at the van's own pages."""

    def __init__(self, van: NodeUnderTest, username: str) -> None:
        port = van.environment["REGIS_NODE_HTTP_PORT"]
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=120)
        form = {"username": username, "password": PASSWORD}
        answer = self.post("/login/", form)
        assert answer.status_code == 302, answer.text

    def get(self, path: str) -> str:
        answer = self._client.get(path)
        assert answer.status_code == 200, (path, answer.status_code)
        return answer.text

    def post(self, path: str, form: dict[str, str]) -> httpx.Response:
        if not any("csrf" in name for name in self._client.cookies):
            self._client.get("/login/")
        token = next(value for name, value in self._client.cookies.items() if "csrf" in name)
        return self._client.post(path, data=form, headers={"X-CSRFToken": token})


class Van:
    """The region with a van, and what the van's devices and people do."""

    def __init__(self, made: Region, folder: Path) -> None:
        self.region, self.folder = made, folder
        self.archive = made.add_node("archive", "archive")
        self.dicom_port = free_port()
        self.node = made.add_node("van", "clinic", dicom_port=str(self.dicom_port), refuse_below="1MB")
        made.shell(PEOPLE)
        codes = made.prepare(("centre", "archive", "archive"), ("a", "clinic", "van"))
        made.start_centre()
        made.join(self.archive, codes["archive"])
        made.join(self.node, codes["van"])
        made.start_pacs(self.archive)
        made.start_pacs(self.node)
        self.archive.gateway.start()
        self.node.gateway.start()
        self.booked = json.loads(made.shell(BOOKINGS).splitlines()[-1])

    def wait(self, done: object, what: str, seconds: float = 240) -> None:
        try:
            wait_until(done, seconds, what)  # type: ignore[arg-type]
        except TimeoutError:
            pytest.fail(f"{what}\n{self.region.last_words()}")

    def worklist(self) -> str:
        """What the scanner is told of every day, decoded."""
        step = "(0040,0100)[0]."
        keys = [f"{step}ScheduledStationAETitle=VANCT", f"{step}ScheduledProcedureStepStartDate", "PatientName"]
        keys += ["AccessionNumber", "StudyInstanceUID", "PatientID", "0008,0005=ISO_IR 144"]
        arguments = [part for key in keys for part in ("-k", key)]
        done = self._dcmtk("findscu", "-v", "-W", *arguments)
        return (done.stdout + done.stderr).decode("iso-8859-5", errors="replace")

    def scan(self, study: str, patient_id: str, count: int = 2) -> list[str]:
        """Images of a study, sent by the scanner."""
        folder = self.folder / str(uuid4())
        folder.mkdir()
        series, uids = new_uid(), []
        for number in range(1, count + 1):
            image = make_instance(study=study, series=series, number=number)
            image.PatientID, image.PatientName = patient_id, "Ёжиков^Пётр"
            path = folder / f"{number}.dcm"
            image.save_as(path, enforce_file_format=True)
            uids.append(str(dcmread(path).SOPInstanceUID))
        done = self._dcmtk("storescu", *map(str, sorted(folder.iterdir())))
        assert done.returncode == 0, done.stderr
        return uids

    def _dcmtk(self, tool: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [need(tool), "-aet", "VANCT", "-aec", "VAN", "127.0.0.1", str(self.dicom_port), *arguments],
            capture_output=True,
            timeout=120,
            check=False,
            env={**os.environ, "TCP_NODELAY": "1"},
        )

    def entry(self, accession: str) -> tuple[int, dict[str, str]]:
        """Key and item of a step on the van's worklist."""
        for key, item in self.node.query("SELECT id, item FROM clinic_worklistentry"):
            values = json.loads(str(item))
            if values["accession_number"] == accession:
                return int(str(key)), values
        known = self.node.query("SELECT scheduled_procedure_step_id, item FROM clinic_worklistentry")
        local = self.node.query("SELECT * FROM offline_localstep")
        raise AssertionError(f"{accession} is not among {known}, {local}")

    def told_all(self) -> bool:
        """Whether the centre took every event of the van, and the van everything it was told."""
        heard_all = self.region.heard_all(self.node)
        open_steps = self.node.query("SELECT count(*) FROM offline_localstep WHERE settled_revision < revision")
        return heard_all and open_steps[0][0] == 0


@pytest.fixture(scope="module")
def van(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Van]:
    need("findscu")
    directory = tmp_path_factory.mktemp("van")
    with region(directory) as made:
        yield Van(made, directory)


def form_of(page: str) -> dict[str, str]:
    """The fields of the registration form as a browser would send them back."""
    found = {}
    for tag in re.findall(r"<input[^>]*>", page):
        name, value = re.search(r'name="(\w+)"', tag), re.search(r'value="([^"]*)"', tag)
        kind = re.search(r'type="(\w+)"', tag)
        if name and (kind is None or kind[1] not in ("checkbox", "radio") or " checked" in tag):
            found[name[1]] = value[1] if value else ""
    for name, body in re.findall(r'<select[^>]*name="(\w+)"[^>]*>(.*?)</select>', page, re.DOTALL):
        chosen = re.search(r'<option value="([^"]*)"[^>]* selected', body)
        found[name] = chosen[1] if chosen else ""
    return found


@dataclass(frozen=True)
class Return:
    """The van after days alone: the step it registered itself, the images it took, a study of before."""

    van: Van
    item: dict[str, str]
    images: list[str]
    early: str


@pytest.fixture(scope="module")
def home(van: Van) -> Return:
    """The van left with the schedule, worked while centre and people changed the same things, and reconnected."""
    made = van.region
    van.wait(
        lambda: (
            len(van.node.query("SELECT id FROM clinic_worklistentry")) == 3
            and van.node.query("SELECT id FROM offline_accessionblock")
            and van.node.query("SELECT id FROM clinic_rostermember")
        ),
        "the van has schedule, numbers and people",
    )
    van.scan(van.booked["early"]["uid"], "EARLY")
    early = van.booked["early"]["uid"]
    van.wait(
        lambda: made.ask("SELECT id FROM catalogue_study WHERE study_instance_uid = %s", early),
        "the centre knows the study of before",
    )
    van.wait(van.told_all, "the centre has everything of before")

    made.centre.kill()
    meanwhile = {name: van.booked[name]["accession"] for name in ("changed", "scanned")} | {"early": early}
    made.shell(MEANWHILE.format(**meanwhile))

    # The van: a patient comes in from the street …
    anna = Browser(van.node, "anna")
    form = form_of(anna.get("/registration/new/"))
    there = datetime.fromisoformat(van.entry(van.booked["changed"]["accession"])[1]["starts_at"])
    moment = (there + timedelta(hours=10)).astimezone(ZoneInfo("Europe/Moscow"))  # the centre books the same meanwhile
    form |= {"name": "Ёжиков Пётр", "birth_date": "1970-02-28", "sex": "M", "ae_title": "VANCT"}
    form |= {"description": "КТ головы", "priority": "STAT", "minutes": "30"}
    form |= {"day": f"{moment:%Y-%m-%d}", "time": f"{moment:%H:%M}"}
    assert anna.post("/registration/new/", form).status_code == 302
    assert anna.post("/registration/new/", form).status_code == 302, "sent twice"
    [(item,)] = van.node.query("SELECT item FROM offline_localstep WHERE made_here = 1")
    item = json.loads(str(item))
    assert item["accession_number"].startswith("A0000")
    # … whom the scanner finds in its own character set, with all that was scheduled before the centre went away.
    printed = van.worklist()
    assert "Ёжиков" in printed
    assert item["study_instance_uid"] in printed
    assert van.booked["scanned"]["uid"] in printed
    images = van.scan(item["study_instance_uid"], item["patient_id"], 3)
    scanned = van.scan(van.booked["scanned"]["uid"], "SCANNED")
    # … a booking is changed here as well …
    key, booked = van.entry(van.booked["changed"]["accession"])
    page = anna.get(f"/registration/{key}/")
    changes = {"priority": "HIGH", "description": "КТ шеи", "time": "23:10", "reason": "", "sex": booked["patient_sex"]}
    assert anna.post(f"/registration/{key}/", form_of(page) | changes).status_code == 302
    # … and a doctor writes about the new study and about the one of before.
    doctor = Browser(van.node, "dr-somova")
    for study, text in ((item["study_instance_uid"], "Написано в машине"), (early, "Начато в машине")):
        [(row,)] = van.node.query("SELECT id FROM study_index_study WHERE study_instance_uid = ?", study)
        answer = doctor.post(f"/drafts/{row}/save/", {"version": "0", "findings": text, "done": "1"})
        assert answer.status_code == 200, answer.text
    assert van.node.query(
        "SELECT priority FROM gateway_studypriority WHERE study_instance_uid = ?", item["study_instance_uid"]
    ) == [(0,)]
    page = anna.get("/waiting/")
    assert "499" in page
    van.node.pacs.kill()
    made.start_pacs(van.node)

    made.start_centre()
    van.wait(van.told_all, "the centre has everything the van did")
    return Return(van, item, images + scanned, early)


def test_a_van_alone_for_days_loses_nothing_and_shows_every_difference(home: Return) -> None:
    van, made, item = home.van, home.van.region, home.item
    van.wait(lambda: set(home.images) <= set(van.archive.held()), "the archive has every image")

    assert not made.ask("SELECT type, error FROM federation_inboxevent WHERE error <> ''")
    # There once: the order, its step, its patient, under the van's own numbers.
    orders = made.ask(
        "SELECT o.accession_number, s.scheduled_procedure_step_id, s.status, o.priority, i.value"
        " FROM orders_servicerequest o JOIN orders_scheduledprocedurestep s ON s.service_request_id = o.id"
        " JOIN patients_patientidentifier i ON i.patient_id = o.patient_id WHERE o.study_instance_uid = %s",
        item["study_instance_uid"],
    )
    step = item["scheduled_procedure_step_id"]
    assert orders == [(item["accession_number"], step, "IN PROGRESS", "stat", item["patient_id"])]
    linked = made.ask(
        "SELECT count(*), max(o.accession_number) FROM catalogue_study c"
        " JOIN orders_servicerequest o ON o.id = c.service_request_id WHERE c.study_instance_uid = %s",
        item["study_instance_uid"],
    )
    assert linked == [(1, item["accession_number"])]
    # Every difference is decided by the table and shown.
    rules = {
        (rule, field): (kept, state)
        for rule, field, kept, state in made.ask("SELECT rule, field, kept, state FROM orders_returndifference")
    }
    assert rules == {
        ("patient-alike", ""): ("node", "open"),
        ("slot-taken", ""): ("node", "open"),
        ("cancelled-but-examined", ""): ("node", "by-rule"),
        ("field", "slot"): ("node", "by-rule"),
        ("draft-at-both-ends", ""): ("both", "open"),
    }
    changed = made.ask(
        "SELECT o.description, o.priority, o.reason, to_char(lower(s.slot) AT TIME ZONE 'Europe/Moscow', 'HH24:MI')"
        " FROM orders_servicerequest o JOIN orders_scheduledprocedurestep s ON s.service_request_id = o.id"
        " WHERE o.accession_number = %s",
        van.booked["changed"]["accession"],
    )
    assert changed == [("КТ шеи", "urgent", "по звонку", "23:10")]
    [(status,)] = made.ask(
        "SELECT status FROM orders_servicerequest WHERE accession_number = %s", van.booked["scanned"]["accession"]
    )
    assert status == "active"
    # Both texts are there, and the one of the van alone is a report in draft by its author.
    texts = made.ask(
        "SELECT r.findings, r.status, u.username FROM reporting_report r JOIN accounts_user u ON u.id = r.author_id"
        " ORDER BY r.findings"
    )
    assert texts == [("Написано в машине", "partial", "dr-somova"), ("Начато в центре", "partial", "dr-somova")]
    drafts = made.ask("SELECT findings, state FROM reporting_nodedraft ORDER BY findings")
    assert drafts == [("Написано в машине", "taken"), ("Начато в машине", "beside")]
    # The van's worklist says what the centre has now.
    van.wait(
        lambda: van.entry(van.booked["changed"]["accession"])[1]["reason_for_the_requested_procedure"] == "по звонку",
        "the van has the merged booking",
    )


def test_reconnecting_again_changes_nothing(home: Return) -> None:
    van = home.van
    before = van.region.ask("SELECT count(*), max(id) FROM orders_returndifference")
    van.region.tell("UPDATE federation_node SET cursor = 0 WHERE name = 'van'")
    van.region.tell(
        "DELETE FROM federation_inboxevent WHERE node_id = (SELECT id FROM federation_node WHERE name = 'van')"
    )
    van.node.gateway.kill()
    van.node.gateway.start()
    van.wait(van.told_all, "a centre restored from before took everything again")
    assert van.region.ask("SELECT count(*), max(id) FROM orders_returndifference") == before
    assert van.region.ask("SELECT count(*) FROM orders_servicerequest WHERE description = 'КТ головы'") == [(1,)]
    assert not van.region.ask("SELECT type, error FROM federation_inboxevent WHERE error <> ''")

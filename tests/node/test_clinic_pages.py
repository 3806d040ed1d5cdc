"""The node's own pages, logins, roster and audit trail."""

import copy
import itertools
from datetime import timedelta
from io import BytesIO
from typing import Any

import pytest
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from gateway.envelope import Roster, RosterEntry
from gateway.models import Delivery
from gateway.registry import handlers_of, jobs
from pacs_node.clinic import audit, logins, queries
from pacs_node.clinic.models import ApplicationEntity, AuditEntry, LoginGuard, RefusedAssociation
from pacs_node.clinic.roster import apply_roster
from pacs_node.dimse.admission import UNKNOWN_CALLED, UNKNOWN_CALLING
from pacs_node.storage.models import Finding, StudyRetention
from pacs_node.study_index.actions import ingest
from pacs_node.study_index.models import Instance
from standards.uids import new_uid
from tests.factories.dicom import ct_instance, part10
from tests.node.dicomweb_node import ct_slice, join, take_in

pytestmark = pytest.mark.django_db

PASSWORD = "radiant-day"


@pytest.fixture(autouse=True)
def _quick_passwords(settings: Any) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def anna() -> User:
    return User.objects.create_user("anna", password=PASSWORD)


@pytest.fixture
def engineer() -> User:
    return User.objects.create_user("erik", password=PASSWORD, is_staff=True)


def log_in(client: Client, username: str, password: str = PASSWORD, **more: str) -> Any:
    return client.post("/login/", {"username": username, "password": password, **more})


def test_a_person_logs_in_and_it_is_written_down(client: Client, anna: User) -> None:
    response = log_in(client, "anna", next="/state/")
    assert (response.status_code, response["Location"]) == (302, "/state/")
    assert client.get("/state/").status_code == 200
    assert AuditEntry.objects.filter(action="login", actor="anna", address="127.0.0.1").count() == 1


@pytest.mark.parametrize("target", ["https://elsewhere.example/", "//elsewhere.example", "javascript:alert(1)"])
def test_a_login_never_leads_to_another_site(client: Client, anna: User, target: str) -> None:
    assert log_in(client, "anna", next=target)["Location"] == "/"


@pytest.mark.parametrize("username", ["anna", "nobody"])
def test_ten_wrong_guesses_lock_the_name_whether_or_not_it_exists(client: Client, anna: User, username: str) -> None:
    for _ in range(9):
        assert log_in(client, username, "wrong").status_code == 401
    response = log_in(client, username, "wrong")
    assert "locked" in response.content.decode()
    response = log_in(client, username.upper(), PASSWORD)
    assert response.status_code == 429
    assert "15" in response.content.decode()
    assert client.get("/").status_code == 302
    assert AuditEntry.objects.filter(action="login.locked", actor=username).count() == 1
    assert AuditEntry.objects.filter(action="login.failed", actor=username).count() == 10


def test_a_lock_ends_by_itself_and_a_right_password_wipes_the_slate(client: Client, anna: User) -> None:
    for _ in range(logins.MOST_WRONG_GUESSES):
        logins.count_wrong_guess("anna")
    LoginGuard.objects.update(locked_until=timezone.now() - timedelta(seconds=1))
    assert logins.locked_minutes("anna") == 0
    assert log_in(client, "anna", "wrong").status_code == 401
    assert log_in(client, "anna").status_code == 302
    assert not LoginGuard.objects.exists()


def entry(username: str, role: str = "radiologist", password: str = PASSWORD) -> RosterEntry:
    return RosterEntry(username=username, full_name="Анна Сомова", role=role, password_hash=make_password(password))


def test_people_of_the_roster_log_in_until_it_expires(client: Client) -> None:
    apply_roster([entry("somova")], timezone.now() + timedelta(days=1))
    assert log_in(client, "somova").status_code == 302
    assert client.get("/").status_code == 200
    apply_roster([entry("somova")], timezone.now() - timedelta(seconds=1))
    assert client.get("/").status_code == 302
    assert log_in(client, "somova").status_code == 401


def test_who_left_the_roster_is_out_at_once_and_may_come_back(client: Client) -> None:
    soon = timezone.now() + timedelta(days=1)
    apply_roster([entry("somova"), entry("petrov")], soon)
    log_in(client, "somova")
    apply_roster([entry("petrov")], soon)
    assert client.get("/").status_code == 302
    assert log_in(client, "somova").status_code == 401
    apply_roster([entry("somova", password="another-day")], soon)
    assert log_in(client, "somova", "another-day").status_code == 302


def test_the_roster_never_takes_over_a_person_made_at_the_node(client: Client, anna: User) -> None:
    apply_roster([entry("anna", "engineer", "of-the-centre")], timezone.now() + timedelta(days=1))
    assert log_in(client, "anna", "of-the-centre").status_code == 401
    assert log_in(client, "anna").status_code == 302
    assert client.get("/audit/").status_code == 403
    apply_roster([], timezone.now())
    assert client.get("/").status_code == 200


def test_the_roster_comes_as_a_command_of_the_centre(client: Client) -> None:
    for handler in handlers_of("roster"):
        handler(Roster(entries=[entry("somova", "engineer")], expires_at=timezone.now() + timedelta(days=1)))
    log_in(client, "somova")
    assert client.get("/audit/").status_code == 200


def test_only_an_engineer_admits_a_refused_peer(client: Client, anna: User, engineer: User) -> None:
    row = RefusedAssociation.objects.create(
        calling_ae_title="NEWCT", called_ae_title="REGIS", address="10.0.0.7", reason=UNKNOWN_CALLING
    )
    client.force_login(anna)
    assert "Admit" not in client.get("/refused/").content.decode()
    assert client.post(f"/refused/{row.pk}/admit/").status_code == 403
    assert AuditEntry.objects.filter(action="page.refused", actor="anna").exists()
    assert not ApplicationEntity.objects.exists()
    client.force_login(engineer)
    page = client.get("/refused/").content.decode()
    assert "does not know the calling AE title" in page
    assert f"/refused/{row.pk}/admit/" in page
    assert client.post(f"/refused/{row.pk}/admit/", follow=True).status_code == 200
    assert ApplicationEntity.objects.get().ae_title == "NEWCT"
    assert AuditEntry.objects.filter(action="ae.admitted", actor="erik", entity="NEWCT").exists()


def test_a_peer_that_calls_a_wrong_title_is_explained_not_admitted(client: Client, engineer: User) -> None:
    row = RefusedAssociation.objects.create(
        calling_ae_title="CT1", called_ae_title="OLDPACS", address="10.0.0.7", reason=UNKNOWN_CALLED
    )
    client.force_login(engineer)
    page = client.get("/refused/").content.decode()
    assert "change it at the device" in page
    assert f"/refused/{row.pk}/admit/" not in page


@pytest.mark.parametrize("text", ["щего", "ПЁТР", "Shchegolev", "A-00", "03.02.1970", "1970-02-03", "щег 19700203"])
def test_studies_are_found_by_parts_of_a_name_an_id_and_a_birth_date(client: Client, anna: User, text: str) -> None:
    take_in(ct_slice(new_uid(), new_uid()))
    take_in(ct_slice(new_uid(), new_uid(), name="Иванова^Мария", patient_id="B-7", PatientBirthDate="19800101"))
    client.force_login(anna)
    page = client.get("/", {"q": text}, headers={"HX-Request": "true"}).content.decode()
    assert "Щёголев Пётр Ёжикович" in page
    assert "Иванова" not in page
    assert "<html" not in page


def test_a_hostile_name_is_shown_as_text(client: Client, anna: User) -> None:
    take_in(ct_slice(new_uid(), new_uid(), name="<script>alert(1)</script>"))
    client.force_login(anna)
    page = client.get("/").content.decode()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;" in page


def test_the_state_page_tells_how_far_the_mirror_is(client: Client, anna: User) -> None:
    join()
    study = new_uid()
    for number in range(3):
        instance = take_in(ct_slice(study, new_uid(), number=number)).instance
        Delivery.objects.update_or_create(
            instance_key=instance.pk,
            destination="archive",
            defaults={
                "series_key": instance.series_id,
                "study_instance_uid": study,
                "sop_instance_uid": instance.sop_instance_uid,
                "dataset_sha256": instance.dataset_sha256,
                "status": "receipted" if number else "waiting",
                "next_attempt_at": timezone.now(),
            },
        )
    client.force_login(anna)
    page = client.get("/state/").content.decode()
    assert "2 of 3" in page
    assert "safe at archive" in page
    assert "it has never answered" in page
    assert "2 of 3 safe" in client.get("/").content.decode()
    metrics = client.get("/metrics").content.decode()
    assert 'regis_node_deliveries{destination="archive",status="receipted"} 2' in metrics
    assert f"regis_node_instances {Instance.objects.count()}" in metrics


def test_the_storage_page_shows_what_is_damaged_and_where_studies_are(client: Client, anna: User) -> None:
    log_in(client, "anna")
    assert "Not read yet" in client.get("/storage/").content.decode()
    Finding.objects.create(kind=Finding.Kind.DAMAGED, path="studies/<b>1</b>.dcm", detail="its digest differs")
    Finding.objects.create(kind="orphan", path="studies/2.dcm", resolved_at=timezone.now(), resolution="brought in")
    StudyRetention.objects.create(study_instance_uid="1.2.3", pinned=True, reason="teaching")
    page = client.get("/storage/").content.decode()
    for text in ("1 finding", "damaged", "&lt;b&gt;1", "its digest differs", "brought in", "1.2.3", "teaching"):
        assert text in page
    assert "повреждён" in client.get("/storage/", headers={"accept-language": "ru"}).content.decode()


def test_the_storage_page_shows_what_was_kept_aside(client: Client, anna: User) -> None:
    log_in(client, "anna")
    assert "Kept aside" not in client.get("/storage/").content.decode()
    first = ct_instance()
    other = copy.deepcopy(first)
    other.PixelData = other.PixelData[::-1]
    assert ingest(BytesIO(part10(first)), source_ae_title="CT1").outcome == "stored"
    assert ingest(BytesIO(part10(other)), source_ae_title="CT2").outcome == "conflict"
    page = client.get("/storage/").content.decode()
    assert "Kept aside" in page
    assert str(first.SOPInstanceUID) in page
    assert "CT2" in page
    assert "Отложено" in client.get("/storage/", headers={"accept-language": "ru"}).content.decode()


def test_pages_speak_russian(client: Client, anna: User) -> None:
    client.force_login(anna)
    for path, words in (("/", "Исследования"), ("/state/", "Состояние узла"), ("/refused/", "Отклонённые")):
        assert words in client.get(path, headers={"Accept-Language": "ru"}).content.decode()


def test_health_names_the_part_that_does_not_work(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "_dicom_health", lambda: "ok")
    assert client.get("/healthz").status_code == 200
    monkeypatch.setattr(queries, "_dicom_health", lambda: "does not listen: Connection refused")
    response = client.get("/healthz")
    assert response.status_code == 503
    assert response.json()["parts"]["dicom"].startswith("does not listen")


def test_the_trail_is_chained_and_a_changed_row_is_found(client: Client, engineer: User) -> None:
    for number in range(5):
        audit.record("study.viewed", actor="anna", entity=f"1.2.{number}", detail={"кто": "Анна"})
    assert audit.seal() == 5
    assert audit.seal() == 0
    audit.record("logout", actor="anna")
    audit.seal_all()
    assert audit.first_break() is None
    entries = list(AuditEntry.objects.order_by("sequence"))
    assert [row.sequence for row in entries] == [1, 2, 3, 4, 5, 6]
    assert all(later.previous_hash == earlier.hash for earlier, later in itertools.pairwise(entries))
    AuditEntry.objects.filter(sequence=3).update(actor="someone-else")
    assert audit.first_break() == 3
    client.force_login(engineer)
    assert "broken at entry 3" in client.get("/audit/?check=1").content.decode()


def test_a_row_taken_out_is_found() -> None:
    for number in range(3):
        audit.record("study.viewed", actor="anna", entity=f"1.2.{number}")
    audit.seal()
    AuditEntry.objects.filter(sequence=2).delete()
    assert audit.first_break() == 2


def test_the_trail_is_sealed_by_the_gateway_process_every_few_seconds() -> None:
    assert any(job.run is audit.seal_all and job.seconds <= 5 for job in jobs())


@pytest.mark.parametrize(("options", "status"), [([], 403), (["--engineer"], 200)])
def test_a_login_made_on_the_command_line_opens_the_pages_it_should(
    client: Client, capsys: pytest.CaptureFixture[str], options: list[str], status: int
) -> None:
    call_command("adduser", "olga", *options)
    password = capsys.readouterr().out.strip()
    assert len(password) >= 16
    assert password not in User.objects.get(username="olga").password
    assert log_in(client, "olga", password).status_code == 302
    assert client.get("/audit/").status_code == status
    assert AuditEntry.objects.get(action="person.added").detail == {"engineer": bool(options)}


@pytest.mark.parametrize(("name", "reason"), [("Anna", "already"), ("an na", "valid username")])
def test_a_taken_or_impossible_name_makes_no_login(anna: User, name: str, reason: str) -> None:
    with pytest.raises(CommandError, match=reason):
        call_command("adduser", name)
    assert User.objects.get() == anna

"""Patients are found by what people remember, and one person stays one patient."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from threading import Barrier

import pytest
from django.db import connection
from django.test import Client
from django.utils import timezone

from gateway.envelope import PatientIdentity
from ris_central.accounts.models import Role, User
from ris_central.audit.models import AuditEvent
from ris_central.patients import actions, queries
from ris_central.patients.models import CareLink, Patient, PatientIdentifier
from standards.errors import PermanentError
from tests.factories import centre

pytestmark = pytest.mark.django_db
Browser = Callable[[User | None], Client]


@pytest.mark.parametrize(
    "text",
    [
        "щеголев",
        "ЩЁГОЛЕВ",
        "пётр щёг",
        "ежик петр",
        "shchegolev",
        "SCHEGOLEV petr",
        "Ящурж 31.12.1980",
        "1980-12-31",
        "P-77",
    ],
)
def test_a_patient_is_found_by_what_people_remember(text: str) -> None:
    found = centre.patient(centre.site(), number="P-77")
    centre.patient(centre.site(), name="Иванова^Анна", born=date(1970, 1, 1), sex="F")
    assert list(queries.search(Patient.objects.all(), text)) == [found]


@pytest.mark.parametrize("text", ["щеголева", "петр иванов", "1980-12-30", "P-78", "31.02.1980 щеголев"])
def test_a_patient_is_not_found_by_what_is_not_theirs(text: str) -> None:
    centre.patient(centre.site(), number="P-77")
    assert not queries.search(Patient.objects.all(), text).exists()


def test_names_are_sorted_as_the_russian_alphabet_sorts_them() -> None:
    for name in ("Яшин^А", "Ёлкин^А", "Жуков^А", "Еремин^А", "Адамов^А"):
        centre.patient(centre.site(), name=name)
    found = [one.name.partition("^")[0] for one in queries.search(Patient.objects.all(), "")]
    assert found == ["Адамов", "Ёлкин", "Еремин", "Жуков", "Яшин"]


def test_two_devices_at_once_make_one_patient(transactional_db: None) -> None:
    site = centre.site()
    identity = PatientIdentity(patient_id="77", patient_name=centre.NAME, patient_birth_date="19801231")
    together = Barrier(4)

    def resolve() -> int:
        try:
            together.wait()
            return actions.resolve(identity, "CLINIC-A", site).pk
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        keys = {job.result() for job in [pool.submit(resolve) for _ in range(4)]}
    assert len(keys) == 1
    assert Patient.objects.count() == PatientIdentifier.objects.count() == 1


def test_the_same_number_of_another_issuer_is_another_patient() -> None:
    site = centre.site()
    identity = PatientIdentity(patient_id="77", patient_name=centre.NAME)
    assert actions.resolve(identity, "A", site) != actions.resolve(identity, "B", site)


def test_a_known_number_keeps_its_name_whatever_a_device_writes() -> None:
    site = centre.site()
    first = actions.resolve(PatientIdentity(patient_id="77", patient_name=centre.NAME), "A", site)
    again = actions.resolve(PatientIdentity(patient_id="77", patient_name="SHCHEGOLEV^PETR"), "A", site)
    assert again == first
    assert again.name == centre.NAME


def test_images_without_a_number_stay_with_one_patient_of_the_site() -> None:
    nameless = PatientIdentity(patient_id="", patient_name=centre.NAME, patient_birth_date="19801231")
    first = actions.resolve(nameless, "A", centre.site())
    assert actions.resolve(nameless, "A", centre.site()) == first
    assert actions.resolve(nameless, "B", centre.site("b")) != first
    assert not first.identifiers.exists()


def test_an_impossible_birth_date_is_left_empty() -> None:
    identity = PatientIdentity(patient_id="77", patient_name="A^B", patient_birth_date="19801341")
    assert actions.resolve(identity, "A", centre.site()).birth_date is None


def test_a_number_that_is_given_already_is_refused() -> None:
    centre.patient(centre.site(), number="77")
    with pytest.raises(PermanentError, match="identifier-taken"):
        centre.patient(centre.site(), name="Иванова^Анна", number="77")


def test_a_made_number_avoids_one_that_the_site_gave_itself() -> None:
    site = centre.site()
    first = centre.patient(site, number="X")
    taken = f"A{first.pk + 1:07d}"
    centre.patient(centre.site("b"), name="Другой^Некто", number="Y").identifiers.create(issuer="CLINIC-A", value=taken)
    other = Patient.objects.get(pk=first.pk + 1)
    third = actions.identifier_at(centre.patient(centre.site("c"), name="Третий^Некто"), site)
    assert PatientIdentifier.objects.get(value=taken).patient == other
    assert third.patient != other


def test_people_of_another_site_do_not_see_the_patient(browser_of: Browser) -> None:
    patient = centre.patient(centre.site())
    mine, other = centre.user(Role.REGISTRAR, centre.site()), centre.user(Role.REGISTRAR, centre.site("b"))
    assert patient in queries.visible_to(mine)
    assert patient not in queries.visible_to(other)
    assert browser_of(other).get(f"/patients/{patient.pk}/").status_code == 404
    assert "Щёголев" not in browser_of(other).get("/patients/?q=щеголев").content.decode()


def test_a_registrar_finds_a_patient_of_another_site_by_name_and_full_birth_date_only() -> None:
    patient = centre.patient(centre.site())
    other = centre.user(Role.REGISTRAR, centre.site("b"))
    assert list(queries.find_in_region(other, "щеголев 31.12.1980")) == [patient]
    assert not queries.find_in_region(other, "щеголев").exists()
    assert not queries.find_in_region(other, "31.12.1980").exists()
    assert not queries.find_in_region(centre.user(Role.RADIOLOGIST), "щеголев 31.12.1980").exists()


def test_looking_at_a_patient_leaves_one_row_a_sitting(browser_of: Browser) -> None:
    patient, registrar = centre.patient(centre.site()), centre.user(Role.REGISTRAR, centre.site())
    for _ in range(3):
        assert browser_of(registrar).get(f"/patients/{patient.pk}/").status_code == 200
    row = AuditEvent.objects.get(action="patient.viewed")
    assert (row.actor, row.patient_key, row.entity_id) == (registrar, patient.pk, str(patient.pk))
    assert "Щёголев" not in str(row.detail)


def test_a_namesake_with_the_same_birth_date_is_shown_before_a_second_record_is_made(browser_of: Browser) -> None:
    centre.patient(centre.site("b"))
    browser = browser_of(centre.user(Role.REGISTRAR, centre.site()))
    form = {"name": "Щеголев-Ящуржинский Петр Ежикович", "birth_date": "1980-12-31", "sex": "M"}
    assert "The region knows such a patient" in browser.post("/patients/new/", form).content.decode()
    assert Patient.objects.count() == 1
    assert browser.post("/patients/new/", {**form, "sure": "1"}).status_code == 302
    assert Patient.objects.count() == 2


def test_a_patient_found_in_the_region_can_be_booked_from_where_they_were_found(browser_of: Browser) -> None:
    patient, site = centre.patient(centre.site("b")), centre.site()
    centre.device(site)
    form = {"name": "Щеголев-Ящуржинский Петр Ежикович", "birth_date": "1980-12-31", "sex": "M"}
    link = f"/schedule/?patient={patient.pk}"
    for method, path, sent in (
        ("get", "/patients/", {"q": "щеголев 31.12.1980"}),
        ("post", "/patients/new/", form),
    ):
        browser = browser_of(centre.user(Role.REGISTRAR, site))
        assert browser.get(link).context["patient"] is None
        assert link in getattr(browser, method)(path, sent).content.decode()
        assert browser.get(link).context["patient"] == patient


def test_editing_a_name_moves_its_keys_and_records_which_fields_changed(browser_of: Browser) -> None:
    patient = centre.patient(centre.site())
    browser = browser_of(centre.user(Role.REGISTRAR, centre.site()))
    form = {"name": "Ёлкин Пётр", "birth_date": "1980-12-31", "sex": "M"}
    assert browser.post(f"/patients/{patient.pk}/edit/", form).status_code == 302
    assert list(queries.search(Patient.objects.all(), "elkin")) == [patient]
    assert not queries.search(Patient.objects.all(), "щеголев").exists()
    assert AuditEvent.objects.get(action="patient.edited").detail == {"fields": ["name"]}


def test_a_care_link_lasts_ninety_days_and_is_prolonged() -> None:
    patient, site = centre.patient(centre.site()), centre.site("b")
    actions.link_care(patient, site, "booked")
    CareLink.objects.update(expires_at=timezone.now() + timedelta(days=1))
    link = actions.link_care(patient, site, "booked")
    assert CareLink.objects.count() == 1
    assert timedelta(days=89) < link.expires_at - timezone.now() <= timedelta(days=90)

"""The one place where identity is decided: who a patient number means, who is new, who treats whom."""

from collections.abc import Iterable
from datetime import date, datetime, timedelta
from typing import Any

from django.db import connection, transaction
from django.http import HttpRequest
from django.utils import timezone
from rest_framework.request import Request

from gateway.envelope import PatientIdentity
from ris_central.accounts.models import User
from ris_central.audit.actions import record
from ris_central.organizations.models import Site
from ris_central.patients import queries
from ris_central.patients.models import CareLink, Patient, PatientIdentifier, SiteRegistration
from standards.errors import ConflictError, PermanentError
from standards.person_names import fold, latin_key, sort_key

CARE = timedelta(days=90)
_FOUND = "found_in_region"
_UNNAMED = "^"


def birth_date_of(text: str) -> date | None:
    """The date of a DICOM DA (``19801231``); None for what is not one."""
    try:
        return datetime.strptime(text.strip(), "%Y%m%d").date()
    except ValueError:
        return None


def person_name_of(text: str) -> str:
    """The PN of a name as clinics write it: ``Иванов Иван Иванович`` gives ``Иванов^Иван^Иванович``."""
    if "^" in text:
        return text.strip()
    family, _, rest = " ".join(text.split()).partition(" ")
    given, _, middle = rest.partition(" ")
    return "^".join((family, given, middle)).rstrip("^")


def set_name(patient: Patient, name: str) -> None:
    """Give the patient a PN and all its keys; cut to what the columns hold."""
    name = name[:324]
    patient.name = name
    patient.name_fold = fold(name)[:324]
    patient.name_latin = latin_key(name)[:400]
    patient.name_sort = sort_key(name)[:324]


def _lock_identifier(issuer: str, value: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 1))", [f"{issuer}\x1f{value}"])


@transaction.atomic
def resolve(identity: PatientIdentity, issuer: str, site: Site) -> Patient:
    """The patient that these words mean at this issuer; made when unknown, and put on file at the site.

    ``(issuer, patient_id)`` decides; the name never does. Two at once make one patient (the number is locked). Without
    a number, the same name, birth date and sex on file at the site without any number is the same patient.
    A known patient keeps its name: images do not rename people, see :func:`edit`.
    """
    value = identity.patient_id.strip()[:64]
    issuer = issuer.strip()[:64]
    name = identity.patient_name or _UNNAMED
    born, sex = birth_date_of(identity.patient_birth_date), identity.patient_sex.strip()[:1]
    key = value or f"{fold(name)}\x1f{identity.patient_birth_date}\x1f{sex}"
    _lock_identifier(issuer if value else f"{issuer}\x1fnameless{site.pk}", key)
    if value:
        known = PatientIdentifier.objects.select_related("patient").filter(issuer=issuer, value=value).first()
        patient = known.patient if known else None
    else:
        patient = Patient.objects.filter(
            identifiers=None, registrations__site=site, name_fold=fold(name)[:324], birth_date=born, sex=sex
        ).first()
    if patient is None:
        patient = Patient(birth_date=born, sex=sex)
        set_name(patient, name)
        patient.save()
        if value:
            PatientIdentifier.objects.create(patient=patient, issuer=issuer, value=value)
        detail = {"issuer": issuer, "site": site.code}
        record("patient.created", actor="centre", entity=patient, patient_key=patient.pk, detail=detail)
    elif patient.birth_date is None and born:
        patient.birth_date = born
        patient.save()
    put_on_file(patient, site)
    return patient


def put_on_file(patient: Patient, site: Site) -> None:
    """The site knows this patient from now on."""
    SiteRegistration.objects.get_or_create(patient=patient, site=site)


@transaction.atomic
def create(
    *,
    name: str,
    site: Site,
    birth_date: date | None = None,
    sex: str = "",
    phone: str = "",
    patient_id: str = "",
    request: HttpRequest | Request | None = None,
    actor: User | str | None = None,
) -> Patient:
    """A new patient of a site; without a number the site's issuer gives one.

    Raises: PermanentError("name-missing", "identifier-taken").
    """
    if not fold(name):
        raise PermanentError("name-missing", "A patient needs a name.")
    issuer = site.issuer_of_patient_id
    value = patient_id.strip()[:64]
    if value:
        _lock_identifier(issuer, value)
        if PatientIdentifier.objects.filter(issuer=issuer, value=value).exists():
            raise ConflictError("identifier-taken", f"{value} ({issuer})")
    patient = Patient(birth_date=birth_date, sex=sex, phone=phone)
    set_name(patient, name)
    patient.save()
    if value:
        PatientIdentifier.objects.create(patient=patient, issuer=issuer, value=value)
    else:
        identifier_at(patient, site)
    put_on_file(patient, site)
    _recorded("patient.created", patient, request, actor, {"site": site.code})
    return patient


@transaction.atomic
def edit(
    patient: Patient,
    *,
    name: str,
    birth_date: date | None,
    sex: str,
    phone: str | None = None,
    request: HttpRequest | Request | None = None,
    actor: User | str | None = None,
) -> Patient:
    """Change what is known of a patient; the trail keeps which fields changed, not their values.

    Raises: PermanentError("name-missing").
    """
    if not fold(name):
        raise PermanentError("name-missing", "A patient needs a name.")
    patient = Patient.objects.select_for_update().get(pk=patient.pk)
    values: dict[str, Any] = {"name": name[:324], "birth_date": birth_date, "sex": sex}
    if phone is not None:
        values["phone"] = phone
    changed = sorted(field for field, value in values.items() if getattr(patient, field) != value)
    if not changed:
        return patient
    set_name(patient, name)
    for field, value in values.items():
        setattr(patient, field, value)
    patient.save()
    _recorded("patient.edited", patient, request, actor, {"fields": changed})
    return patient


def identifier_at(patient: Patient, site: Site) -> PatientIdentifier:
    """The patient's number as devices of this site shall use it: of the site's issuer, made when there is none."""
    issuer = site.issuer_of_patient_id
    found = patient.identifiers.filter(issuer=issuer).order_by("pk").first()
    suffix = 0
    while found is None:
        # The site may have given that very number itself: then a suffix keeps ours apart from it.
        value = f"{site.accession_prefix}{patient.pk:07d}" + (f"-{suffix}" if suffix else "")
        made, _ = PatientIdentifier.objects.get_or_create(issuer=issuer, value=value, defaults={"patient": patient})
        found = made if made.patient_id == patient.pk else None
        suffix += 1
    return found


def link_care(patient: Patient, site: Site, reason: str, user: User | None = None) -> CareLink:
    """The site (or one clinician) treats the patient for the next 90 days; a running link is prolonged."""
    put_on_file(patient, site)
    link, _ = CareLink.objects.update_or_create(
        patient=patient,
        site=site,
        user=user,
        reason=reason[:128],
        defaults={"expires_at": timezone.now() + CARE},
    )
    return link


def _recorded(
    action: str,
    patient: Patient,
    request: HttpRequest | Request | None,
    actor: User | str | None,
    detail: dict[str, Any],
) -> None:
    who = actor if actor is not None else None if request else "centre"
    record(action, request=request, actor=who, entity=patient, patient_key=patient.pk, detail=detail)


def search_region(request: HttpRequest, text: str) -> list[Patient]:
    """Patients of other sites whom this registrar names exactly enough, and may then book; recorded."""
    user = request.user
    assert isinstance(user, User)
    if not text:
        return []
    found = list(queries.find_in_region(user, text).exclude(pk__in=queries.visible_to(user))[:5])
    if found:
        record("patient.searched-in-region", request=request, detail={"found": len(found)})
        open_found(request, found)
    return found


def open_found(request: HttpRequest, found: Iterable[Patient]) -> None:
    """Let the registrar book these patients in this sitting, though they are not on file at the site yet."""
    keys = [key for key in request.session.get(_FOUND, []) if isinstance(key, int)]
    request.session[_FOUND] = list(dict.fromkeys([*keys, *(patient.pk for patient in found)]))[-50:]


def is_found(request: HttpRequest, key: int) -> bool:
    """Whether this patient was opened to the registrar in this sitting."""
    return key in request.session.get(_FOUND, [])

"""Which patients a person may see, and how they are found by what people remember of a name."""

import re
from datetime import date

from django.contrib.auth.models import AnonymousUser
from django.db.models import Exists, OuterRef, Q, QuerySet

from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, can
from ris_central.organizations.models import Membership
from ris_central.patients import listeners
from ris_central.patients.models import Patient, PatientIdentifier, SiteRegistration
from standards.person_names import fold, latin_key

_DATE = re.compile(r"\b(\d{1,2})[.\-/ ](\d{1,2})[.\-/ ](\d{4})\b|\b(\d{4})-(\d{2})-(\d{2})\b")


def visible_to(user: User | AnonymousUser) -> QuerySet[Patient]:
    """Patients on file at a site of the user, and those opened to them; all for the administrator."""
    if not isinstance(user, User) or not can(user, Capability.SEE_PATIENTS):
        return Patient.objects.none()
    live = Patient.objects.filter(merged_into=None)
    if can(user, Capability.ADMINISTER):
        return live
    mine = Membership.objects.filter(user=user).values("site_id")
    seen = Q(Exists(SiteRegistration.objects.filter(patient=OuterRef("pk"), site__in=mine)))
    for keys in listeners.grants_of(user):
        seen |= Q(pk__in=keys)
    return live.filter(seen)


def split_date(text: str) -> tuple[str, date | None]:
    """``text`` without the first full date in it (31.12.1980, 1980-12-31), and that date."""
    match = _DATE.search(text)
    if match is None:
        return text, None
    day, month, year = (match[1], match[2], match[3]) if match[1] else (match[6], match[5], match[4])
    try:
        found = date(int(year), int(month), int(day))
    except ValueError:
        return text, None
    return f"{text[: match.start()]} {text[match.end() :]}", found


def search(patients: QuerySet[Patient], text: str) -> QuerySet[Patient]:
    """Patients by parts of a name (any order, е or ё, any case, Latin spelling), an identifier, a birth date.

    Every word must be found: as a part of the name, as a part of its Latin key, or as the start of an identifier.
    """
    words, born = split_date(text)
    if born:
        patients = patients.filter(birth_date=born)
    for word in words.split():
        found = Q(Exists(PatientIdentifier.objects.filter(patient=OuterRef("pk"), value__startswith=word)))
        if key := fold(word):
            found |= Q(name_fold__contains=key)
        if latin := latin_key(word):
            found |= Q(name_latin__contains=latin)
        patients = patients.filter(found)
    return patients.order_by("name_sort", "pk")


def find_in_region(user: User, text: str) -> QuerySet[Patient]:
    """Patients of any site for who books: only by name and full birth date together, or by a whole identifier.

    So that a person who moves between clinics is one patient, and nobody can leaf through other clinics' patients.
    """
    if not can(user, Capability.BOOK):
        return Patient.objects.none()
    words, born = split_date(text)
    if born and any(len(word) >= 3 for word in fold(words).split()):
        return search(Patient.objects.filter(merged_into=None), text)
    value = text.strip()
    return Patient.objects.filter(identifiers__value=value) if value else Patient.objects.none()


def alike(name: str, birth_date: date | None) -> QuerySet[Patient]:
    """Patients who may be the same person: names that sound alike in any spelling, and the same birth date."""
    if birth_date is None:
        return Patient.objects.none()
    return Patient.objects.filter(name_latin=latin_key(name), birth_date=birth_date, merged_into=None)

"""People, sites, devices and patients of a made-up region, made through the centre's own actions where they matter."""

from datetime import UTC, date, datetime, timedelta
from itertools import count

from django.utils import timezone

from ris_central.accounts.models import Role, User
from ris_central.federation.models import Node
from ris_central.orders import actions as orders
from ris_central.orders.models import Device, ServiceRequest
from ris_central.organizations.models import Membership, Site
from ris_central.patients import actions as patients
from ris_central.patients.models import Patient

PASSWORD = "correct-horse-7"
NAME = "Щёголев-Ящуржинский^Пётр^Ёжикович"
_numbers = count(1)


def site(code: str = "a", kind: str = Site.Kind.OWN_PACS, time_zone: str = "Europe/Moscow") -> Site:
    """The site of this code; made at first."""
    found, _ = Site.objects.get_or_create(
        code=code,
        defaults={
            "name": f"Clinic {code.upper()}",
            "kind": kind,
            "accession_prefix": code.upper()[:4],
            "issuer_of_patient_id": f"CLINIC-{code.upper()}",
            "time_zone": time_zone,
        },
    )
    return found


def user(role: str = Role.REGISTRAR, *sites: Site, username: str = "") -> User:
    """Somebody with PASSWORD who works at these sites."""
    made = User(username=username or f"{role}-{next(_numbers)}", role=role, last_name="Test", first_name="Person")
    made.set_password(PASSWORD)
    made.save()
    Membership.objects.bulk_create([Membership(user=made, site=one) for one in sites])
    return made


def node(of: Site, name: str = "", kind: str = Node.Kind.CLINIC) -> Node:
    """A node of the site that has joined."""
    return Node.objects.create(site=of, name=name or f"node-{of.code}", kind=kind, joined_at=timezone.now())


def device(of: Site, ae_title: str = "CT1", modality: str = "CT", at: Node | None = None) -> Device:
    """A device in use, with slots of half an hour."""
    return Device.objects.create(site=of, node=at, name=f"Room {ae_title}", ae_title=ae_title, modality=modality)


def patient(
    of: Site, name: str = NAME, born: date | None = date(1980, 12, 31), sex: str = "M", number: str = ""
) -> Patient:
    """A patient on file at the site."""
    return patients.create(name=name, site=of, birth_date=born, sex=sex, patient_id=number, actor="test")


def tomorrow(hour: int = 10, minute: int = 0) -> datetime:
    """A moment of tomorrow, UTC."""
    day = timezone.now().astimezone(UTC) + timedelta(days=1)
    return day.replace(hour=hour, minute=minute, second=0, microsecond=0)


def booking(of: Site, who: Patient | None = None, on: Device | None = None, hour: int = 10) -> ServiceRequest:
    """A booked examination."""
    return orders.book(
        patient=who or patient(of),
        device=on or Device.objects.filter(site=of).first() or device(of),
        starts_at=tomorrow(hour),
        description="CT of the chest",
        actor="test",
    )

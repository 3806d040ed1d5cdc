"""What HL7 v2 messages say in the region's words: whose message, which patient, which order.

Source: HL7 v2.5.1 chapters 3 (PID), 4 (ORC, OBR, TQ1, IPC)
"""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

from gateway.envelope import PatientIdentity
from ris_central.config import config
from ris_central.orders.models import Device, ServiceRequest
from ris_central.organizations.models import Site
from standards.errors import PermanentError
from standards.hl7v2 import Message

FACILITY_PATHS = ("MSH-4.1", "PV1-3.4", "ORC-21.1", "ORC-17.1", "MSH-6.1", "PID-3.4", "PV1-3.1")
STATION_PATHS = ("IPC-9", "OBR-21", "OBR-20", "OBR-19", "OBR-18")
MODALITY_PATHS = ("IPC-5", "OBR-24")
START_PATHS = ("TQ1-7", "ORC-7.4", "OBR-27.4", "OBR-36")
PRIORITY_PATHS = ("TQ1-9", "ORC-7.6", "OBR-27.6", "OBR-5")
PRIORITIES = {
    "S": ServiceRequest.Priority.STAT,
    "STAT": ServiceRequest.Priority.STAT,
    "A": ServiceRequest.Priority.URGENT,
    "U": ServiceRequest.Priority.URGENT,
    "URGENT": ServiceRequest.Priority.URGENT,
}
_TIME = re.compile(r"(\d{4})(\d{2})(\d{2})(\d{2})?(\d{2})?(\d{2})?(?:\.\d+)?([+-]\d{4})?")


@dataclass(frozen=True)
class OrderMessage:
    """One order of a message: what is to be done (ORC-1), for which placer order, when and where."""

    control: str
    placer_order_number: str
    placer_issuer: str
    description: str
    reason: str
    referring_physician_name: str
    priority: str
    starts_at: datetime | None
    station_ae_title: str
    modality: str


def first(message: Message, paths: tuple[str, ...]) -> str:
    """The first of these fields that says something."""
    return next((text for path in paths if (text := message.get(path).strip())), "")


def _plain(text: str) -> str:
    return re.sub(r"[\W_]", "", text.casefold())


def site_of(message: Message) -> Site:
    """The site a message comes from: by code, name or patient id issuer in any of the facility fields.

    Raises: PermanentError("unknown-facility"): no guess is made unless a default site is set.
    """
    sites = list(Site.objects.all())
    for path in FACILITY_PATHS:
        said = _plain(message.get(path))
        for site in sites:
            if said and said in (_plain(site.code), _plain(site.name), _plain(site.issuer_of_patient_id)):
                return site
    default = config().hl7_default_site
    for site in sites:
        if default and site.code == default:
            return site
    raise PermanentError("unknown-facility", f"MSH-4 {message.get('MSH-4.1')!r} names no site of the region")


def identity_of(message: Message, site: Site) -> tuple[PatientIdentity, str]:
    """The patient of PID and the issuer of the identifier (PID-3.4, else the site's own).

    Raises: PermanentError("pid-missing", "identifier-missing", "name-missing").
    """
    pid = message.segment("PID")
    if pid is None:
        raise PermanentError("pid-missing", "the message has no PID segment")
    numbers = [number for number in pid.repetitions(3) if number[0].strip()]
    if not numbers:
        raise PermanentError("identifier-missing", "PID-3 is empty")
    record_numbers = [number for number in numbers if len(number) > 4 and number[4] == "MR"]
    chosen = (record_numbers or numbers)[0]
    issuer = chosen[3].split("&")[0].strip() if len(chosen) > 3 else ""
    family, given, middle, suffix, prefix = (pid.get(f"5.{part}").strip() for part in range(1, 6))
    if not (family or given):
        raise PermanentError("name-missing", "PID-5 is empty")
    born, sex = pid.get("7.1")[:8], pid.get("8").strip().upper()
    identity = PatientIdentity(
        patient_id=chosen[0].strip(),
        issuer_of_patient_id=issuer,
        patient_name="^".join((family, given, middle, prefix, suffix)).rstrip("^"),
        patient_birth_date=born if len(born) == 8 and born.isdigit() else "",
        patient_sex=sex if sex in ("M", "F", "O") else "",
    )
    return identity, issuer or site.issuer_of_patient_id


def time_of(text: str, site: Site) -> datetime | None:
    """An HL7 TS to the minute; without an offset it is in the site's zone. None for empty.

    Raises: PermanentError("time-invalid").
    """
    if not text:
        return None
    found = _TIME.fullmatch(text.strip())
    try:
        if not found:
            raise ValueError
        year, month, day, hour, minute = (int(found[part] or 0) for part in range(1, 6))
        zone: ZoneInfo | timezone = ZoneInfo(site.time_zone)
        if offset := found[7]:
            shift = timedelta(hours=int(offset[1:3]), minutes=int(offset[3:]))
            zone = timezone(-shift if offset[0] == "-" else shift)
        return datetime(year, month, day, hour, minute, tzinfo=zone)
    except ValueError:
        raise PermanentError("time-invalid", f"{text[:30]!r} is not a time") from None


def order_of(message: Message, site: Site) -> OrderMessage:
    """The order in ORC, OBR, TQ1 and IPC.

    Raises: PermanentError("orc-missing", "order-number-missing", "time-invalid").
    """
    if message.segment("ORC") is None:
        raise PermanentError("orc-missing", "the message has no ORC segment")
    number = message.get("ORC-2.1") or message.get("OBR-2.1")
    if not number:
        raise PermanentError("order-number-missing", "ORC-2 is empty")
    notes = [note.get("3") for note in message.all("NTE") if note.get("3")]
    reason = first(message, ("OBR-31.2", "OBR-31.1", "OBR-13", "ORC-16.2"))
    return OrderMessage(
        control=message.get("ORC-1"),
        placer_order_number=number[:64],
        placer_issuer=(message.get("ORC-2.2") or message.get("MSH-3.1") or site.code)[:64],
        description=first(message, ("OBR-4.2", "OBR-4.5", "OBR-44.2", "OBR-4.1")),
        reason="\n".join([reason, *notes]).strip(),
        referring_physician_name=_physician(message),
        priority=PRIORITIES.get(first(message, PRIORITY_PATHS).upper(), ServiceRequest.Priority.ROUTINE),
        starts_at=time_of(first(message, START_PATHS), site),
        station_ae_title=first(message, STATION_PATHS),
        modality=first(message, MODALITY_PATHS).upper(),
    )


def _physician(message: Message) -> str:
    for path in ("OBR-16", "ORC-12", "PV1-8"):
        name = "^".join(message.get(f"{path}.{part}") for part in (2, 3, 4)).rstrip("^")
        if name:
            return name
    return ""


def devices_for(order: OrderMessage, site: Site) -> list[Device]:
    """The site's devices that fit the order, the named one alone if there is one.

    Raises: PermanentError("no-such-device").
    """
    active = Device.objects.filter(site=site, is_active=True).order_by("pk")
    named = list(active.filter(ae_title=order.station_ae_title)) if order.station_ae_title else []
    fitting = named or list(active.filter(modality=order.modality))
    if not fitting:
        wanted = order.station_ae_title or order.modality or "no station and no modality"
        raise PermanentError("no-such-device", f"{site.code} has no active device for {wanted}")
    return fitting

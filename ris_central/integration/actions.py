"""HL7 in: register, book, cancel; each message one transaction with the record of its answer."""

import hashlib
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import structlog
from django.db import OperationalError, connection, transaction
from django.http import HttpRequest
from django.utils import timezone

from ris_central.audit.actions import record
from ris_central.config import config
from ris_central.integration.models import Hl7Message, Hl7Outgoing, Hl7Receiver
from ris_central.integration.order_messages import OrderMessage, devices_for, identity_of, order_of, site_of
from ris_central.orders.actions import book, cancel, reschedule
from ris_central.orders.models import Device, ScheduledProcedureStep, ServiceRequest
from ris_central.orders.transitions import LIVE
from ris_central.organizations.models import Site
from ris_central.patients.actions import birth_date_of, edit, resolve
from ris_central.patients.models import Patient
from standards.errors import PermanentError, RegisError
from standards.hl7v2 import Message, ack, parse

log = structlog.get_logger(__name__)

ACTOR = "hl7"
REJECTED = {
    "not-hl7",
    "unknown-character-set",
    "undecodable-text",
    "message-too-large",
    "unsupported-message",
    "control-id-missing",
    "control-id-reused",
}
"""Codes answered AR: the message itself cannot be taken. All others are AE: its content was refused."""


def receive(raw: bytes, address: str = "") -> bytes:
    """Take one message and answer it (both without framing). Never raises for what a peer can send.

    The same MSH-10 of the same sender gets the same answer again and changes nothing; after an error it is tried anew.
    """
    message: Message | None = None
    try:
        message = parse(raw, config().hl7_default_charset)
        return _take(message, raw, address)
    except RegisError as error:
        code = "AR" if error.code in REJECTED else "AE"
        log.warning("hl7-refused", code=error.code, answer=code, address=address)
        answer = ack(message, code, error.detail or error.code, error.code)
        if message is not None:
            _keep(message, raw, code, answer, error=str(error), address=address)
        return answer
    except OperationalError as error:
        log.error("hl7-database", error=str(error))
        return ack(message, "AE", "The centre cannot write now: send again.", "database-busy")


@transaction.atomic
def _take(message: Message, raw: bytes, address: str) -> bytes:
    if not message.control_id:
        raise PermanentError("control-id-missing", "MSH-10 is empty")
    handler = HANDLERS.get(message.type)
    if handler is None:
        raise PermanentError("unsupported-message", f"{message.type or 'MSH-9'} is not taken here")
    with connection.cursor() as cursor:  # the same message on two connections: one after the other
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 7))", ["\x1f".join(_sender(message))])
    known = Hl7Message.objects.filter(**_key(message), acknowledgment_code="AA").first()
    if known is not None:
        if known.raw_sha256 != _content_digest(message):
            raise PermanentError("control-id-reused", f"MSH-10 {message.control_id!r} came before with other content")
        return bytes(known.answer)
    site = site_of(message)
    text = handler(message, site)
    answer = ack(message, "AA", text)
    _keep(message, raw, "AA", answer, address=address)
    return answer


def _sender(message: Message) -> tuple[str, str, str]:
    return message.get("MSH-3"), message.get("MSH-4"), message.control_id


def _key(message: Message) -> dict[str, Any]:
    application, facility, control_id = _sender(message)
    return {
        "sending_application": application[:180],
        "sending_facility": facility[:180],
        "message_control_id": control_id[:199],
    }


def _content_digest(message: Message) -> str:
    """Of everything but MSH, whose time a sender renews when it sends again."""
    rest = message.text.partition("\r")[2]
    return hashlib.sha256(rest.encode()).hexdigest()


def _keep(message: Message, raw: bytes, code: str, answer: bytes, *, error: str = "", address: str = "") -> None:
    if not message.control_id:
        return
    values = {
        "message_type": message.type[:16],
        "raw": raw,
        "raw_sha256": _content_digest(message),
        "acknowledgment_code": code,
        "answer": answer,
        "error": error,
    }
    known = Hl7Message.objects.filter(**_key(message)).first()
    if known is None or known.acknowledgment_code != "AA":
        Hl7Message.objects.update_or_create(**_key(message), defaults=values)
    outcome = "success" if code == "AA" else "refused"
    detail = {"type": message.type, "answer": code, "address": address, "error": error.partition(":")[0]}
    record("hl7.received", actor=ACTOR, entity=("hl7", message.control_id), outcome=outcome, detail=detail)


def _register(message: Message, site: Site) -> str:
    """ADT: the patient is known from now on, as PID says now."""
    _patient(message, site)
    return "Patient registered"


def _patient(message: Message, site: Site) -> Patient:
    identity, issuer = identity_of(message, site)
    patient = resolve(identity, issuer, site)
    return edit(
        patient,
        name=identity.patient_name,
        birth_date=birth_date_of(identity.patient_birth_date) or patient.birth_date,
        sex=identity.patient_sex or patient.sex,
        phone=message.get("PID-13.1")[:64] or None,
        actor=ACTOR,
    )


def _order(message: Message, site: Site) -> str:
    """ORM, OMI: by ORC-1 book, change or cancel."""
    order = order_of(message, site)
    if order.control in ("CA", "DC", "OC"):
        known = _known_order(order)
        if known is None:
            raise PermanentError("order-unknown", f"order {order.placer_order_number!r} is not known here")
        if known.status != ServiceRequest.Status.REVOKED:
            cancel(known, reason=f"HL7 {order.control}", actor=ACTOR)
        return "Order cancelled"
    if order.control not in ("NW", "XO"):
        raise PermanentError("unsupported-message", f"ORC-1 {order.control!r} is not taken here")
    patient = _patient(message, site)
    known = _known_order(order)
    if known is not None:
        return _change(known, order, patient)
    if order.control == "XO":
        raise PermanentError("order-unknown", f"order {order.placer_order_number!r} is not known here")
    devices = devices_for(order, site)
    device, starts_at = _when(devices, order.starts_at)
    made = book(
        patient=patient,
        device=device,
        starts_at=starts_at,
        description=order.description or device.modality,
        priority=order.priority,
        reason=order.reason,
        referring_physician_name=order.referring_physician_name,
        placer_order_number=order.placer_order_number,
        placer_issuer=order.placer_issuer,
        actor=ACTOR,
    )
    return f"Booked {made.accession_number}"


def _known_order(order: OrderMessage) -> ServiceRequest | None:
    return ServiceRequest.objects.filter(
        placer_order_number=order.placer_order_number, placer_issuer=order.placer_issuer
    ).first()


def _change(known: ServiceRequest, order: OrderMessage, patient: Patient) -> str:
    if known.patient_id != patient.pk:
        raise PermanentError("order-of-another-patient", f"order {order.placer_order_number!r} is of another patient")
    if known.status == ServiceRequest.Status.REVOKED:
        raise PermanentError("order-cancelled", f"order {order.placer_order_number!r} was cancelled")
    step = known.steps.exclude(status=ScheduledProcedureStep.Status.CANCELLED).order_by("pk").first()
    if step is not None and order.starts_at and order.starts_at != step.slot.lower:
        reschedule(step, device=step.device, starts_at=order.starts_at, actor=ACTOR)
    return f"Booked {known.accession_number}"


def _when(devices: list[Device], starts_at: datetime | None) -> tuple[Device, datetime]:
    """The device that is free first: at ``starts_at`` where that is given (else the booking says it is taken)."""
    if starts_at is not None:
        free = [device for device in devices if _first_gap(device, starts_at) == starts_at]
        return (free or devices)[0], starts_at
    now = timezone.now().replace(second=0, microsecond=0)
    soon = now + timedelta(minutes=10 - now.minute % 10)
    gaps = [(_first_gap(device, soon), device) for device in devices]
    start, device = min(gaps, key=lambda gap: gap[0])
    return device, start


def _first_gap(device: Device, start: datetime) -> datetime:
    length = timedelta(minutes=device.slot_minutes)
    live = device.steps.filter(status__in=LIVE, slot__endswith__gt=start)
    for taken in live.order_by("slot").values_list("slot", flat=True):
        if taken.lower >= start + length:
            break
        start = max(start, taken.upper)
    return start


HANDLERS: dict[str, Callable[[Message, Site], str]] = {
    "ADT^A01": _register,
    "ADT^A04": _register,
    "ADT^A05": _register,
    "ADT^A08": _register,
    "ADT^A28": _register,
    "ADT^A31": _register,
    "ORM^O01": _order,
    "OMI^O23": _order,
}


@transaction.atomic
def save_receiver(receiver: Hl7Receiver, request: HttpRequest) -> None:
    """Add or change where results are sent."""
    receiver.save()
    detail = {"host": receiver.host, "port": receiver.port, "active": receiver.is_active}
    record("hl7.receiver-changed", request=request, entity=receiver, detail=detail)


@transaction.atomic
def send_now(outgoing: Hl7Outgoing, request: HttpRequest) -> None:
    """Have the sender try a waiting message at once."""
    Hl7Outgoing.objects.filter(pk=outgoing.pk).update(next_attempt_at=timezone.now())
    record("hl7.sent-now", request=request, entity=outgoing)

"""What a node registered, changed and cancelled on its own, taken into the orders of its site.

Every change is merged field by field with what the centre did meanwhile (``orders.rules``); every answer goes back to
the node with the revision that was taken, so that it knows what the centre has.
"""

from typing import Any

from django.db import transaction

from gateway.envelope import Event, OrderCancelled, OrderChanged, OrderRegistered, PatientIdentity, Schedule
from ris_central.accounts.models import User
from ris_central.audit.actions import record
from ris_central.federation.actions import send_command
from ris_central.federation.models import Node
from ris_central.orders import accessions, node_feed
from ris_central.orders.differences import note, propose_alike
from ris_central.orders.listeners import announce
from ris_central.orders.models import ReturnDifference, ScheduledProcedureStep, ServiceRequest
from ris_central.orders.placing import PATIENT_FIELDS, cancel_step, device_of, facts_of, place, slot_of, write
from ris_central.orders.rules import merge_field
from ris_central.orders.transitions import check
from ris_central.organizations.queries import people_of
from ris_central.patients import actions as patients
from ris_central.patients.models import Patient, PatientIdentifier, SiteRegistration
from standards.person_names import fold
from worklist.feed import WorklistItem

Status = ScheduledProcedureStep.Status


@transaction.atomic
def take_registered(node: Node, event: Event) -> None:
    """An examination that was ordered and scheduled at the node becomes patient, order and step here."""
    body = event.body
    if not isinstance(body, OrderRegistered):
        raise TypeError(f"order.registered expected, {body.type} given")
    accessions.locked_counter(node.site)
    if _step_of(node, body.item) is None:
        _register(node, body)


@transaction.atomic
def take_changed(node: Node, event: Event) -> None:
    """A step that was changed at the node: merged with what the centre made of it meanwhile."""
    body = event.body
    if not isinstance(body, OrderChanged):
        raise TypeError(f"order.changed expected, {body.type} given")
    accessions.locked_counter(node.site)
    step = _step_of(node, body.item)
    if step is None:
        # This database was restored from before the order: the node's word is all there is.
        _register(node, OrderRegistered(item=body.item, revision=body.revision, by=body.by, at=body.at))
        return
    if body.revision <= step.node_revision:
        return
    step.node_revision = body.revision
    step.save(update_fields=["node_revision"])
    order = step.service_request
    now, before, theirs = facts_of(node_feed.worklist_item(step)), facts_of(body.base), facts_of(body.item)
    values = {}
    for field, here in now.items():
        merged = merge_field(field, before[field], theirs[field], here)
        if merged.value != here:
            values[field] = merged.value
        if merged.differs:
            note(
                node,
                "field",
                order=order,
                field=field,
                before=before[field],
                node_value=theirs[field],
                centre_value=here,
                kept=merged.keeps,
            )
        elif merged.value != here and field in PATIENT_FIELDS:
            note(
                node,
                "patient-corrected",
                order=order,
                before=before[field],
                node_value=theirs[field],
                centre_value=here,
                corrected=field,
            )
    if step.status == Status.REBOOK:
        # Its time was taken, but the node has given it one where it is done: nobody needs to find another.
        check(step, Status.SCHEDULED)
        step.status = Status.SCHEDULED
        found = ReturnDifference.objects.filter(service_request=order, rule="slot-taken")
        found.filter(state=ReturnDifference.State.OPEN).update(state=ReturnDifference.State.BY_RULE)
    write(step, values, node, actor=_actor(node, body.by))
    if step.status == Status.CANCELLED:
        note(node, "cancelled-but-changed", order=order, step=step.pk, values=values)
    _settled(node, step, body.item)
    _recorded("order.changed-at-node", order, node, body.by, {"fields": sorted(values), "revision": body.revision})
    announce(order)


@transaction.atomic
def take_cancelled(node: Node, event: Event) -> None:
    """A step that was cancelled at the node."""
    body = event.body
    if not isinstance(body, OrderCancelled):
        raise TypeError(f"order.cancelled expected, {body.type} given")
    accessions.locked_counter(node.site)
    step = _step_of(node, body.item)
    if step is None or body.revision <= step.node_revision:
        return
    step.node_revision = body.revision
    step.save(update_fields=["node_revision"])
    order = step.service_request
    now, before = facts_of(node_feed.worklist_item(step)), facts_of(body.item)
    changed = sorted(field for field, value in now.items() if value != before[field])
    if step.status in (Status.IN_PROGRESS, Status.COMPLETED):
        note(node, "examined-but-cancelled", order=order, node_value=body.reason, step=step.pk)
    elif step.status == Status.SCHEDULED and changed:
        note(
            node,
            "changed-but-cancelled",
            order=order,
            node_value=body.reason,
            centre_value=", ".join(f"{field}: {now[field]}" for field in changed if field not in PATIENT_FIELDS),
            step=step.pk,
        )
    elif step.status in (Status.SCHEDULED, Status.REBOOK):
        cancel_step(step)
    _settled(node, step, body.item)
    _recorded("order.cancelled-at-node", order, node, body.by, {"reason": body.reason[:500]})
    announce(order)


def _step_of(node: Node, item: WorklistItem) -> ScheduledProcedureStep | None:
    """The step that this item means, locked: by its Study Instance UID and step id, of this site alone."""
    steps = (
        ScheduledProcedureStep.objects.select_for_update(of=("self",))
        .select_related("device__site", "device__node", "service_request__patient", "service_request__site")
        .filter(service_request__site=node.site, service_request__study_instance_uid=item.study_instance_uid)
    )
    return steps.filter(scheduled_procedure_step_id=item.scheduled_procedure_step_id).first() or steps.first()


def _register(node: Node, body: OrderRegistered) -> None:
    item, site = body.item, node.site
    patient, is_ours = _patient(node, body)
    accession, notes = _accession(node, item)
    step_id = item.scheduled_procedure_step_id
    if accession != item.accession_number or _step_id_taken(step_id):
        step_id = f"{accession}-1"
    actor = _actor(node, body.by)
    facts = facts_of(item)
    order = ServiceRequest.objects.create(
        patient=patient,
        site=site,
        accession_number=accession,
        study_instance_uid=item.study_instance_uid,
        description=facts["description"][:64],
        reason=facts["reason"],
        referring_physician_name=facts["referring_physician_name"][:128],
        priority=facts["priority"],
        created_by=actor if isinstance(actor, User) else None,
    )
    step = ScheduledProcedureStep(
        service_request=order,
        device=device_of(node, item.scheduled_station_ae_title, item.modality, order),
        scheduled_procedure_step_id=step_id,
        slot=slot_of(facts["slot"]),
        node_revision=body.revision,
    )
    place(step, node)
    if is_ours:
        patients.link_care(patient, site, reason="booked")
    else:
        note(node, "patient-elsewhere", order=order, node_value=item.patient_name, centre_value=str(patient))
    for rule, values in notes:
        note(node, rule, order=order, **values)
    if body.emergency_number:
        note(node, "emergency-number", order=order, node_value=accession)
    if body.unknown_patient:
        note(node, "patient-unknown", order=order, node_value=item.patient_name)
    _settled(node, step, item)
    _recorded("order.registered-at-node", order, node, body.by, {"emergency_number": body.emergency_number})
    announce(order)


def _patient(node: Node, body: OrderRegistered) -> tuple[Patient, bool]:
    """Who it is by number, and whether the site may treat them without a person's word.

    A new person who may be one the centre knows is proposed for a merge. A number of another site opens nothing by
    itself: else whoever holds a node's key could read about every patient of the region.
    """
    item, site = body.item, node.site
    identity = PatientIdentity(
        patient_id=item.patient_id,
        patient_name=item.patient_name,
        patient_birth_date=item.patient_birth_date,
        patient_sex=item.patient_sex,
    )
    issuer = item.issuer_of_patient_id or site.issuer_of_patient_id
    here_before = SiteRegistration.objects.filter(
        site=site, patient__identifiers__issuer=issuer, patient__identifiers__value=item.patient_id
    ).exists()
    is_known = PatientIdentifier.objects.filter(issuer=issuer, value=item.patient_id).exists()
    patient = patients.resolve(identity, issuer, site)
    if is_known:
        here = (fold(patient.name), patient.birth_date, patient.sex)
        there = (fold(item.patient_name), patients.birth_date_of(item.patient_birth_date), item.patient_sex)
        if here != there:
            born = patient.birth_date.strftime("%Y%m%d") if patient.birth_date else ""
            note(
                node,
                "patient-differs",
                patient=patient,
                node_value=_person_text(item.patient_name, item.patient_birth_date, item.patient_sex),
                centre_value=_person_text(patient.name, born, patient.sex),
            )
    elif not body.unknown_patient:
        propose_alike(node, patient)
    unconfirmed = ReturnDifference.objects.filter(
        rule="patient-elsewhere", patient=patient, site=site, kept=ReturnDifference.Side.CENTRE
    )
    is_stranger = is_known and not here_before and issuer != site.issuer_of_patient_id
    return patient, not (is_stranger or unconfirmed.exists())


def _person_text(name: str, born: str, sex: str) -> str:
    return "|".join((name, born, sex))


def _accession(node: Node, item: WorklistItem) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    """The number the order gets: its own, or the next one when another order has that."""
    number, site = item.accession_number[:16], node.site
    digits = number.removeprefix(site.accession_prefix)
    if digits.isascii() and digits.isdigit():
        accessions.pass_over(site, int(digits))
    if not ServiceRequest.objects.filter(accession_number=number).exists():
        return number, []
    counter = accessions.locked_counter(site)
    given = f"{site.accession_prefix}{counter.next_number:08d}"
    counter.next_number += 1
    counter.save(update_fields=["next_number"])
    return given, [("accession-twice", {"node_value": number, "centre_value": given})]


def _step_id_taken(step_id: str) -> bool:
    return ScheduledProcedureStep.objects.filter(scheduled_procedure_step_id=step_id).exists()


def _settled(node: Node, step: ScheduledProcedureStep, item: WorklistItem) -> None:
    """Tell the node what the centre has now; under another id when the node's was taken."""
    if step.scheduled_procedure_step_id != item.scheduled_procedure_step_id:
        old = item.scheduled_procedure_step_id
        send_command(node, Schedule(removed=[old], settled={old: step.node_revision}))
    node_feed.send_step(step)


def _actor(node: Node, username: str) -> User | str:
    """The person of the site by that name, else the node itself: logins made at a node mean nobody here."""
    return people_of(node.site).filter(username=username).first() or f"{username} ({node.name})"


def _recorded(action: str, order: ServiceRequest, node: Node, by: str, detail: dict[str, Any]) -> None:
    record(
        action,
        actor=_actor(node, by),
        entity=order,
        patient_key=order.patient_id,
        detail={"node": node.name, "by": by, **detail},
    )

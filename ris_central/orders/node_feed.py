"""What a node must know of its site: devices, schedule, people. Always sent in the transaction of the change."""

from collections.abc import Iterable
from datetime import timedelta

from django.db.models import QuerySet
from django.utils import timezone

from gateway.envelope import Devices, Roster, RosterEntry, Schedule
from ris_central.federation.actions import send_command
from ris_central.federation.models import Node
from ris_central.orders.models import Device, ScheduledProcedureStep
from ris_central.organizations.models import Site
from ris_central.organizations.queries import people_of
from ris_central.patients.actions import identifier_at
from worklist.feed import DeviceRules, WorklistItem

Status = ScheduledProcedureStep.Status
ROSTER_DAYS = 30
_KEPT_DAYS = 2
"""Steps that ended longer ago are not part of a snapshot: nobody scans for yesterday's worklist."""

PRIORITY = {"routine": "ROUTINE", "urgent": "HIGH", "stat": "STAT"}


def node_of(device: Device) -> Node | None:
    """The node that serves the device: its own, else the site's."""
    return device.node or nodes_of(device.site).first()


def nodes_of(site: Site) -> QuerySet[Node]:
    """The nodes of a site that take commands."""
    return Node.objects.filter(site=site, revoked_at=None).exclude(kind=Node.Kind.ARCHIVE).order_by("pk")


def devices_of(node: Node) -> QuerySet[Device]:
    """The active devices that this node serves."""
    devices = Device.objects.filter(site=node.site, is_active=True).select_related("site")
    if nodes_of(node.site).first() == node:
        return devices.filter(node=node) | devices.filter(node=None)
    return devices.filter(node=node)


def worklist_item(step: ScheduledProcedureStep) -> WorklistItem:
    """The step in the wire form of the worklist feed."""
    order, device = step.service_request, step.device
    patient, site = order.patient, device.site
    identifier = identifier_at(patient, site)
    return WorklistItem(
        scheduled_procedure_step_id=step.scheduled_procedure_step_id,
        scheduled_procedure_step_description=order.description,
        scheduled_station_ae_title=device.ae_title,
        scheduled_station_name=device.name[:16],
        modality=device.modality,
        starts_at=step.slot.lower,
        ends_at=step.slot.upper,
        time_zone=site.time_zone,
        status=step.status,
        accession_number=order.accession_number,
        requested_procedure_id=order.accession_number,
        requested_procedure_description=order.description,
        study_instance_uid=order.study_instance_uid,
        referring_physician_name=order.referring_physician_name,
        reason_for_the_requested_procedure=order.reason,
        requested_procedure_priority=PRIORITY[order.priority],
        institution_name=site.name,
        patient_name=patient.name,
        patient_id=identifier.value,
        issuer_of_patient_id=identifier.issuer,
        patient_birth_date=patient.birth_date.strftime("%Y%m%d") if patient.birth_date else "",
        patient_sex=patient.sex,
    )


def device_rules(device: Device) -> DeviceRules:
    """What the node must know of the device."""
    return DeviceRules(
        ae_title=device.ae_title,
        modality=device.modality,
        character_set=device.character_set,
        issuer_of_patient_id=device.site.issuer_of_patient_id,
        time_zone=device.site.time_zone,
        address=device.address,
        host=device.host,
        port=device.port,
    )


def send_step(step: ScheduledProcedureStep) -> None:
    """Put, replace or take away one step on its device's node."""
    node = node_of(step.device)
    if node is None:
        return
    settled = _settled([step])
    if step.status in (Status.SCHEDULED, Status.IN_PROGRESS):
        send_command(node, Schedule(items=[worklist_item(step)], settled=settled))
    else:
        send_command(node, Schedule(removed=[step.scheduled_procedure_step_id], settled=settled))


def _settled(steps: Iterable[ScheduledProcedureStep]) -> dict[str, int]:
    """Which of the node's own revisions of these steps are taken in."""
    return {step.scheduled_procedure_step_id: step.node_revision for step in steps if step.node_revision}


def remove_step(node: Node, step: ScheduledProcedureStep) -> None:
    """Take a step away from a node that does not serve it any more."""
    send_command(node, Schedule(removed=[step.scheduled_procedure_step_id]))


def send_devices(node: Node) -> None:
    """The registry of the node: the site's devices that it serves."""
    send_command(node, Devices(devices=[device_rules(device) for device in devices_of(node).order_by("ae_title")]))


def send_schedule(node: Node) -> None:
    """Every step that somebody may still scan for."""
    since = timezone.now() - timedelta(days=_KEPT_DAYS)
    steps = (
        ScheduledProcedureStep.objects.filter(
            device__in=devices_of(node), status__in=[Status.SCHEDULED, Status.IN_PROGRESS], slot__endswith__gt=since
        )
        .select_related("service_request__patient", "device__site")
        .order_by("slot")
    )
    send_command(node, Schedule(items=[worklist_item(step) for step in steps], settled=_settled(steps)))


def send_roster(node: Node) -> None:
    """The people of the node's site, with password hashes, for 30 days. Who owes a password change is left out."""
    entries = [
        RosterEntry(username=user.username, full_name=user.full_name, role=user.role, password_hash=user.password)
        for user in people_of(node.site)
        if not user.must_change_password
    ]
    expires = timezone.now() + timedelta(days=ROSTER_DAYS)
    send_command(node, Roster(entries=entries, expires_at=expires))


def node_joined(node: Node) -> None:
    """Listener: a node joined (again), and must begin with all it needs."""
    send_devices(node)
    send_roster(node)
    if node.kind != Node.Kind.ARCHIVE:
        send_schedule(node)


def people_changed(site: Site) -> None:
    """Listener: somebody of the site changed."""
    for node in nodes_of(site).exclude(joined_at=None):
        send_roster(node)


def refresh_rosters() -> int:
    """Send every node its roster anew, so that none runs out; returns how many."""
    nodes = list(Node.objects.filter(revoked_at=None).exclude(joined_at=None).exclude(kind=Node.Kind.ARCHIVE))
    for node in nodes:
        send_roster(node)
    return len(nodes)

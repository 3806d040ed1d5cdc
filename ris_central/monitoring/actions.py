"""Keep who was refused; let an engineer admit them."""

from django.db import transaction
from django.db.models import F
from django.http import HttpRequest
from django.utils import timezone

from gateway.envelope import AssociationRefused, Event
from ris_central.audit.actions import record
from ris_central.audit.models import AuditEvent
from ris_central.federation.models import Node
from ris_central.monitoring.models import RefusedAssociation
from ris_central.orders.actions import save_device
from ris_central.orders.models import Device


@transaction.atomic
def take_association_refused(node: Node, event: Event) -> None:
    """Listener: a node turned a peer away. The same peer is one row with a count."""
    body = event.body
    if not isinstance(body, AssociationRefused):
        raise TypeError(f"association.refused expected, {body.type} given")
    refused, created = RefusedAssociation.objects.get_or_create(
        node=node,
        calling_ae_title=body.calling_ae_title[:16],
        address=body.address[:64],
        defaults={
            "called_ae_title": body.called_ae_title[:16],
            "reason": body.reason[:255],
            "first_at": event.occurred_at,
            "last_at": event.occurred_at,
        },
    )
    if created:
        record(
            "association.refused",
            actor=node.name,
            entity=node,
            outcome=AuditEvent.Outcome.REFUSED,
            detail={"calling": body.calling_ae_title, "address": body.address, "reason": body.reason},
        )
        return
    # Refused again after it was admitted: admitting did not help, so it is shown again.
    still = refused.admitted_at is not None and event.occurred_at <= refused.admitted_at
    RefusedAssociation.objects.filter(pk=refused.pk).update(
        count=F("count") + 1,
        last_at=event.occurred_at,
        reason=body.reason[:255],
        called_ae_title=body.called_ae_title[:16],
        admitted_at=refused.admitted_at if still else None,
    )


@transaction.atomic
def admit(refused: RefusedAssociation, request: HttpRequest) -> Device:
    """Connect the peer as a device of the node's site (not a modality until the engineer says which)."""
    title, site = refused.calling_ae_title, refused.node.site
    device = Device.objects.filter(site=site, ae_title=title).order_by("-is_active", "pk").first()
    if device is None:
        device = Device(site=site, node=refused.node, name=title, ae_title=title, address=refused.address)
    else:
        # Known, and refused nevertheless: it was out of use, or it calls from another address than we were told.
        device.is_active, device.address = True, refused.address
    save_device(device, request)
    RefusedAssociation.objects.filter(node=refused.node, calling_ae_title=title).update(admitted_at=timezone.now())
    record("association.admitted", request=request, entity=device, detail={"calling": title, "node": refused.node.name})
    return device

"""Write audit rows. A row is inserted in the transaction of what it records; the sealer chains it later."""

from datetime import timedelta
from typing import Any

from django.contrib.auth.models import AnonymousUser
from django.db import models
from django.http import HttpRequest
from django.utils import timezone
from rest_framework.request import Request

from ris_central.accounts.models import User
from ris_central.audit.models import AuditEvent

SITTING = timedelta(minutes=30)
"""A person who looks at the same thing again after a longer pause begins another sitting."""


def record(
    action: str,
    *,
    request: HttpRequest | Request | None = None,
    actor: User | AnonymousUser | str | None = None,
    entity: models.Model | tuple[str, object] | None = None,
    patient_key: int | None = None,
    outcome: str = AuditEvent.Outcome.SUCCESS,
    detail: dict[str, Any] | None = None,
) -> AuditEvent:
    """Write that somebody did, saw or was refused something.

    Args:
        action: ``noun.verb``, e.g. ``study.viewed``.
        request: gives the actor and the address; ``actor`` overrides the former (a user, or the name of a machine).
        entity: what it was done to; a model instance or ``(type, id)``.
        patient_key: primary key of the patient concerned, so that a patient can be told who looked.
        outcome: success, refused or failure.
        detail: JSON values; no patient names.
    """
    if actor is None and request is not None:
        actor = request.user
    user = actor if isinstance(actor, User) else None
    if isinstance(entity, models.Model):
        entity_type, entity_id = entity._meta.label_lower, str(entity.pk)
    else:
        entity_type, entity_id = (entity[0], str(entity[1])) if entity else ("", "")
    return AuditEvent.objects.create(
        occurred_at=timezone.now(),
        actor=user,
        actor_name=(user.username if user else actor if isinstance(actor, str) else "")[:150],
        action=action[:64],
        outcome=outcome,
        entity_type=entity_type[:64],
        entity_id=entity_id[:128],
        patient_key=patient_key,
        address=address_of(request),
        detail=detail or {},
    )


def record_view(
    action: str,
    *,
    request: HttpRequest | Request,
    entity: models.Model,
    patient_key: int | None = None,
    detail: dict[str, Any] | None = None,
) -> None:
    """One row a person, thing and sitting, however often it is looked at meanwhile."""
    recent = AuditEvent.objects.filter(
        action=action,
        actor=request.user.pk,
        entity_type=entity._meta.label_lower,
        entity_id=str(entity.pk),
        outcome=AuditEvent.Outcome.SUCCESS,
        occurred_at__gte=timezone.now() - SITTING,
    )
    if not recent.exists():
        record(action, request=request, entity=entity, patient_key=patient_key, detail=detail)


def address_of(request: HttpRequest | Request | None) -> str:
    """Where the request came from; empty for what the region does by itself."""
    return str(request.META.get("REMOTE_ADDR") or "")[:64] if request is not None else ""

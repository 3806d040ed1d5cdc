"""Two rows that are one person become one, and two again when that was wrong."""

from collections.abc import Iterator
from typing import Any

from django.db import IntegrityError, models, transaction
from django.http import HttpRequest
from django.utils import timezone
from rest_framework.request import Request

from ris_central.accounts.models import User
from ris_central.audit.actions import record
from ris_central.patients.models import Patient, PatientMerge
from standards.errors import ConflictError

AnyRequest = HttpRequest | Request | None


@transaction.atomic
def merge(
    source: Patient, target: Patient, *, request: AnyRequest = None, actor: User | str | None = None
) -> PatientMerge:
    """Give everything that hangs on ``source`` to ``target``: numbers, orders, studies, links. ``target``'s name stays.

    What ``target`` has already (the same site, the same study) stays where it is.

    Raises: ConflictError("same-patient", "merged-already").
    """
    if source.pk == target.pk:
        raise ConflictError("same-patient", "A patient cannot be merged with itself.")
    both = {
        patient.pk: patient
        for patient in Patient.objects.select_for_update(of=("self",))
        .filter(pk__in=[source.pk, target.pk])
        .order_by("pk")
    }
    source, target = both[source.pk], both[target.pk]
    if source.merged_into_id or target.merged_into_id:
        raise ConflictError("merged-already", "One of them is merged already: look again.")
    moved: dict[str, list[int]] = {}
    for model, field in _holders():
        for key in model._base_manager.filter(**{field: source}).values_list("pk", flat=True).order_by("pk"):
            try:
                with transaction.atomic():
                    model._base_manager.filter(pk=key).update(**{field: target})
            except IntegrityError:
                continue  # the target has one like it, which says the same
            moved.setdefault(f"{model._meta.label_lower}.{field}", []).append(key)
    source.merged_into = target
    source.save(update_fields=["merged_into"])
    done = PatientMerge.objects.create(source=source, target=target, moved=moved)
    _recorded("patient.merged", done, request, actor)
    return done


@transaction.atomic
def unmerge(done: PatientMerge, *, request: AnyRequest = None, actor: User | str | None = None) -> None:
    """Give back exactly what was moved. Undoing twice changes nothing."""
    done = PatientMerge.objects.select_for_update(of=("self",)).select_related("source", "target").get(pk=done.pk)
    if done.undone_at is not None:
        return
    for model, field in _holders():
        keys = done.moved.get(f"{model._meta.label_lower}.{field}", [])
        model._base_manager.filter(pk__in=keys, **{field: done.target}).update(**{field: done.source})
    Patient.objects.filter(pk=done.source_id).update(merged_into=None)
    done.undone_at = timezone.now()
    done.save(update_fields=["undone_at"])
    _recorded("patient.unmerged", done, request, actor)


def _holders() -> Iterator[tuple[type[models.Model], str]]:
    """Every column of the centre that points to a patient, but those of merges themselves."""
    for relation in Patient._meta.related_objects:
        model: Any = relation.related_model
        if model not in (Patient, PatientMerge):
            yield model, relation.field.name


def _recorded(action: str, done: PatientMerge, request: AnyRequest, actor: User | str | None) -> None:
    who = actor if actor is not None else None if request else "centre"
    detail = {"source": done.source_id, "target": done.target_id, "moved": {k: len(v) for k, v in done.moved.items()}}
    record(action, request=request, actor=who, entity=done.target, patient_key=done.target_id, detail=detail)

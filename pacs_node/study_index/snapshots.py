"""The rows of an instance as one journal line: what was let go of has no file here to restore them from."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.db import models, transaction
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from gateway.actions import restore_receipt
from gateway.models import Delivery
from pacs_node.storage.models import Holding
from pacs_node.study_index.copies import received_key
from pacs_node.study_index.models import Instance, Series, Study

_NOT_KEPT = {"id", "study", "series", "updated_at", "created_at", "released_at", "path", "instances_count"}


def let_go_lines(kind: str, instances: Iterable[Instance], at: datetime) -> list[dict[str, Any]]:
    """A journal line for each instance that is let go of: its rows, and the receipts that prove its copies."""
    chosen = list(instances)
    receipts: dict[int, list[dict[str, Any]]] = {}
    for start in range(0, len(chosen), 500):
        keys = [instance.pk for instance in chosen[start : start + 500]]
        for row in Delivery.objects.filter(instance_key__in=keys, status=Delivery.Status.RECEIPTED):
            receipts.setdefault(row.instance_key, []).append(
                {"destination": row.destination, "at": _text(row.receipted_at), "receipt": row.receipt}
            )
    return [
        {
            "type": kind,
            "at": at.isoformat(),
            "path": received_key(instance),
            "sop_instance_uid": instance.sop_instance_uid,
            "dataset_sha256": instance.dataset_sha256,
            "received_at": _text(instance.created_at),
            "rows": {
                "study": _values(instance.series.study),
                "series": _values(instance.series),
                "instance": _values(instance),
            },
            "receipts": receipts.get(instance.pk, []),
        }
        for instance in chosen
    ]


def _text(at: datetime | None) -> str:
    return at.isoformat() if at else ""


def _values(row: models.Model) -> dict[str, Any]:
    return {f.name: f.value_from_object(row) for f in row._meta.concrete_fields if f.name not in _NOT_KEPT}


@transaction.atomic
def restore_let_go(line: dict[str, Any], *, released: bool, copied_at: str = "") -> bool:
    """The rows of an instance that was let go of, from its journal line; False when the index has it.

    ``released``: it was given up; else it is away, and fetched back when somebody asks for it.
    """
    rows, at = line["rows"], parse_datetime(str(line["at"])) or timezone.now()
    known = Instance.objects.filter(
        sop_instance_uid=line["sop_instance_uid"], dataset_sha256=line["dataset_sha256"]
    ).exists()
    if known:
        return False
    identity = {name: rows["study"][name] for name in ("study_instance_uid", "patient_id", "issuer_of_patient_id")}
    study, _ = Study.objects.get_or_create(**identity, defaults=rows["study"])
    series, _ = Series.objects.get_or_create(
        study=study, series_instance_uid=rows["series"]["series_instance_uid"], defaults=rows["series"]
    )
    instance = Instance.objects.create(
        series=series, path=line["path"], released_at=at if released else None, **rows["instance"]
    )
    received = parse_datetime(str(line.get("received_at", "")))
    if received is not None:
        Instance.objects.filter(pk=instance.pk).update(created_at=received)
    if not released or copied_at:
        Holding.objects.create(
            instance=instance,
            away_at=None if released else at,
            institution_verified_at=parse_datetime(copied_at) if copied_at else None,
        )
    for receipt in line.get("receipts", []):
        restore_receipt(
            instance_key=instance.pk,
            series_key=series.pk,
            study_instance_uid=study.study_instance_uid,
            sop_instance_uid=instance.sop_instance_uid,
            dataset_sha256=instance.dataset_sha256,
            destination=receipt["destination"],
            receipt=receipt["receipt"],
            receipted_at=parse_datetime(receipt["at"]) or at,
        )
    return True

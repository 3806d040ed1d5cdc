"""Writing down that node and centre differed."""

from typing import Any

from ris_central.audit.actions import record
from ris_central.federation.models import Node
from ris_central.orders.models import ReturnDifference, ServiceRequest
from ris_central.orders.rules import FIELDS, HAPPENINGS
from ris_central.patients.models import Patient
from ris_central.patients.queries import alike


def note(
    node: Node,
    rule: str,
    *,
    order: ServiceRequest | None = None,
    patient: Patient | None = None,
    field: str = "",
    before: str = "",
    node_value: str = "",
    centre_value: str = "",
    kept: str = "",
    **detail: Any,
) -> ReturnDifference:
    """Keep a difference, with what the rule decided, and say so in the audit trail (without names)."""
    row = FIELDS[field] if rule == "field" else HAPPENINGS[rule]
    state = ReturnDifference.State.OPEN if row.asks else ReturnDifference.State.BY_RULE
    made = ReturnDifference.objects.create(
        node=node,
        site=node.site,
        service_request=order,
        patient=patient or (order.patient if order else None),
        rule=rule,
        field=field,
        before=before,
        node_value=node_value,
        centre_value=centre_value,
        kept=kept or row.keeps,
        state=state,
        detail=detail,
    )
    record(
        "return.differs",
        actor=node.name,
        entity=made,
        patient_key=made.patient_id,
        detail={"rule": rule, "field": field, "kept": made.kept},
    )
    return made


def propose_alike(node: Node, patient: Patient) -> None:
    """Propose those whom the centre knows by a name that sounds alike, and the same birth date and sex."""
    for other in alike(patient.name, patient.birth_date).exclude(pk=patient.pk).filter(sex=patient.sex)[:3]:
        note(
            node,
            "patient-alike",
            patient=patient,
            node_value=_numbered(patient),
            centre_value=_numbered(other),
            other=other.pk,
        )


def _numbered(patient: Patient) -> str:
    return f"{patient} {', '.join(patient.identifiers.values_list('value', flat=True)[:3])}"

"""How a scheduled procedure step may move. One table; what is not in it is refused."""

from ris_central.orders.models import ScheduledProcedureStep
from standards.errors import ConflictError

S = ScheduledProcedureStep.Status

STEP: dict[str, frozenset[str]] = {
    S.SCHEDULED: frozenset({S.IN_PROGRESS, S.COMPLETED, S.CANCELLED}),
    S.IN_PROGRESS: frozenset({S.COMPLETED, S.CANCELLED}),
    S.COMPLETED: frozenset(),
    S.CANCELLED: frozenset(),
}


def move(step: ScheduledProcedureStep, to: str) -> None:
    """Move a locked step.

    Raises: ConflictError("state-conflict").
    """
    if to not in STEP[step.status]:
        raise ConflictError("state-conflict", f"A step that is {step.status} cannot become {to}.")
    step.status = to
    step.save(update_fields=["status"])

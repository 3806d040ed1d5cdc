"""How a scheduled procedure step may move. One table; what is not in it is refused."""

from ris_central.orders.models import ScheduledProcedureStep
from standards.errors import ConflictError

S = ScheduledProcedureStep.Status

STEP: dict[str, frozenset[str]] = {
    S.SCHEDULED: frozenset({S.IN_PROGRESS, S.COMPLETED, S.CANCELLED, S.REBOOK}),
    S.IN_PROGRESS: frozenset({S.COMPLETED, S.CANCELLED}),
    S.COMPLETED: frozenset(),
    S.CANCELLED: frozenset({S.SCHEDULED, S.IN_PROGRESS}),
    S.REBOOK: frozenset({S.SCHEDULED, S.IN_PROGRESS, S.CANCELLED}),
}
"""From cancelled only a node's facts lead back, or a person who decides a difference otherwise (orders.returns)."""
LIVE = frozenset({S.SCHEDULED, S.IN_PROGRESS, S.COMPLETED})
"""States in which a step takes its time on the device."""


def move(step: ScheduledProcedureStep, to: str) -> None:
    """Move a locked step.

    Raises: ConflictError("state-conflict").
    """
    check(step, to)
    step.status = to
    step.save(update_fields=["status"])


def check(step: ScheduledProcedureStep, to: str) -> None:
    """Raises: ConflictError("state-conflict") when the step cannot move so."""
    if to not in STEP[step.status]:
        raise ConflictError("state-conflict", f"A step that is {step.status} cannot become {to}.")

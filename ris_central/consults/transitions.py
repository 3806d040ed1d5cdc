"""How a consult may move (FHIR Task.status). One table; what is not in it is refused."""

from ris_central.consults.models import Consult
from standards.errors import ConflictError

S = Consult.Status

CONSULT: dict[str, frozenset[str]] = {
    S.REQUESTED: frozenset({S.ACCEPTED, S.REJECTED, S.CANCELLED}),
    S.ACCEPTED: frozenset({S.REQUESTED, S.IN_PROGRESS, S.COMPLETED, S.REJECTED, S.CANCELLED}),
    S.IN_PROGRESS: frozenset({S.COMPLETED, S.REJECTED, S.CANCELLED}),
    S.COMPLETED: frozenset(),
    S.REJECTED: frozenset(),
    S.CANCELLED: frozenset(),
}
OPEN = frozenset({S.REQUESTED, S.ACCEPTED, S.IN_PROGRESS})


def move(consult: Consult, to: str) -> None:
    """Move a locked consult; the caller saves it.

    Raises: ConflictError("state-conflict").
    """
    if to not in CONSULT[consult.status]:
        raise ConflictError("state-conflict", f"A consult that is {consult.status} cannot become {to}.")
    consult.status = to

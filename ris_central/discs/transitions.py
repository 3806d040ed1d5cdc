"""How a disc job may move. One table; what is not in it is refused."""

from ris_central.discs.models import DiscJob
from standards.errors import ConflictError

S = DiscJob.Status

DISC: dict[str, frozenset[str]] = {
    S.REQUESTED: frozenset({S.COLLECTING, S.CANCELLED, S.FAILED}),
    S.COLLECTING: frozenset({S.BUILDING, S.FAILED, S.CANCELLED}),
    S.BUILDING: frozenset({S.COLLECTING, S.VERIFYING, S.FAILED, S.CANCELLED}),
    S.VERIFYING: frozenset({S.COLLECTING, S.COMPLETED, S.FAILED, S.CANCELLED}),
    S.FAILED: frozenset({S.REQUESTED, S.CANCELLED}),
    S.COMPLETED: frozenset(),
    S.CANCELLED: frozenset(),
}
RUNNING = frozenset({S.REQUESTED, S.COLLECTING, S.BUILDING, S.VERIFYING})


def check(now: str, to: str) -> None:
    """Raises: ConflictError("state-conflict")."""
    if to not in DISC[now]:
        raise ConflictError("state-conflict", f"A disc that is {now} cannot become {to}.")

"""How a report may move (FHIR DiagnosticReport.status). One table; what is not in it is refused."""

from ris_central.reporting.models import Report
from standards.errors import ConflictError

S = Report.Status

REPORT: dict[str, frozenset[str]] = {
    S.PARTIAL: frozenset({S.PRELIMINARY, S.FINAL, S.CANCELLED}),
    S.PRELIMINARY: frozenset({S.PARTIAL, S.FINAL, S.CANCELLED}),
    S.FINAL: frozenset({S.APPENDED}),
    S.APPENDED: frozenset({S.APPENDED}),
    S.CANCELLED: frozenset(),
}
WRITABLE = frozenset({S.PARTIAL, S.PRELIMINARY})
SIGNED = frozenset({S.FINAL, S.APPENDED})


def move(report: Report, to: str) -> None:
    """Move a locked report; the caller saves it.

    Raises: ConflictError("state-conflict").
    """
    if to not in REPORT[report.status]:
        raise ConflictError("state-conflict", f"A report that is {report.status} cannot become {to}.")
    report.status = to

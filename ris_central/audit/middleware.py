"""Every refusal leaves a row."""

from django.http import HttpRequest, HttpResponseBase
from django.utils.deprecation import MiddlewareMixin

from ris_central.audit.actions import record
from ris_central.audit.models import AuditEvent


class AuditMiddleware(MiddlewareMixin):
    """Record answers 401 and 403, and pages that a stranger asked for and was sent to log in.

    ``/federation/v1/`` is left to federation: who is refused there is a node, not a person.
    """

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        """Runs after the view, also when it raised."""
        refused = response.status_code in (401, 403) or getattr(request, "sent_to_login", False)
        match = request.resolver_match
        if refused and match is not None and not request.path.startswith("/federation/"):
            record(
                "request.refused",
                request=request,
                entity=("url", match.view_name or request.path),
                outcome=AuditEvent.Outcome.REFUSED,
                detail={"method": request.method, "path": request.path[:500], "status": response.status_code},
            )
        return response

"""A person with a one-time password changes it before anything else."""

from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect
from django.utils.deprecation import MiddlewareMixin

from gateway.envelope import problem

_OPEN = ("password_change", "logout", "login", "set_language")


class PasswordChangeMiddleware(MiddlewareMixin):
    """Send every page of such a person to the password page; programs are refused."""

    def process_view(self, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> HttpResponse | None:
        """Runs when the URL is resolved and the session's user is known."""
        if not getattr(request.user, "must_change_password", False):
            return None
        if request.resolver_match is not None and request.resolver_match.url_name in _OPEN:
            return None
        if request.path.startswith(("/api/", "/dicom-web/")):
            title = "Change your one-time password first."
            document = problem("password-change-required", title, 403)
            return JsonResponse(document, status=403, content_type="application/problem+json")
        return redirect("password_change")

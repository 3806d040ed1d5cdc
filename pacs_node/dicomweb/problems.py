"""Errors of the web services as RFC 9457 problem documents; the one place where codes become HTTP statuses."""

from typing import Any, Final

from django.http import HttpResponse, JsonResponse

from gateway.envelope import problem
from standards.errors import PermanentError, RegisError, TransientError

_STATUS: Final = {
    "token-missing": 401,
    "token-not-accepted": 401,
    "token-expired": 401,
    "token-wrong-audience": 401,
    "token-invalid": 401,
    "study-not-granted": 403,
    "operation-not-granted": 403,
    "csrf-failed": 403,
    "not-found": 404,
    "instance-gone": 410,
    "no-such-frame": 404,
    "no-pixel-data": 404,
    "not-acceptable": 406,
    "cannot-decode": 406,
    "cannot-render": 406,
    "ambiguous-fragments": 406,
    "frame-too-large": 406,
    "invalid-image": 406,
    "study-pinned": 409,
    "not-delivered": 409,
    "payload-too-large": 413,
    "unsupported-media-type": 415,
    "storage-full": 507,
}


class Refused(PermanentError):
    """The request lacks the right for what it asks."""


def status_of(error: RegisError) -> int:
    """The HTTP status for an error: by code, else 503 for what may work later and 400 for what never will."""
    return _STATUS.get(error.code, 503 if isinstance(error, TransientError) else 400)


def problem_response(code: str, title: str, status: int, **extra: Any) -> HttpResponse:
    """A problem document. 401 names the scheme that is wanted, 503 when to come back."""
    response = JsonResponse(problem(code, title, status, **extra), status=status)
    response["Content-Type"] = "application/problem+json"
    response["Cache-Control"] = "no-store"
    if status == 401:
        response["WWW-Authenticate"] = 'Bearer realm="regis"'
    if status == 503:
        response["Retry-After"] = "5"
    return response


def error_response(error: RegisError) -> HttpResponse:
    """The problem document of ``error``."""
    return problem_response(error.code, error.detail or error.code, status_of(error))

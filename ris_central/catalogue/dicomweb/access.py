"""Who asks the region's DICOMweb, and what of it they may have."""

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from gateway.envelope import problem
from ris_central.accounts.authentication import ApiTokenAuthentication
from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, can
from standards.errors import PermanentError, RegisError

_STATUS = {
    "not-logged-in": 401,
    "token-invalid": 401,
    "may-not-see-studies": 403,
    "study-uid-shared": 409,
    "not-found": 404,
    "bad-query": 400,
    "not-served-here": 404,
}
AsyncView = Callable[..., Coroutine[Any, Any, HttpResponseBase]]


def problem_response(error: RegisError, status: int | None = None, **extra: Any) -> HttpResponse:
    """The problem document of an error; codes become HTTP statuses here and nowhere else."""
    code = status or _STATUS.get(error.code, 400 if isinstance(error, PermanentError) else 503)
    response = JsonResponse(problem(error.code, error.detail or error.code, code, **extra), status=code)
    response["Content-Type"] = "application/problem+json"
    response["Cache-Control"] = "no-store"
    if code == 401:
        response["WWW-Authenticate"] = 'Bearer realm="Regis"'
    if code == 503:
        response["Retry-After"] = "5"
    return response


def user_of(request: HttpRequest) -> User:
    """The user of an API token or of the session.

    Raises: PermanentError "not-logged-in", "token-invalid", "may-not-see-studies".
    """
    try:
        found = ApiTokenAuthentication().authenticate(Request(request))
    except AuthenticationFailed as error:
        raise PermanentError("token-invalid", str(error.detail)) from error
    user: User | AnonymousUser = found[0] if found else request.user
    if not isinstance(user, User):
        raise PermanentError("not-logged-in", "Log in, or send an API token.")
    if not can(user, Capability.SEE_STUDIES):
        raise PermanentError("may-not-see-studies", "Your role does not see studies.")
    return user


def for_people(view: AsyncView) -> AsyncView:
    """An async view that gets the user as second argument; refusals and errors become problem documents."""

    @wraps(view)
    async def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if request.method not in ("GET", "HEAD"):
            return HttpResponse(status=405, headers={"Allow": "GET, HEAD"})
        try:
            user = await sync_to_async(user_of)(request)
            request.user = user
            return await view(request, user, *args, **kwargs)
        except RegisError as error:
            return problem_response(error)

    return guarded

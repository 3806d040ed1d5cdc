"""Who may do what: one table from role to capabilities, and decorators that enforce it. Not listed means refused."""

from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from typing import Any

from django.contrib.auth.models import AnonymousUser
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import resolve_url
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.views import APIView

from ris_central.accounts.models import Role, User


class Capability(StrEnum):
    """Something that a role may do. Which objects it may do it to, ``visible_to(user)`` of each app says."""

    ENTER = "enter"
    """Log in and see one's own account."""
    SEE_PATIENTS = "see patients"
    SEE_STUDIES = "see studies"
    SEE_SCHEDULE = "see the schedule"
    BOOK = "book"
    REPORT = "report"
    CONSULT = "consult"
    """Ask a reference centre."""
    OPINE = "opine"
    """Answer a consult."""
    BURN = "burn"
    SEE_SITES = "see sites"
    CONNECT = "connect devices"
    ADMINISTER = "administer"
    READ_AUDIT = "read audit"


C = Capability
ROLE_CAPABILITIES: dict[str, frozenset[Capability]] = {
    Role.RADIOLOGIST: frozenset(
        {C.ENTER, C.SEE_PATIENTS, C.SEE_STUDIES, C.SEE_SCHEDULE, C.REPORT, C.CONSULT, C.SEE_SITES}
    ),
    Role.EXPERT: frozenset({C.ENTER, C.SEE_PATIENTS, C.SEE_STUDIES, C.OPINE}),
    Role.REGISTRAR: frozenset({C.ENTER, C.SEE_PATIENTS, C.SEE_STUDIES, C.SEE_SCHEDULE, C.BOOK}),
    Role.CLERK: frozenset({C.ENTER, C.SEE_PATIENTS, C.SEE_STUDIES, C.BURN}),
    Role.ENGINEER: frozenset({C.ENTER, C.SEE_SITES, C.CONNECT}),
    Role.ADMINISTRATOR: frozenset(
        {
            C.ENTER,
            C.SEE_PATIENTS,
            C.SEE_STUDIES,
            C.SEE_SCHEDULE,
            C.SEE_SITES,
            C.CONNECT,
            C.ADMINISTER,
            C.READ_AUDIT,
        }
    ),
}


def can(user: User | AnonymousUser, capability: Capability) -> bool:
    """Whether the role of this user has the capability; nobody who is not active has any."""
    if not isinstance(user, User) or not user.is_active:
        return False
    return capability in ROLE_CAPABILITIES.get(user.role, frozenset())


View = Callable[..., HttpResponseBase]


def requires(*capabilities: Capability) -> Callable[[View], View]:
    """A view for those who have any of the capabilities; strangers are sent to log in, others are refused.

    Raises: PermissionDenied.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if not request.user.is_authenticated:
                return to_login(request)
            if not any(can(request.user, capability) for capability in capabilities):
                raise PermissionDenied
            return view(request, *args, **kwargs)

        return guarded

    return decorate


def to_login(request: HttpRequest) -> HttpResponseBase:
    """Send a stranger to the login page and back here afterwards; htmx is told to load the whole page."""
    request.sent_to_login = True  # type: ignore[attr-defined]  # the audit trail counts it as a refusal
    if request.headers.get("HX-Request"):
        answer = HttpResponse(status=401)
        answer["HX-Redirect"] = resolve_url("login")
        return answer
    return redirect_to_login(request.get_full_path() if request.method == "GET" else "/", resolve_url("login"))


def may(*capabilities: Capability) -> type[BasePermission]:
    """The DRF permission class of those who have any of the capabilities."""

    class May(BasePermission):
        def has_permission(self, request: Request, view: APIView) -> bool:
            return any(can(request.user, capability) for capability in capabilities)

    return May


def may_by_method(**methods: Capability) -> type[BasePermission]:
    """The DRF permission class with a capability a method: ``may_by_method(GET=…, POST=…)``; others are refused."""

    class MayByMethod(BasePermission):
        def has_permission(self, request: Request, view: APIView) -> bool:
            if request.method in ("HEAD", "OPTIONS"):
                capability = methods.get("GET")
            else:
                capability = methods.get(request.method or "")
            return capability is not None and can(request.user, capability)

    return MayByMethod

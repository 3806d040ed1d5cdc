"""One's own account over REST, and errors of the API as RFC 9457 problem documents."""

from typing import Any

from django.core.exceptions import PermissionDenied as DjangoPermissionDenied
from django.core.exceptions import ValidationError as DjangoValidationError
from django.http import Http404
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework import exceptions, serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter
from rest_framework.views import APIView, set_rollback

from gateway.envelope import problem
from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, can, may
from standards.errors import ConflictError, ForbiddenError, PermanentError, RegisError


class ApiTokenScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]  # its hook has no types
    """How the schema describes the token."""

    target_class = "ris_central.accounts.authentication.ApiTokenAuthentication"
    name = "apiToken"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        """HTTP bearer."""
        return {"type": "http", "scheme": "bearer"}


class ApiRouter(SimpleRouter):
    """Addresses of REST: they are named without a slash at the end, and one is taken as well."""

    def __init__(self) -> None:
        super().__init__()
        self.trailing_slash = "/?"


def without_slash(endpoints: list[tuple[str, str, str, Any]]) -> list[tuple[str, str, str, Any]]:
    """The schema names each address once, as the router reverses it."""
    return [(path.rstrip("/"), regex, method, view) for path, regex, method, view in endpoints]


def status_of(error: RegisError) -> int:
    """The HTTP status that tells of an error of ours, the same on pages and in REST."""
    if isinstance(error, ConflictError):
        return 409
    if isinstance(error, ForbiddenError):
        return 403
    return 422 if isinstance(error, PermanentError) else 503


def problem_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    """Map an exception of the API to ``application/problem+json``; None lets Django answer 500."""
    headers: dict[str, str] = {}
    extra: dict[str, Any] = {}
    if isinstance(error, Http404):
        error = exceptions.NotFound()
    elif isinstance(error, DjangoPermissionDenied):
        error = exceptions.PermissionDenied()
    elif isinstance(error, DjangoValidationError):
        error = exceptions.ValidationError({"detail": error.messages})
    if isinstance(error, RegisError):
        code, title, status = error.code, error.detail or error.code, status_of(error)
        if status == 503:
            headers["Retry-After"] = "5"
    elif isinstance(error, exceptions.ValidationError):
        code, title, status = "invalid", "Some fields are not as they must be.", 400
        extra["errors"] = error.detail
    elif isinstance(error, exceptions.APIException):
        codes = error.get_codes()
        code, title, status = str(codes if isinstance(codes, str) else "error"), str(error.detail), error.status_code
        code = code.replace("_", "-")
        if header := getattr(error, "auth_header", None):
            headers["WWW-Authenticate"] = header
        if wait := getattr(error, "wait", None):
            headers["Retry-After"] = str(int(wait))
    else:
        return None
    set_rollback()
    return Response(
        problem(code, title, status, **extra), status=status, headers=headers, content_type="application/problem+json"
    )


class MeSerializer(serializers.Serializer[User]):
    """The account of who asks."""

    username = serializers.CharField()
    full_name = serializers.CharField()
    role = serializers.CharField()
    language = serializers.CharField()
    capabilities = serializers.ListField(child=serializers.CharField())


class MeView(APIView):
    """Who am I, and what may I do."""

    permission_classes = [may(Capability.ENTER)]
    serializer_class = MeSerializer

    def get(self, request: Request) -> Response:
        """The account of who asks."""
        user = request.user
        if not isinstance(user, User):
            raise exceptions.NotAuthenticated
        return Response(
            {
                "username": user.username,
                "full_name": user.full_name,
                "role": user.role,
                "language": user.language,
                "capabilities": sorted(c.value for c in Capability if can(user, c)),
            }
        )

"""How programs say who they are. (Apart from ``api``: REST framework loads this while it loads itself.)"""

import hmac
from datetime import timedelta

from django.utils import timezone
from rest_framework import exceptions
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.request import Request

from ris_central.accounts.actions import token_digest
from ris_central.accounts.models import ApiToken, User


class ApiTokenAuthentication(BaseAuthentication):
    """``Authorization: Token …`` or ``Bearer …``; only the digest of a token is kept and compared."""

    def authenticate(self, request: Request) -> tuple[User, ApiToken] | None:
        """The user of the token, or None when the request carries none.

        Raises: AuthenticationFailed when it is unknown, revoked or of somebody who is kept out.
        """
        scheme, _, token = get_authorization_header(request).decode("latin-1").partition(" ")
        if scheme.lower() not in ("token", "bearer"):
            return None
        digest = token_digest(token.strip())
        found = ApiToken.objects.select_related("user").filter(digest=digest, revoked_at=None).first()
        if found is None or not hmac.compare_digest(found.digest, digest) or not found.user.is_active:
            raise exceptions.AuthenticationFailed("This API token is not valid.", code="token-invalid")
        if found.user.must_change_password:
            raise exceptions.AuthenticationFailed(
                "Change your one-time password first.", code="password-change-required"
            )
        now = timezone.now()
        if found.last_used_at is None or now - found.last_used_at > timedelta(minutes=1):
            ApiToken.objects.filter(pk=found.pk).update(last_used_at=now)
        return found.user, found

    def authenticate_header(self, request: Request) -> str:
        """What a 401 names in WWW-Authenticate."""
        return 'Bearer realm="Regis"'

"""Logins, logouts, wrong guesses and account changes become audit rows."""

from typing import Any

from django.http import HttpRequest

from ris_central.accounts.models import User
from ris_central.audit.actions import record
from ris_central.audit.models import AuditEvent


def logged_in(sender: object, request: HttpRequest, user: User, **kwargs: Any) -> None:
    """Somebody logged in."""
    record("session.login", request=request, actor=user, entity=user)


def logged_out(sender: object, request: HttpRequest, user: User | None, **kwargs: Any) -> None:
    """Somebody logged out."""
    if user is not None:
        record("session.logout", request=request, actor=user, entity=user)


def login_failed(
    sender: object, credentials: dict[str, Any], request: HttpRequest | None = None, **kwargs: Any
) -> None:
    """A wrong password or an unknown name; the name is kept, the password never."""
    name = str(credentials.get("username", ""))[:150]
    failure = AuditEvent.Outcome.FAILURE
    record("session.login-failed", request=request, actor=name, entity=("username", name), outcome=failure)


def account_changed(action: str, user: User, request: HttpRequest | None, detail: dict[str, Any]) -> None:
    """An account was made, changed, opened or closed."""
    record(action, request=request, actor=None if request else "centre", entity=user, detail=detail)

"""What accounts announces. Higher apps register in ``AppConfig.ready()``; listeners run in the caller's transaction."""

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest

from ris_central.accounts.models import User

AccountListener = Callable[[str, User, HttpRequest | None, dict[str, Any]], None]
_listeners: list[AccountListener] = []


def on_account_changed(listener: AccountListener) -> None:
    """Call ``listener(action, user, request, detail)`` whenever a person's account changes."""
    _listeners.append(listener)


def announce(action: str, user: User, request: HttpRequest | None = None, **detail: Any) -> None:
    """Tell every listener; the first that raises ends the transaction."""
    for listener in _listeners:
        listener(action, user, request, detail)

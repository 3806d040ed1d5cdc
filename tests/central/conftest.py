"""What tests of the centre share."""

from collections.abc import Callable

import pytest
from django.core.cache import cache
from django.db import connection
from django.test import Client
from django.utils import translation

from ris_central.accounts.models import User


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None) -> None:
    """Tests with real transactions empty every table afterwards; the trail lets that happen only there."""
    empty = connection.ops.execute_sql_flush
    trigger = "ALTER TABLE audit_auditevent {} TRIGGER audit_event_not_emptied"

    def empty_with_trail(statements: list[str]) -> None:
        empty([trigger.format("DISABLE"), *statements, trigger.format("ENABLE")])

    pytest.MonkeyPatch().setattr(connection.ops, "execute_sql_flush", empty_with_trail)


@pytest.fixture(autouse=True)
def _quick_and_clean(settings: pytest.FixtureRequest) -> None:
    """A cheap password hash, nothing left over in the cache, and no language of the request before."""
    translation.deactivate()
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # type: ignore[attr-defined]
    cache.clear()


@pytest.fixture
def browser_of() -> Callable[[User | None], Client]:
    """A browser in which this person is logged in; None is a stranger."""

    def open_browser(user: User | None) -> Client:
        client = Client(HTTP_ACCEPT_LANGUAGE="en")
        if user is not None:
            client.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
        return client

    return open_browser

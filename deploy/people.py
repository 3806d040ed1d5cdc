"""The people of the story at their browsers' wire: one login session each, forms and API as their pages use them."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import httpx

from standards.errors import TransientError

T = TypeVar("T")


class Refused(Exception):
    """The centre said no, and what it said."""


class Person:
    """Somebody who is logged in at the centre."""

    def __init__(self, url: str, username: str, password: str) -> None:
        self.username, self.password, self.url = username, password, url
        self._client = httpx.Client(base_url=url, follow_redirects=True, timeout=120)
        page = self._client.get("/login/")
        page.raise_for_status()
        answer = self._client.post(
            "/login/", data={"username": username, "password": password, **self._token()}, headers={"Referer": url}
        )
        if answer.url.path.startswith("/login"):
            raise Refused(f"{username} cannot log in: {answer.status_code}")

    def __enter__(self) -> "Person":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def _token(self) -> dict[str, str]:
        values = [cookie.value for cookie in self._client.cookies.jar if cookie.name.startswith("regis_csrf")]
        return {"csrfmiddlewaretoken": values[-1] or ""} if values else {}

    def get(self, path: str, **query: Any) -> httpx.Response:
        """A page or an API answer. Raises: Refused."""
        return self._checked(self._client.get(path, params=query))

    def json(self, path: str, **query: Any) -> Any:
        """An API answer, decoded."""
        return self.get(path, **query).json()

    def post(self, path: str, data: dict[str, Any]) -> httpx.Response:
        """Send a form. Raises: Refused."""
        headers = {"Referer": self.url + path}
        return self._checked(self._client.post(path, data={**data, **self._token()}, headers=headers))

    def send(self, path: str, body: dict[str, Any]) -> Any:
        """Send JSON to the API. Raises: Refused."""
        headers = {"Referer": self.url + path, "X-CSRFToken": self._token().get("csrfmiddlewaretoken", "")}
        return self._checked(self._client.post(path, json=body, headers=headers)).json()

    @staticmethod
    def _checked(answer: httpx.Response) -> httpx.Response:
        if answer.is_error:
            asked = f"{answer.request.method} {answer.request.url.path}"
            raise Refused(f"{asked}: {answer.status_code} {answer.text[:300]}")
        return answer


def expect_refusal(status: str, act: Callable[[], object]) -> None:
    """Do what must be refused with this HTTP status. Raises: AssertionError when it is not."""
    try:
        act()
    except Refused as refused:
        if f": {status} " not in str(refused):
            raise AssertionError(f"refused otherwise: {refused}") from refused
    else:
        raise AssertionError(f"it was not refused with {status}")


def until(what: str, ask: Callable[[], T | None], seconds: float = 240) -> T:
    """Ask until there is an answer.

    Raises: TransientError("not-in-time") that says what was waited for.
    """
    end = time.monotonic() + seconds
    while True:
        found = ask()
        if found:
            return found
        if time.monotonic() > end:
            raise TransientError("not-in-time", f"after {seconds:.0f} s still not: {what}")
        time.sleep(0.2)

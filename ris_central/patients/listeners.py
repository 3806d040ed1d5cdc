"""How higher apps open patients to people who are not of the patient's site (a consult, a share)."""

from collections.abc import Callable
from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest

from ris_central.accounts.models import User
from ris_central.patients.models import Patient

Grants = Callable[[User], "QuerySet[Any, int]"]
PanelContext = Callable[[HttpRequest, Patient], dict[str, Any] | None]
_grants: list[Grants] = []
_panels: list[tuple[int, str, PanelContext]] = []


def add_grants(grants: Grants) -> None:
    """``grants(user)`` is a subquery of keys of the patients opened to this user; it is asked for every list."""
    _grants.append(grants)


def grants_of(user: User) -> "list[QuerySet[Any, int]]":
    """All subqueries for this user."""
    return [grants(user) for grants in _grants]


def add_panel(template: str, context: PanelContext, order: int) -> None:
    """Add a part to the patient page; rendered where ``context(request, patient)`` gives a dict."""
    _panels.append((order, template, context))
    _panels.sort(key=lambda panel: panel[0])


def panels(request: HttpRequest, patient: Patient) -> list[tuple[str, dict[str, Any]]]:
    """``(template, context)`` of every part of the patient page that this person sees."""
    found = ((template, context(request, patient)) for _, template, context in _panels)
    return [(template, context) for template, context in found if context is not None]

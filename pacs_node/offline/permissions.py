"""Who may register patients at the node, and who may write drafts of reports."""

from collections.abc import Callable
from functools import wraps
from typing import Any
from urllib.parse import urlencode

from django.contrib.auth.models import AnonymousUser, User
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse

from pacs_node.clinic import audit
from pacs_node.clinic.models import RosterMember

REGISTRAR_ROLES = frozenset({"registrar", "radiologist", "administrator", "regional_administrator"})
WRITER_ROLES = frozenset({"radiologist"})
View = Callable[..., HttpResponse]


def _role(user: User) -> str | None:
    return RosterMember.objects.filter(user=user).values_list("role", flat=True).first()


def may_register(user: User | AnonymousUser) -> bool:
    """Registrars and doctors of the roster, and people whose login was made at this node."""
    if not isinstance(user, User) or not user.is_active:
        return False
    role = _role(user)
    return role is None or role in REGISTRAR_ROLES


def may_write_drafts(user: User | AnonymousUser) -> bool:
    """Doctors of the roster: the centre must know whose text it is."""
    return isinstance(user, User) and user.is_active and _role(user) in WRITER_ROLES


def requires(allowed: Callable[[User | AnonymousUser], bool]) -> Callable[[View], View]:
    """A view for those of whom ``allowed`` holds; strangers log in, others are refused and it is written down."""

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            if not request.user.is_authenticated:
                return redirect(f"{reverse('login')}?{urlencode({'next': request.get_full_path()})}")
            if not allowed(request.user):
                audit.record(
                    "page.refused",
                    actor=request.user.get_username(),
                    outcome="refused",
                    entity=request.path,
                    address=str(request.META.get("REMOTE_ADDR", "")),
                )
                return render(request, "offline/refused.html", status=403)
            return view(request, *args, **kwargs)

        return guarded

    return decorate

"""Log in, log out, language, password, and the pages that say why something was refused and what to do next."""

from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import update_session_auth_hash
from django.contrib.auth.views import LoginView, LogoutView
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import redirect, render
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST

from gateway.envelope import problem
from ris_central.accounts import actions
from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, can, requires

_API = ("/api/", "/dicom-web/", "/federation/", "/fhir/")


class Login(LoginView):
    """The login page. Wrong guesses are counted by axes; the tenth locks the account for a quarter of an hour."""

    template_name = "accounts/login.html"
    redirect_authenticated_user = True

    def form_valid(self, form: Any) -> HttpResponse:
        """Show the pages in the person's own language from here on."""
        answer = super().form_valid(form)
        _remember_language(answer, form.get_user().language)
        return answer


class Logout(LogoutView):
    """Ends the session; only by POST."""

    http_method_names = ["post"]


def _remember_language(answer: HttpResponseBase, language: str) -> None:
    answer.set_cookie(
        settings.LANGUAGE_COOKIE_NAME,
        language,
        max_age=365 * 24 * 3600,
        httponly=True,
        secure=settings.SESSION_COOKIE_SECURE,
        samesite="Lax",
    )


@require_POST
def language(request: HttpRequest) -> HttpResponse:
    """Switch between Russian and English; remembered with the account."""
    chosen = request.POST.get("language", "")
    target = request.POST.get("next", "")
    if not url_has_allowed_host_and_scheme(target, {request.get_host()}, request.is_secure()):
        target = "/"
    answer = redirect(target)
    if chosen in dict(settings.LANGUAGES):
        if isinstance(request.user, User):
            actions.set_language(request.user, chosen)
        _remember_language(answer, chosen)
    return answer


@requires(Capability.ENTER)
@require_http_methods(["GET", "POST"])
def password_change(request: HttpRequest) -> HttpResponse:
    """A person's own password; the only page for who came with a one-time one."""
    user = request.user
    assert isinstance(user, User)
    errors: list[str] = []
    if request.method == "POST":
        old, new, again = (
            request.POST.get(name, "") for name in ("old_password", "new_password", "new_password_again")
        )
        if not user.check_password(old):
            errors = [_("The current password is not right.")]
        elif new != again:
            errors = [_("The two new passwords differ.")]
        else:
            try:
                actions.change_password(user, new, request)
            except ValidationError as error:
                same = getattr(error, "code", "") == "same"
                errors = [_("The new password is the old one.")] if same else list(error.messages)
            else:
                update_session_auth_hash(request, user)
                messages.success(request, _("Your password is changed."))
                return redirect("home")
    return render(request, "accounts/password_change.html", {"errors": errors}, status=422 if errors else 200)


HOME = (
    (Capability.OPINE, "consults"),
    (Capability.BURN, "discs"),
    (Capability.BOOK, "schedule"),
    (Capability.SEE_STUDIES, "worklist"),
    (Capability.SEE_SITES, "sites"),
)


@requires(Capability.ENTER)
def home(request: HttpRequest) -> HttpResponse:
    """The page where this person's day begins."""
    user = request.user
    assert isinstance(user, User)
    return redirect(next(name for capability, name in HOME if can(user, capability)))


def locked_out(request: HttpRequest, response: HttpResponse | None, credentials: dict[str, Any] | None) -> HttpResponse:
    """Ten wrong guesses: nothing of this account is tried for 15 minutes."""
    minutes = round(float(settings.AXES_COOLOFF_TIME) * 60)
    context = {"minutes": minutes, "username": (credentials or {}).get("username", "")}
    return render(request, "accounts/locked.html", context, status=403)


def _refusal(request: HttpRequest, status: int, code: str, title: str, advice: str) -> HttpResponse:
    if request.path.startswith(_API):
        document = problem(code, title, status)
        return JsonResponse(document, status=status, content_type="application/problem+json")
    context = {"status": status, "title": title, "advice": advice}
    return render(request, "accounts/error.html", context, status=status)


def bad_request(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """400."""
    title = _("This request cannot be understood")
    return _refusal(request, 400, "bad-request", title, _("Go back, reload the page and try again."))


def permission_denied(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """403."""
    title = _("This is not open to you")
    advice = _("Your role does not include it. If your work needs it, ask the regional administrator for the role.")
    return _refusal(request, 403, "permission-denied", title, advice)


def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """404; also for what exists and is not visible to this person, so that nobody learns that it exists."""
    title = _("There is nothing here for you")
    advice = _("The link is old or mistyped, or the record belongs to a site that you do not work at.")
    return _refusal(request, 404, "not-found", title, advice)


def server_error(request: HttpRequest) -> HttpResponse:
    """500, without touching the database."""
    title = "Regis failed at this — Сбой"
    if request.path.startswith(_API):
        return JsonResponse(problem("internal-error", title, 500), status=500, content_type="application/problem+json")
    return render(None, "accounts/500.html", status=500)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """A form that was not sent from our own page, or whose session ended meanwhile."""
    title = _("This form is out of date")
    advice = _("You logged in or out since it was opened, or cookies are off. Reload the page and send it again.")
    return _refusal(request, 403, "csrf-failed", title, advice)

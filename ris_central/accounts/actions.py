"""Every change of an account. Each is announced in its transaction, so that it is audited and reaches the nodes."""

import hashlib
import secrets

from axes.utils import reset as reset_guesses
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.http import HttpRequest
from django.utils import timezone

from ris_central.accounts.listeners import announce
from ris_central.accounts.models import ApiToken, Role, User
from standards.errors import ConflictError, PermanentError

# No look-alikes (0 O, 1 l I): a one-time password is read from one screen and typed at another.
_ALPHABET = "abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"


def one_time_password() -> str:
    """Twelve random characters in three groups."""
    return "-".join("".join(secrets.choice(_ALPHABET) for _ in range(4)) for _ in range(3))


@transaction.atomic
def create_user(
    *,
    username: str,
    role: str,
    full_name: str = "",
    position: str = "",
    language: str = "ru",
    password: str | None = None,
    request: HttpRequest | None = None,
) -> tuple[User, str]:
    """Make a person; returns it and the password. Without a given one it is one-time and must be changed.

    Raises: PermanentError("username-taken", "unknown-role").
    """
    if role not in Role.values:
        raise PermanentError("unknown-role", role)
    given = password
    password = given or one_time_password()
    family, _, rest = full_name.strip().partition(" ")
    user = User(
        username=username,
        role=role,
        last_name=family,
        first_name=rest,
        position=position,
        language=language,
        must_change_password=given is None,
    )
    user.set_password(password)
    try:
        with transaction.atomic():
            user.save()
    except IntegrityError as error:
        raise ConflictError("username-taken", username) from error
    announce("user.created", user, request, role=role)
    return user, password


@transaction.atomic
def edit_user(
    user: User, *, role: str, full_name: str, position: str, language: str, request: HttpRequest | None = None
) -> None:
    """Change what the region knows of a person."""
    if role not in Role.values:
        raise PermanentError("unknown-role", role)
    before = user.role
    user.last_name, _, user.first_name = full_name.strip().partition(" ")
    user.role, user.position, user.language = role, position, language
    user.save()
    announce("user.edited", user, request, role=role, role_before=before)


@transaction.atomic
def reset_password(user: User, request: HttpRequest | None = None) -> str:
    """A new one-time password, to be shown once; wrong guesses so far are forgotten."""
    password = one_time_password()
    user.set_password(password)
    user.must_change_password = True
    user.save(update_fields=["password", "must_change_password"])
    reset_guesses(username=user.username)
    announce("user.password-reset", user, request)
    return password


@transaction.atomic
def change_password(user: User, password: str, request: HttpRequest | None = None) -> None:
    """Set the person's own new password.

    Raises: ValidationError when it is too weak or the same as before.
    """
    validate_password(password, user)
    if user.check_password(password):
        raise ValidationError("The new password is the old one.", code="same")
    user.set_password(password)
    user.must_change_password = False
    user.save(update_fields=["password", "must_change_password"])
    announce("user.password-changed", user, request)


@transaction.atomic
def set_active(user: User, active: bool, request: HttpRequest | None = None) -> None:
    """Let a person in or keep them out; tokens of who is kept out are revoked."""
    user.is_active = active
    user.save(update_fields=["is_active"])
    if not active:
        user.api_tokens.filter(revoked_at=None).update(revoked_at=timezone.now())
    announce("user.activated" if active else "user.deactivated", user, request)


def token_digest(token: str) -> str:
    """What is kept of a token: SHA-256, hex."""
    return hashlib.sha256(token.encode()).hexdigest()


@transaction.atomic
def issue_token(user: User, name: str, request: HttpRequest | None = None, *, token: str = "") -> str:
    """A new API token of this user (or the given one); it is not shown again."""
    token = token or f"regis_{secrets.token_urlsafe(32)}"
    ApiToken.objects.create(user=user, name=name[:64], digest=token_digest(token))
    announce("token.issued", user, request, name=name)
    return token


@transaction.atomic
def revoke_token(token: ApiToken, request: HttpRequest | None = None) -> None:
    """End a token."""
    token.revoked_at = timezone.now()
    token.save(update_fields=["revoked_at"])
    announce("token.revoked", token.user, request, name=token.name)


@transaction.atomic
def set_language(user: User, language: str) -> None:
    """Remember the language that a person reads."""
    user.language = language
    user.save(update_fields=["language"])

"""Who may log in at the node: people made here, and people of the site's roster until it expires."""

from datetime import timedelta
from typing import Final

from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import AnonymousUser, User
from django.db import transaction
from django.utils import timezone

from pacs_node.clinic.models import LoginGuard, RosterMember

MOST_WRONG_GUESSES: Final = 10
LOCK: Final = timedelta(minutes=15)
_FORGET: Final = timedelta(days=1)


class ClinicBackend(ModelBackend):
    """Django's own, and nobody of an expired roster; asked at login and again for each request of a session."""

    def user_can_authenticate(self, user: User | AnonymousUser | None) -> bool:
        """Whether this account is active and, when it came by the roster, the roster still holds."""
        if user is None or not super().user_can_authenticate(user):
            return False
        member = RosterMember.objects.filter(user_id=user.pk or 0).first()
        return member is None or member.expires_at > timezone.now()


def _key(username: str) -> str:
    return username.casefold()[:150]


def locked_minutes(username: str) -> int:
    """For how many more minutes this name is locked; 0 when it is not."""
    guard = LoginGuard.objects.filter(username=_key(username), locked_until__gt=timezone.now()).first()
    if guard is None or guard.locked_until is None:
        return 0
    return int((guard.locked_until - timezone.now()).total_seconds() // 60) + 1


@transaction.atomic
def count_wrong_guess(username: str) -> bool:
    """Count one more wrong guess; True when it was the one that locks the name."""
    now = timezone.now()
    LoginGuard.objects.filter(last_at__lt=now - _FORGET).delete()
    guard, _ = LoginGuard.objects.select_for_update().get_or_create(username=_key(username))
    if guard.locked_until and guard.locked_until <= now:
        guard.wrong_guesses, guard.locked_until = 0, None
    guard.wrong_guesses += 1
    locks = guard.wrong_guesses >= MOST_WRONG_GUESSES
    if locks:
        guard.locked_until = now + LOCK
    guard.save()
    return locks


def forget_wrong_guesses(username: str) -> None:
    """A right password wipes the slate."""
    LoginGuard.objects.filter(username=_key(username)).delete()

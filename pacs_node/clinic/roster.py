"""The roster of the site: who may log in here while the centre is away."""

from collections.abc import Sequence
from datetime import datetime

import structlog
from django.contrib.auth.models import User
from django.db import transaction

from gateway.envelope import Roster, RosterEntry
from gateway.registry import on_command
from pacs_node.clinic import audit
from pacs_node.clinic.models import RosterMember

log = structlog.get_logger()


@transaction.atomic
def apply_roster(entries: Sequence[RosterEntry], expires_at: datetime) -> None:
    """Replace the roster by these people; who is no longer in it cannot log in any more.

    A person made at this node with the same name is left alone: the centre never takes over a local account.
    Applying the same roster twice changes nothing.
    """
    kept = set()
    for entry in entries:
        user = User.objects.filter(username=entry.username).first()
        if user is not None and not RosterMember.objects.filter(user=user).exists():
            log.warning("roster.local_account_kept", username=entry.username)
            continue
        if user is None:
            user = User(username=entry.username)
        first, _, last = entry.full_name.partition(" ")
        user.first_name, user.last_name = first[:150], last[:150]
        user.password, user.is_active = entry.password_hash, True
        user.save()
        RosterMember.objects.update_or_create(user=user, defaults={"role": entry.role, "expires_at": expires_at})
        kept.add(user.pk)
    gone = User.objects.filter(rostermember__isnull=False, is_active=True).exclude(pk__in=kept)
    left_out = gone.update(is_active=False)
    audit.record(
        "roster.applied",
        actor="centre",
        detail={"people": len(kept), "left_out": left_out, "expires_at": expires_at.isoformat()},
    )


def on_roster(body: Roster) -> None:
    """The command ``roster`` of the centre."""
    apply_roster(body.entries, body.expires_at)


def register() -> None:
    """Called once, when the app is ready."""
    on_command("roster", on_roster)

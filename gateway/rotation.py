"""A node changes its key: makes a new one, has the centre take it, signs with it; and can be killed anywhere between.

The new private key lies beside the present one until the centre has it; what is announced is a statement signed by
both, so it can be repeated at any time, also to a centre that was restored from a backup of before. The steps:

1. the new key is in its file, durable; 2. the statement is in the database; 3. the centre has taken it and accepts both
keys; 4. the new file takes the place of the old one. A run that finds a new key goes on where the last one ended.
"""

import os
from datetime import timedelta
from pathlib import Path

import httpx
import structlog
from django.utils import timezone

from gateway import client, clock, queries, registry
from gateway.envelope import KeyChange, RotateKey
from gateway.keys import key_path, node_key, private_key, public_text, sign, sync_folder
from gateway.models import JoinState, KeyRotation
from standards.errors import PermanentError

log = structlog.get_logger(__name__)

KEYS_PATH = "/federation/v1/keys"
UNKNOWN_HERE = {"signature-invalid", "unknown-key"}
"""What a centre says that does not know this node's present key."""


def apply_rotate_key(command: RotateKey) -> None:
    """The command ``key.rotate``: the next heartbeat begins it."""
    JoinState.objects.update(rotate_key_at=timezone.now())
    log.info("key-rotation-asked-for", reason=command.reason)


def step(centre: httpx.Client, state: JoinState) -> bool:
    """Begin a rotation that is due, or go on with one that was begun; whether the key was changed.

    Raises: as ``client.exchange``; PermanentError "key-superseded", "key-taken", "node-revoked".
    """
    present = key_path(registry.node().data_dir)
    fresh = present.with_name("federation.next.pem")
    if not fresh.exists() and not is_due(state):
        return False
    new = private_key(fresh)
    statement = KeyRotation.objects.filter(new_key=public_text(new)).first() or _state(state, fresh)
    announce(centre, statement)
    fresh.replace(present)
    sync_folder(present.parent)
    log.info("key-rotated", public_key=statement.new_key)
    return True


def is_due(state: JoinState) -> bool:
    """Whether the centre asked for another key after the present one was made, or the present one is too old."""
    made = KeyRotation.objects.filter(new_key=public_text(node_key(registry.node().data_dir))).first()
    since = made.made_at if made else state.joined_at
    if state.rotate_key_at is not None and state.rotate_key_at > since:
        return True
    days = queries.configuration().keys.rotate_after_days
    return bool(days) and timezone.now() - since > timedelta(days=days)


def announce(centre: httpx.Client, rotation: KeyRotation) -> None:
    """Tell the centre of a new key. Raises: as ``client.exchange``."""
    client.exchange(
        centre,
        "POST",
        KEYS_PATH,
        KeyChange.model_validate(rotation.statement).model_dump_json().encode(),
        {"Content-Type": "application/json"},
    )
    KeyRotation.objects.filter(pk=rotation.pk, announced_at=None).update(announced_at=timezone.now())


def announce_all(centre: httpx.Client) -> int:
    """Tell every change again, oldest first, to a centre that does not know the present key; how many there are.

    Raises: as ``client.exchange`` for the last of them; older ones may lie before a join that counts instead.
    """
    rotations = list(KeyRotation.objects.order_by("pk"))
    for rotation in rotations:
        try:
            announce(centre, rotation)
        except PermanentError as error:
            if rotation is rotations[-1]:
                raise
            log.info("former-key-change-not-taken", new_key=rotation.new_key, error=str(error))
    return len(rotations)


def _state(state: JoinState, fresh: Path) -> KeyRotation:
    old, new = node_key(registry.node().data_dir), private_key(fresh)
    change = KeyChange(node=state.name, old_key=public_text(old), new_key=public_text(new), made_at=clock.now(state))
    change = change.model_copy(
        update={"signature": sign(old, change.signed_text()), "proof": sign(new, change.signed_text())}
    )
    return KeyRotation.objects.create(
        old_key=change.old_key,
        new_key=change.new_key,
        made_at=timezone.now(),
        statement=change.model_dump(mode="json"),
    )


def forget_unfinished(data_dir: Path) -> None:
    """Drop a new key that was never announced as this node's: it joins anew, with the key it has."""
    fresh = key_path(data_dir).with_name("federation.next.pem")
    if fresh.exists():
        os.unlink(fresh)

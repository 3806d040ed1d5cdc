"""Everything that changes the node registry and the outbox of commands."""

import hashlib
import secrets
import time
from datetime import timedelta

import structlog
from django.db import transaction
from django.http import HttpRequest
from django.utils import timezone

from gateway.envelope import (
    SCHEMA_VERSION,
    JoinAnswer,
    JoinRequest,
    NodeStatus,
    RawCommand,
)
from ris_central.audit.actions import record
from ris_central.federation import configurations, directories, queries, trust
from ris_central.federation.directories import directory_of as directory_of
from ris_central.federation.directories import send_command as send_command
from ris_central.federation.listeners import node_joined
from ris_central.federation.models import Command, JoinCode, Node
from ris_central.organizations.models import Site
from standards.errors import ConflictError, PermanentError
from standards.tokens import public_key_from_text

log = structlog.get_logger(__name__)

CODE_HOURS = 24
COMMANDS_AT_ONCE = 100
_ALPHABET = "ABCDEFGHJKMNPQRSTVWXYZ23456789"  # no look-alikes: codes are read from one screen and typed at another


def _digest(code: str) -> str:
    plain = "".join(character for character in code.upper() if character.isalnum())
    return hashlib.sha256(plain.encode("utf-8")).hexdigest()


@transaction.atomic
def create_join_code(
    site: Site,
    kind: str,
    name: str,
    *,
    hours: int = CODE_HOURS,
    code: str | None = None,
    request: HttpRequest | None = None,
) -> tuple[Node, str]:
    """Register the node ``name`` of a site and make a one-time code for it; returns both. Only its hash is kept.

    For a node that is registered already it is a code to join again with (new hardware, a lost key). A given ``code``
    (at least 12 letters and digits, for set-ups that prepare both ends) may be given again: it stays one code.

    Raises: PermanentError "unknown-kind", "node-name-taken", "join-code-weak".
    """
    if kind not in Node.Kind.values:
        raise PermanentError("unknown-kind", kind)
    node, _ = Node.objects.get_or_create(name=name, defaults={"site": site, "kind": kind})
    if node.site_id != site.pk or node.kind != kind:
        raise ConflictError("node-name-taken", f"{name} is the {node.kind} node of {node.site.code}")
    if code is not None and sum(map(str.isalnum, code)) < 12:
        raise PermanentError("join-code-weak", "at least 12 letters and digits")
    code = code or "-".join("".join(secrets.choice(_ALPHABET) for _ in range(4)) for _ in range(4))
    _, is_new = JoinCode.objects.get_or_create(
        digest=_digest(code), defaults={"node": node, "expires_at": timezone.now() + timedelta(hours=hours)}
    )
    if is_new:
        record(
            "node.join-code", request=request, actor=None if request else "centre", entity=node, detail={"kind": kind}
        )
    return node, code


@transaction.atomic
def join(request: JoinRequest) -> JoinAnswer:
    """Spend a one-time code: the node is known by its key from now on, and the whole region hears of it.

    The same node may spend the same code again, in case the answer was lost.

    Raises: PermanentError "join-code-wrong", "join-code-spent", "join-code-expired", "join-kind-mismatch",
        "invalid-key", "key-taken".
    """
    public_key_from_text(request.public_key)
    directories.one_at_a_time()
    code = JoinCode.objects.select_for_update(of=("self",)).filter(digest=_digest(request.code)).first()
    if code is None:
        raise PermanentError("join-code-wrong", "no such code")
    if code.used_at is not None and code.used_by_key != request.public_key:
        raise PermanentError("join-code-spent", "the code was used by another node")
    if code.used_at is None and code.expires_at < timezone.now():
        raise PermanentError("join-code-expired", f"at {code.expires_at:%Y-%m-%d %H:%M} UTC")
    node = Node.objects.select_for_update(no_key=True, of=("self",)).get(pk=code.node_id)
    if node.kind != request.kind:
        raise PermanentError("join-kind-mismatch", f"The code is for {node.kind}, this node is {request.kind}.")
    if Node.objects.filter(public_key=request.public_key).exclude(pk=node.pk).exists():
        raise PermanentError("key-taken", "another node has this key; was its data folder copied?")
    code.used_at = code.used_at or timezone.now()
    code.used_by_key = request.public_key
    code.save(update_fields=["used_at", "used_by_key"])
    if node.public_key != request.public_key:
        trust.replace_key(node)
    for name in ("ae_title", "public_key", "url", "browser_url", "host", "dicom_port"):
        setattr(node, name, getattr(request, name))
    node.joined_at, node.revoked_at, node.understands = timezone.now(), None, request.understands
    node.save()
    record("node.joined", actor=node.name, entity=node, detail={"ae_title": node.ae_title, "url": node.url})
    directories.broadcast()
    begin(node)
    return JoinAnswer(name=node.name, directory=directories.directory_of(node))


def begin(node: Node) -> None:
    """Send a node all it must begin with: its configuration, and what higher apps have for it."""
    configurations.push(node)
    node_joined(node)


@transaction.atomic
def revoke(node: Node, *, request: HttpRequest | None = None) -> None:
    """Trust this node no more: its requests are refused here, and its peers forget its key."""
    directories.one_at_a_time()
    Node.objects.filter(pk=node.pk).update(revoked_at=timezone.now())
    JoinCode.objects.filter(node=node, used_at=None).delete()
    record("node.revoked", request=request, actor=None if request else "centre", entity=node)
    directories.broadcast()


@transaction.atomic
def take_commands(node_id: int, after: int) -> list[RawCommand]:
    """The commands after ``after`` that wait for a node, numbered now where they were not. ``after`` is applied.

    Numbers come from the clock where it is ahead, so that they rise even over a restore of this database. A command
    that the node does not understand yet waits here, without a number, until it tells that it does.

    Raises: PermanentError("node-revoked").
    """
    node = Node.objects.select_for_update(no_key=True, of=("self",)).select_related("site").get(pk=node_id)
    if node.revoked_at is not None:
        raise PermanentError("node-revoked", f"{node.name} is no longer trusted")
    if after > node.last_command_seq:
        _make_whole(node, after)
    unnumbered = Command.objects.filter(node=node, seq=None)
    understood = queries.understood_by(node)
    if understood is not None:
        unnumbered = unnumbered.filter(type__in=understood)
    fresh = list(unnumbered.order_by("pk")[:COMMANDS_AT_ONCE])
    for command in fresh:
        node.last_command_seq = max(node.last_command_seq + 1, after + 1, time.time_ns() // 1_000_000)
        command.seq = node.last_command_seq
    if fresh:
        Command.objects.bulk_update(fresh, ["seq"])
    if fresh or after > node.applied_command_seq:
        node.applied_command_seq = max(after, node.applied_command_seq)
        node.save(update_fields=["last_command_seq", "applied_command_seq"])
    waiting = Command.objects.filter(node=node, seq__gt=after).order_by("seq")[:COMMANDS_AT_ONCE]
    return [
        RawCommand.model_validate({"schema_version": SCHEMA_VERSION, "seq": command.seq, "body": body})
        for command in waiting
        for body in [configurations.as_understood(command.body, understood)]
    ]


def _make_whole(node: Node, after: int) -> None:
    """The node applied commands that this database never gave: it is a backup's. Say everything that holds again.

    What was sent since the backup and cannot be derived (a request to send a study first) is gone with who asked it.
    """
    log.warning("centre-was-restored", node=node.name, applied=after, known=node.last_command_seq)
    node.last_command_seq, node.restored_at = after, timezone.now()
    node.save(update_fields=["last_command_seq", "restored_at"])
    Command.objects.filter(node=node, seq=None, type__in=["directory", "configuration", "devices", "roster"]).delete()
    directories.send_command(node, directories.directory_of(node))
    begin(node)
    record("node.told-again", actor="centre", entity=node, detail={"applied": after})


@transaction.atomic
def record_status(node: Node, status: NodeStatus) -> None:
    """Keep the latest heartbeat of a node, and how far its clock is from ours.

    A node of another version than before kept of its configuration what it knew then: it is told all of it again.
    """
    now = timezone.now()
    is_changed = node.understands is not None and set(node.understands) != set(status.understands)
    Node.objects.filter(pk=node.pk).update(
        last_seen_at=now,
        status=status.model_dump(mode="json"),
        understands=status.understands,
        clock_skew_seconds=trust.skew(status.clock, now),
        clock_heard_at=now,
    )
    if is_changed:
        configurations.push(node)

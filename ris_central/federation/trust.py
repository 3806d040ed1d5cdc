"""The keys of nodes: which count, how they change, and what a node's clock says against ours."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.db import transaction
from django.http import HttpRequest
from django.utils import timezone

from gateway.envelope import KeyChange, RotateKey
from gateway.keys import is_signed
from ris_central.audit.actions import record
from ris_central.federation import directories
from ris_central.federation.models import FormerKey, Node
from standards.errors import ConflictError, PermanentError
from standards.tokens import public_key_from_text

OVERLAP = timedelta(days=7)
"""So long both keys count: requests under way, and a node that was restored from a backup of before."""
ALARMING_SECONDS = 60
_LIMIT = 2_000_000_000


def keys_of(node: Node) -> Iterator[Ed25519PublicKey]:
    """The keys that a request of the node may be signed with now; former ones are looked up when they are needed."""
    yield public_key_from_text(node.public_key)
    former = FormerKey.objects.filter(node=node, rotated=True, until__gt=timezone.now())
    for text in former.order_by("-until").values_list("public_key", flat=True):
        yield public_key_from_text(text)


def is_signed_by(node: Node, signature: str, text: bytes, moment: datetime) -> bool:
    """Whether the node signed ``text`` at that moment, with the key that counted then: a receipt stays provable."""
    former = FormerKey.objects.filter(node=node, until__gt=moment).values_list("public_key", flat=True)
    return any(is_signed(key, signature, text) for key in (node.public_key, *former))


@transaction.atomic
def change_key(change: KeyChange) -> None:
    """Take a node's new key: from now on it counts, and the old one for a while. Said again, it changes nothing.

    Raises: PermanentError "unknown-key", "node-revoked", "signature-invalid", "key-superseded", "key-taken",
        "invalid-key".
    """
    public_key_from_text(change.new_key)
    directories.one_at_a_time()
    node = Node.objects.select_for_update(no_key=True, of=("self",)).filter(name=change.node, joined_at__isnull=False)
    found = node.first()
    if found is None:
        raise PermanentError("unknown-key", change.node)
    if found.revoked_at is not None:
        raise PermanentError("node-revoked", f"{found.name} is no longer trusted")
    text = change.signed_text()
    if not is_signed(change.old_key, change.signature, text) or not is_signed(change.new_key, change.proof, text):
        raise PermanentError("signature-invalid", "both keys must sign the change")
    former = FormerKey.objects.filter(public_key=change.new_key).first()
    if found.public_key == change.new_key or (former is not None and former.node_id == found.pk):
        return
    if found.public_key != change.old_key:
        raise ConflictError("key-superseded", f"{found.name} has another key by now; join it anew with a code")
    if former is not None or Node.objects.filter(public_key=change.new_key).exists():
        raise ConflictError("key-taken", "another node has this key; was its data folder copied?")
    now = timezone.now()
    FormerKey.objects.update_or_create(
        public_key=found.public_key,
        defaults={
            "node": found,
            "rotated": True,
            "statement": change.model_dump(mode="json"),
            "since": found.key_since or found.joined_at,
            "until": now + OVERLAP,
        },
    )
    found.public_key, found.key_since, found.rotation_asked_at = change.new_key, now, None
    found.save(update_fields=["public_key", "key_since", "rotation_asked_at"])
    record("node.key-rotated", actor=found.name, entity=found, detail={"until": (now + OVERLAP).isoformat()})
    directories.broadcast()


def replace_key(node: Node) -> None:
    """The node is joined anew with another key: what the old one signed stays provable, but it opens nothing more."""
    now = timezone.now()
    if node.public_key:
        FormerKey.objects.get_or_create(
            public_key=node.public_key,
            defaults={"node": node, "rotated": False, "since": node.key_since or node.joined_at, "until": now},
        )
    FormerKey.objects.filter(node=node, until__gt=now).update(until=now)
    FormerKey.objects.filter(node=node).update(rotated=False)
    node.key_since, node.rotation_asked_at = now, None


@transaction.atomic
def ask_rotation(node: Node, *, request: HttpRequest | None = None) -> None:
    """Have the node make a new key."""
    Node.objects.filter(pk=node.pk).update(rotation_asked_at=timezone.now())
    directories.send_command(node, RotateKey(reason="asked at the centre"))
    record("node.rotation-asked", request=request, actor=None if request else "centre", entity=node)


def skew(told: datetime, now: datetime) -> int:
    """Seconds by which a clock that told this is ahead of ours."""
    return bounded(round((told - now).total_seconds()))


def bounded(seconds: int) -> int:
    """What fits a column: a clock may be wrong by any number of years."""
    return max(-_LIMIT, min(_LIMIT, seconds))

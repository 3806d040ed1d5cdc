"""What every node is told of the others, and the outbox of commands."""

from django.db import connection

from gateway.envelope import CommandBody, Directory, Peer
from ris_central.federation.keys import token_keys
from ris_central.federation.models import Command, Node


def directory_of(node: Node) -> Directory:
    """The trust list as this node is to know it. Clinics mirror to every archive."""
    trusted = list(
        Node.objects.filter(joined_at__isnull=False, revoked_at=None).order_by("name").prefetch_related("former_keys")
    )
    mirrors = node.kind in (Node.Kind.CLINIC, Node.Kind.GATEWAY)
    return Directory(
        peers=[
            Peer.model_validate(
                {
                    "name": peer.name,
                    "kind": peer.kind,
                    "ae_title": peer.ae_title,
                    "url": peer.url,
                    "public_key": peer.public_key,
                    "former_keys": [
                        {"public_key": former.public_key, "until": former.until}
                        for former in peer.former_keys.all()
                        if former.rotated
                    ],
                }
            )
            for peer in trusted
        ],
        token_keys=token_keys(),
        mirror_to=[peer.name for peer in trusted if mirrors and peer.kind == Node.Kind.ARCHIVE],
        site_name=node.site.name,
        time_zone=node.site.time_zone,
    )


_BROADCASTING = 0x5245_4744


def one_at_a_time() -> None:
    """Wait until nobody else changes the trust list; call it before the first row of such a change is read.

    Two nodes that join at once would each be in a directory without the other, and the later one would count.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_BROADCASTING])


def broadcast() -> None:
    """Send every trusted node the directory as it is now."""
    one_at_a_time()
    for node in Node.objects.filter(joined_at__isnull=False, revoked_at=None).select_related("site"):
        send_command(node, directory_of(node))


def send_command(node: Node, body: CommandBody) -> Command:
    """Put a command on the node's outbox, in the caller's transaction; the node has it as soon as that commits."""
    return Command.objects.create(node=node, type=body.type, body=body.model_dump(mode="json"))

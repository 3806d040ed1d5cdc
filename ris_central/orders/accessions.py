"""Accession numbers reserved for nodes, so that one of them can go on alone for days."""

from typing import Final

from django.db import transaction

from gateway import envelope
from gateway.envelope import AccessionState, Event
from ris_central.federation.actions import send_command
from ris_central.federation.models import Node
from ris_central.orders.models import AccessionBlock, AccessionCounter, ServiceRequest
from ris_central.organizations.models import Site

BLOCK: Final = 500
_MARKS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MOST_AHEAD: Final = 10_000_000
"""A node that speaks of a number so far ahead of the counter is not believed."""


def locked_counter(site: Site) -> AccessionCounter:
    """The site's counter, locked until the transaction ends: whoever writes orders of a site takes it first."""
    AccessionCounter.objects.get_or_create(site=site)
    return AccessionCounter.objects.select_for_update().get(site=site)


def mark_of(node: Node) -> str:
    """Up to three characters that tell this node from others of its site, for its emergency numbers."""
    number, text = node.pk, ""
    while number and len(text) < 3:
        number, digit = divmod(number, len(_MARKS))
        text = _MARKS[digit] + text
    return text


@transaction.atomic
def reserve(node: Node) -> AccessionBlock:
    """Take the next numbers of the site out of the counter and give them to the node alone."""
    counter = locked_counter(node.site)
    block = AccessionBlock.objects.create(
        site=node.site, node=node, first=counter.next_number, last=counter.next_number + BLOCK - 1
    )
    counter.next_number = block.last + 1
    counter.save(update_fields=["next_number"])
    send_command(
        node,
        envelope.AccessionBlock(
            prefix=node.site.accession_prefix, first=block.first, last=block.last, mark=mark_of(node)
        ),
    )
    return block


def take_state(node: Node, event: Event) -> None:
    """Listener: a node says what it has left. When that is little, and it has all that was reserved, it gets more."""
    body = event.body
    if not isinstance(body, AccessionState):
        raise TypeError(f"accession.state expected, {body.type} given")
    pass_over(node.site, body.highest)
    newest = AccessionBlock.objects.filter(node=node).order_by("-last").first()
    has_all = newest is None or newest.last <= body.highest
    if has_all and body.left <= BLOCK // 3:
        reserve(node)


def pass_over(site: Site, number: int) -> None:
    """Have the counter go on after ``number``: a node has it, even if this database was restored from before."""
    counter = locked_counter(site)
    if counter.next_number <= number < counter.next_number + _MOST_AHEAD:
        counter.next_number = number + 1
        counter.save(update_fields=["next_number"])


def node_joined(node: Node) -> None:
    """Listener: a node that joins, maybe as new hardware under an old name, gets numbers that nobody has used."""
    if node.kind != Node.Kind.ARCHIVE:
        reserve(node)


def ensure_blocks() -> int:
    """Reserve numbers for joined nodes that have none, as of before there were blocks; how many nodes."""
    nodes = list(
        Node.objects.filter(revoked_at=None, accession_blocks=None)
        .exclude(joined_at=None)
        .exclude(kind=Node.Kind.ARCHIVE)
        .select_related("site")
    )
    for node in nodes:
        reserve(node)
    return len(nodes)


def remaining(node: Node) -> tuple[int, int]:
    """``(left, reserved)`` of the node's numbers, as far as the centre has heard of their use."""
    blocks = list(AccessionBlock.objects.filter(node=node))
    reserved = sum(block.last - block.first + 1 for block in blocks)
    prefix = node.site.accession_prefix
    used = sum(
        ServiceRequest.objects.filter(
            accession_number__gte=f"{prefix}{block.first:08d}", accession_number__lte=f"{prefix}{block.last:08d}"
        ).count()
        for block in blocks
    )
    return reserved - used, reserved

"""Nodes, their mirrors and their troubles, as far as a person may see them."""

from django.db.models import Count, Max, OuterRef, Q, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce

from gateway.envelope import EventAnswer
from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, can
from ris_central.federation.models import Command, DeliveryState, InboxEvent, Node
from ris_central.organizations import queries as organizations


def visible_to(user: User) -> QuerySet[Node]:
    """The nodes of the sites that the user sees, for those who may see sites at all."""
    if not can(user, Capability.SEE_SITES):
        return Node.objects.none()
    return Node.objects.filter(site__in=organizations.visible_to(user)).select_related("site")


def with_mirror(nodes: QuerySet[Node]) -> QuerySet[Node]:
    """The nodes with how far their ledgers are: ``mirror_total``, ``mirror_safe``, ``mirror_failed`` instances,
    ``events_in_error`` in the inbox and ``commands_waiting``.
    """
    ledger = DeliveryState.objects.filter(node=OuterRef("pk")).order_by().values("node")
    inbox = InboxEvent.objects.filter(node=OuterRef("pk")).exclude(error="").order_by().values("node")
    outbox = (
        Command.objects.filter(node=OuterRef("pk"))
        .filter(Q(seq=None) | Q(seq__gt=OuterRef("applied_command_seq")))
        .order_by()
        .values("node")
    )
    return nodes.annotate(
        mirror_total=Coalesce(Subquery(ledger.annotate(n=Sum("total")).values("n")), 0),
        mirror_safe=Coalesce(Subquery(ledger.annotate(n=Sum("receipted")).values("n")), 0),
        mirror_failed=Coalesce(Subquery(ledger.annotate(n=Sum("failed")).values("n")), 0),
        events_in_error=Coalesce(Subquery(inbox.annotate(n=Count("pk")).values("n")), 0),
        commands_waiting=Coalesce(Subquery(outbox.annotate(n=Count("pk")).values("n")), 0),
    )


def deliveries_of(node: Node) -> QuerySet[DeliveryState]:
    """What the node told last of each study's way, troubled ones first."""
    return DeliveryState.objects.filter(node=node).order_by("-failed", "-updated_at")


def errors_of(node: Node) -> QuerySet[InboxEvent]:
    """Events of the node that could not be applied, newest first."""
    return InboxEvent.objects.filter(node=node).exclude(error="").order_by("-pk")


def archives() -> QuerySet[Node]:
    """The trusted archive nodes."""
    return Node.objects.filter(kind=Node.Kind.ARCHIVE, joined_at__isnull=False, revoked_at=None)


def cursor_of(node: Node, epoch: str) -> EventAnswer:
    """How far the node's events of this epoch are taken."""
    node.refresh_from_db(fields=["epoch", "cursor"])
    if node.epoch == epoch:
        return EventAnswer(epoch=epoch, cursor=node.cursor)
    highest = InboxEvent.objects.filter(node=node, epoch=epoch).aggregate(Max("seq"))["seq__max"]
    return EventAnswer(epoch=epoch, cursor=highest or 0)


FIRST_COMMANDS = frozenset({"directory", "schedule", "devices", "study.send", "roster"})
"""What nodes understand that do not say what they understand."""


def understood_by(node: Node) -> frozenset[str] | None:
    """The types of commands that the node understands; None when nobody asked it."""
    if node.understands is None:
        return None
    return frozenset(node.understands) or FIRST_COMMANDS


def with_news(node_ids: list[int]) -> list[int]:
    """Those of the nodes for which commands came that they understand and that were not numbered yet."""
    waiting = (
        Command.objects.filter(node_id__in=node_ids, seq=None)
        .order_by()
        .values_list("node_id", "type", "node__understands")
        .distinct()
    )
    return sorted({pk for pk, kind, told in waiting if told is None or kind in (frozenset(told) or FIRST_COMMANDS)})

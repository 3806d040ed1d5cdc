"""How higher apps hear of what nodes say; they register in their ``AppConfig.ready()``."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.envelope import Event

if TYPE_CHECKING:
    from ris_central.federation.models import Node

EventListener = Callable[["Node", Event], None]
EventsListener = Callable[["Node", list[Event]], None]
NodeListener = Callable[["Node"], None]

_listeners: dict[str, list[EventsListener]] = {}
_joined_listeners: list[NodeListener] = []


def on_event(event_type: str, listener: EventListener) -> None:
    """Have ``listener(node, event)`` called for each event of this type, once, in the order of the node.

    It runs in the transaction that takes the event into the inbox. A PermanentError or any programming error keeps
    the event with that error and goes on; a TransientError or a database that is away makes the node send it again.
    """

    def one_by_one(node: "Node", events: list[Event]) -> None:
        for event in events:
            listener(node, event)

    on_events(event_type, one_by_one)


def on_events(event_type: str, listener: EventsListener) -> None:
    """As ``on_event``, for a listener that takes several events of a node at once, in their order."""
    _listeners.setdefault(event_type, []).append(listener)


def tell(node: "Node", events: list[Event]) -> None:
    """Tell the listeners of these events: of each type all at once, in the order of the types' first events."""
    by_type: dict[str, list[Event]] = {}
    for event in events:
        by_type.setdefault(event.body.type, []).append(event)
    for event_type, told in by_type.items():
        for listener in _listeners.get(event_type, ()):
            listener(node, told)


def on_node_joined(listener: NodeListener) -> None:
    """Have ``listener(node)`` called in the transaction of a join: send it the commands a new node must begin with."""
    _joined_listeners.append(listener)


def node_joined(node: "Node") -> None:
    """Tell every listener."""
    for listener in _joined_listeners:
        listener(node)

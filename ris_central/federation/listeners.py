"""How higher apps hear of what nodes say; they register in their ``AppConfig.ready()``."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.envelope import Event

if TYPE_CHECKING:
    from ris_central.federation.models import Node

EventListener = Callable[["Node", Event], None]
NodeListener = Callable[["Node"], None]

_listeners: dict[str, list[EventListener]] = {}
_joined_listeners: list[NodeListener] = []


def on_event(event_type: str, listener: EventListener) -> None:
    """Have ``listener(node, event)`` called for each event of this type, once, in the order of the node.

    It runs in the transaction that takes the event into the inbox. A PermanentError or any programming error keeps
    the event with that error and goes on; a TransientError or a database that is away makes the node send it again.
    """
    _listeners.setdefault(event_type, []).append(listener)


def listeners_of(event_type: str) -> list[EventListener]:
    """Listeners of this type of event, in the order of registration."""
    return list(_listeners.get(event_type, []))


def on_node_joined(listener: NodeListener) -> None:
    """Have ``listener(node)`` called in the transaction of a join: send it the commands a new node must begin with."""
    _joined_listeners.append(listener)


def node_joined(node: "Node") -> None:
    """Tell every listener."""
    for listener in _joined_listeners:
        listener(node)

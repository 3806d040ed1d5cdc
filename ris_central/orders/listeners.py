"""What orders announces; a listener runs in the transaction of the change."""

from collections.abc import Callable

from ris_central.orders.models import ServiceRequest

OrderListener = Callable[[ServiceRequest], None]
_listeners: list[OrderListener] = []


def on_order_changed(listener: OrderListener) -> None:
    """Call ``listener(order)`` when an order or one of its steps was booked, moved, cancelled or performed."""
    _listeners.append(listener)


def announce(order: ServiceRequest) -> None:
    """Tell every listener."""
    for listener in _listeners:
        listener(order)

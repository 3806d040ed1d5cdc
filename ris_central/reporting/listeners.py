"""What reporting announces; a listener runs in the transaction of the signature."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # apps register before models are loaded
    from ris_central.reporting.models import Report

SignedListener = Callable[["Report"], None]
_listeners: list[SignedListener] = []


def on_signed(listener: SignedListener) -> None:
    """Call ``listener(report)`` when a report was signed or got a signed addendum (then its status is ``appended``)."""
    _listeners.append(listener)


def announce_signed(report: "Report") -> None:
    """Tell every listener; the first that raises ends the transaction, and nothing is signed."""
    for listener in _listeners:
        listener(report)

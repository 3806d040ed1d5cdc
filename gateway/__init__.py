"""Studies on the move: outbox and ledger, outbound, inbound, receipts, the event envelope."""

from standards.version import VERSION

__all__ = ["VERSION"]

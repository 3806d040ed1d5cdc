"""Studies on the move: outbox and ledger, outbound, inbound, receipts, the event envelope."""

VERSION = "0.1.0"

"""Studies on the move: outbox and ledger, outbound, inbound, receipts, the event envelope."""

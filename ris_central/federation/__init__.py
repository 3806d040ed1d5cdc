"""The node registry, the inbox of events and the outbox of commands; knows nothing of studies or orders."""

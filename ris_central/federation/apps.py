"""Django app federation."""

from importlib import import_module

from django.apps import AppConfig

from ris_central.federation.listeners import on_event


class FederationConfig(AppConfig):
    """The node registry, the inbox of events and the outbox of commands."""

    name = "ris_central.federation"
    label = "federation"

    def ready(self) -> None:
        """Keep the progress of mirrors (the module needs the models, which are loaded only now)."""
        on_event("delivery.progress", import_module("ris_central.federation.intake").keep_progress)

"""Django app federation."""

from importlib import import_module

from django.apps import AppConfig

from ris_central.federation.listeners import on_event, on_events


class FederationConfig(AppConfig):
    """The node registry, the inbox of events and the outbox of commands."""

    name = "ris_central.federation"
    label = "federation"

    def ready(self) -> None:
        """Keep the progress of mirrors (the module needs the models, which are loaded only now)."""
        intake = import_module("ris_central.federation.intake")
        on_events("delivery.progress", intake.keep_progress)
        on_event("audit.sealed", intake.keep_audit)
        configurations = import_module("ris_central.federation.configurations")
        sites = import_module("ris_central.organizations.listeners")
        sites.on_storage_model_changed(configurations.follow_storage_model)

"""Django app clinic."""

from importlib import import_module

from django.apps import AppConfig


class ClinicConfig(AppConfig):
    """What a clinic sees of its node; it takes the centre's commands about devices, schedule and people."""

    name = "pacs_node.clinic"
    label = "clinic"

    def ready(self) -> None:
        """Register the command handlers (their modules need the models, which are loaded only now)."""
        import_module("pacs_node.clinic.commands").register()
        import_module("pacs_node.clinic.roster").register()
        import_module("pacs_node.clinic.audit").register()
        import_module("pacs_node.clinic.telling").register()
        import_module("pacs_node.clinic.prefetching").register()

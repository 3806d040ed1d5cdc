"""Django app offline."""

from importlib import import_module

from django.apps import AppConfig


class OfflineConfig(AppConfig):
    """What people of a site do at their node while the centre is away, and the centre's words about it."""

    name = "pacs_node.offline"
    label = "offline"

    def ready(self) -> None:
        """Register the command handlers (their modules need the models, which are loaded only now)."""
        import_module("pacs_node.offline.commands").register()

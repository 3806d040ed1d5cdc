"""Django app dimse."""

from importlib import import_module

from django.apps import AppConfig


class DimseConfig(AppConfig):
    name = "pacs_node.dimse"
    label = "dimse"

    def ready(self) -> None:
        """Say how what is outside the region is spoken to (the modules need the models, which are loaded only now)."""
        import_module("pacs_node.dimse.foreign").register()
        import_module("pacs_node.dimse.outside").register()
        import_module("pacs_node.dimse.proxied").register()

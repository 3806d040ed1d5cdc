"""Django app dicomweb."""

from importlib import import_module

from django.apps import AppConfig


class DicomwebConfig(AppConfig):
    name = "pacs_node.dicomweb"
    label = "dicomweb"

    def ready(self) -> None:
        """Say how foreign PACS are spoken to (the module needs the models, which are loaded only now)."""
        import_module("pacs_node.dicomweb.foreign").register()

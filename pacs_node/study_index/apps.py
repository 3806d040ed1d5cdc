"""Django app study_index."""

from importlib import import_module

from django.apps import AppConfig

from gateway.registry import register_store
from pacs_node.storage.stores import on_missing


class StudyIndexConfig(AppConfig):
    """What the node holds; it plugs its store into the gateway."""

    name = "pacs_node.study_index"
    label = "study_index"

    def ready(self) -> None:
        """Give the gateway the store (its module needs the models, which are loaded only now)."""
        register_store(import_module("pacs_node.study_index.gateway_store").IndexedStore())
        on_missing(import_module("pacs_node.study_index.recalling").recall)
        import_module("pacs_node.study_index.rounds").register()
        import_module("pacs_node.study_index.background").register()

"""Django app storage."""

from django.apps import AppConfig


class StorageConfig(AppConfig):
    name = "pacs_node.storage"
    label = "storage"

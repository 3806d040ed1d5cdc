"""Django app clinic."""

from django.apps import AppConfig


class ClinicConfig(AppConfig):
    name = "pacs_node.clinic"
    label = "clinic"

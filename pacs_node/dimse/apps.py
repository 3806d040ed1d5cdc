"""Django app dimse."""

from django.apps import AppConfig


class DimseConfig(AppConfig):
    name = "pacs_node.dimse"
    label = "dimse"

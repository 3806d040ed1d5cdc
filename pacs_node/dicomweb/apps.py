"""Django app dicomweb."""

from django.apps import AppConfig


class DicomwebConfig(AppConfig):
    name = "pacs_node.dicomweb"
    label = "dicomweb"

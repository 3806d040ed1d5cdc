"""The project itself as a Django app: its templates, static files, translations and management commands."""

from django.apps import AppConfig


class CentreConfig(AppConfig):
    """What belongs to no single concern of the centre."""

    name = "ris_central"
    label = "centre"

"""Django app integration."""

from django.apps import AppConfig


class IntegrationConfig(AppConfig):
    name = "ris_central.integration"
    label = "integration"

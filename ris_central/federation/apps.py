"""Django app federation."""

from django.apps import AppConfig


class FederationConfig(AppConfig):
    name = "ris_central.federation"
    label = "federation"

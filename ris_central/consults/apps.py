"""Django app consults."""

from django.apps import AppConfig


class ConsultsConfig(AppConfig):
    name = "ris_central.consults"
    label = "consults"

"""Django app monitoring."""

from django.apps import AppConfig


class MonitoringConfig(AppConfig):
    name = "ris_central.monitoring"
    label = "monitoring"

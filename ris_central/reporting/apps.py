"""Django app reporting."""

from django.apps import AppConfig


class ReportingConfig(AppConfig):
    name = "ris_central.reporting"
    label = "reporting"

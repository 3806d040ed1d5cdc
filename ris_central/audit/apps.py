"""Django app audit."""

from django.apps import AppConfig


class AuditConfig(AppConfig):
    name = "ris_central.audit"
    label = "audit"

"""Django app organizations."""

from django.apps import AppConfig


class OrganizationsConfig(AppConfig):
    name = "ris_central.organizations"
    label = "organizations"

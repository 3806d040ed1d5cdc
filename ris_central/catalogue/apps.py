"""Django app catalogue."""

from django.apps import AppConfig


class CatalogueConfig(AppConfig):
    name = "ris_central.catalogue"
    label = "catalogue"

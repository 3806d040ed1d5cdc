"""Django app discs."""

from django.apps import AppConfig


class DiscsConfig(AppConfig):
    name = "ris_central.discs"
    label = "discs"

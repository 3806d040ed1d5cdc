"""Django app patients."""

from django.apps import AppConfig


class PatientsConfig(AppConfig):
    name = "ris_central.patients"
    label = "patients"

"""Django app accounts."""

from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "ris_central.accounts"
    label = "accounts"

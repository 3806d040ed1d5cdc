"""Django app gateway."""

from django.apps import AppConfig


class GatewayConfig(AppConfig):
    """Studies on the move."""

    name = "gateway"

"""Django app orders."""

from django.apps import AppConfig


class OrdersConfig(AppConfig):
    name = "ris_central.orders"
    label = "orders"

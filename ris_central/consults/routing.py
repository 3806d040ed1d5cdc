"""Sockets of the consult desk."""

from django.urls import path

from ris_central.consults.consumers import DeskConsumer

websocket_urlpatterns = [path("ws/consults/", DeskConsumer.as_asgi())]

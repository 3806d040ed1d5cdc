"""Sockets of the catalogue."""

from django.urls import path

from ris_central.catalogue.consumers import WorklistConsumer

websocket_urlpatterns = [path("ws/worklist/", WorklistConsumer.as_asgi())]

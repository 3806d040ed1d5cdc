"""Sockets of the disc desk."""

from django.urls import path

from ris_central.discs.consumers import DiscsConsumer

websocket_urlpatterns = [path("ws/discs/", DiscsConsumer.as_asgi())]

"""Sockets of monitoring."""

from django.urls import path

from ris_central.monitoring.mirror import MirrorConsumer

websocket_urlpatterns = [path("ws/mirror/", MirrorConsumer.as_asgi())]

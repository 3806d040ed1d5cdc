"""URLs of the federation, mounted at ``/federation/v1/``. (``commands`` is answered by ``longpoll``.)"""

from django.urls import path

from ris_central.federation import api

urlpatterns = [
    path("join", api.join, name="federation-join"),
    path("keys", api.keys, name="federation-keys"),
    path("events", api.events, name="federation-events"),
    path("status", api.status, name="federation-status"),
]

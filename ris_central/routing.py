"""Every websocket of the centre."""

from ris_central.catalogue.routing import websocket_urlpatterns as catalogue

websocket_urlpatterns = [*catalogue]

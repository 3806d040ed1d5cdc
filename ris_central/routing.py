"""Every websocket of the centre."""

from ris_central.catalogue.routing import websocket_urlpatterns as catalogue
from ris_central.consults.routing import websocket_urlpatterns as consults
from ris_central.discs.routing import websocket_urlpatterns as discs

websocket_urlpatterns = [*catalogue, *consults, *discs]

"""Every websocket of the centre."""

from ris_central.catalogue.routing import websocket_urlpatterns as catalogue
from ris_central.consults.routing import websocket_urlpatterns as consults
from ris_central.discs.routing import websocket_urlpatterns as discs
from ris_central.monitoring.routing import websocket_urlpatterns as monitoring

websocket_urlpatterns = [*monitoring, *catalogue, *consults, *discs]

"""The centre over ASGI: pages and REST by Django, long polls of nodes beside it, websockets by Channels."""

import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ris_central.settings")
django_application = get_asgi_application()

# Routing needs the models that get_asgi_application() has just loaded.
from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import WebsocketDenier  # noqa: E402

from ris_central.federation.asgi import for_nodes  # noqa: E402
from ris_central.routing import websocket_urlpatterns  # noqa: E402

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


def same_origin(inner: Application) -> Application:
    """Only pages of this very origin (host and port) may open a socket: cookies travel with others' sockets too."""
    denier = WebsocketDenier.as_asgi()

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        origin, host = urlsplit(headers.get(b"origin", "")), headers.get(b"host", "")
        await (inner if origin.netloc and origin.netloc == host else denier)(scope, receive, send)

    return guarded


application = ProtocolTypeRouter(
    {
        "http": for_nodes(django_application),
        "websocket": same_origin(AuthMiddlewareStack(URLRouter(websocket_urlpatterns))),
    }
)

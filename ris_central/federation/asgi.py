"""What nodes ask all the time, in front of Django's handler: by the hundred they wait, beat and tell.

The middleware is for people (sessions, languages, cross-site requests); a node is known by its signature alone.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Final

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.db import close_old_connections
from django.http import HttpResponse

from ris_central.federation import api, longpoll
from ris_central.federation.longpoll import Application, Receive, Scope, Send

VIEWS: Final = {"/federation/v1/events": api.events, "/federation/v1/status": api.status}
THREADS: Final = 6
"""So many are served at a time; the others wait their turn, and what waits is told in larger batches."""

_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="nodes")


def for_nodes(inner: Application) -> Application:
    """``inner`` with the questions of nodes answered before it."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == longpoll.PATH:
            await longpoll.commands(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] in VIEWS and scope["method"] == "POST":
            await _answer(scope, receive, send)
        else:
            await inner(scope, receive, send)

    return application


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    body = BytesIO()
    arrived = time.monotonic()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        if body.tell() <= api.MAX_BODY_BYTES:  # of what is too long, enough to see that
            body.write(message.get("body", b""))
        more = message.get("more_body", False)
    body.seek(0)
    # The event loop stays known to the thread, so that pages are told over its connection to the Redis server.
    request = ASGIRequest(scope, body)
    request.META[api.ARRIVED] = arrived
    answered = await sync_to_async(_view, thread_sensitive=False, executor=_threads)(request)
    headers = [(name.encode("ascii"), value.encode("latin-1")) for name, value in answered.items()]
    headers.append((b"content-length", str(len(answered.content)).encode()))
    await send({"type": "http.response.start", "status": answered.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": answered.content})


def _view(request: ASGIRequest) -> HttpResponse:
    close_old_connections()
    try:
        return VIEWS[request.path](request)
    finally:
        close_old_connections()

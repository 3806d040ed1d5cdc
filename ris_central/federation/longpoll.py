"""``GET /federation/v1/commands?after=SEQ&wait=SECONDS``: nodes wait here by the hundred for next to nothing.

An ASGI application of its own, outside Django's handler: its middleware would park a thread for every node that waits.
Here a waiting node is one coroutine; two threads and one cheap query every 0.3 s serve them all, and no database
connection is held meanwhile.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs

import structlog
from django.db import close_old_connections

from gateway.envelope import RawCommandBatch
from ris_central.federation import actions, permissions, queries
from ris_central.federation.api import problem_of, status_of
from standards.errors import PermanentError, RegisError, TransientError

log = structlog.get_logger(__name__)

PATH: Final = "/federation/v1/commands"
LONGEST_WAIT_SECONDS: Final = 25.0
LOOK_SECONDS: Final = 0.3

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Result = TypeVar("Result")

_threads = ThreadPoolExecutor(2, thread_name_prefix="commands")


async def _in_thread(work: Callable[..., Result], *arguments: Any) -> Result:
    def run() -> Result:
        close_old_connections()
        try:
            return work(*arguments)
        finally:
            close_old_connections()

    return await asyncio.get_running_loop().run_in_executor(_threads, run)


class Bell:
    """Rings for the nodes that have new commands. One of each event loop; it looks only while somebody waits."""

    def __init__(self) -> None:
        self._waiting: dict[int, set[asyncio.Event]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def wait(self, node_id: int, seconds: float) -> None:
        """Return when something is there for the node, or after ``seconds``."""
        rung = asyncio.Event()
        self._waiting.setdefault(node_id, set()).add(rung)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            await asyncio.wait_for(rung.wait(), seconds)
        except TimeoutError:
            pass  # nothing came: the node asks again
        finally:
            self._waiting[node_id].discard(rung)
            if not self._waiting[node_id]:
                del self._waiting[node_id]

    async def _look(self) -> None:
        while self._waiting:
            try:
                for node_id in await _in_thread(queries.with_news, list(self._waiting)):
                    for rung in self._waiting.get(node_id, ()):
                        rung.set()
            except Exception as error:  # the database may be away: those who wait go on waiting, and say nothing is new
                log.warning("commands-not-looked-up", error=str(error))
            await asyncio.sleep(LOOK_SECONDS)


_bells: dict[asyncio.AbstractEventLoop, Bell] = {}


async def commands(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one node with what waits for it, as soon as there is something, or with nothing after its wait."""
    try:
        if scope["method"] != "GET":
            raise PermanentError("method-not-allowed", "only GET")
        after, wait = _asked(scope)
        node = await _in_thread(permissions.node_of, "GET", _target(scope), _headers(scope))
        found = await _in_thread(actions.take_commands, node.pk, after)
        if not found and wait > 0 and await _rung_before_gone(node.pk, wait, receive):
            found = await _in_thread(actions.take_commands, node.pk, after)
    except RegisError as error:
        status = status_of(error)
        log.warning("node-refused", path=PATH, error=str(error))
        if status in (401, 403):
            client = scope.get("client") or ("",)
            await _in_thread(permissions.record_refusal, error, PATH, str(client[0]))
        await _reply(send, status, json.dumps(problem_of(error)).encode(), b"application/problem+json")
        return
    except Exception:
        log.exception("commands-not-answered")
        problem = problem_of(TransientError("commands-unavailable", "the centre cannot look them up now"))
        await _reply(send, 503, json.dumps(problem).encode(), b"application/problem+json")
        return
    await _reply(send, 200, RawCommandBatch(commands=found).model_dump_json().encode(), b"application/json")


def _asked(scope: Scope) -> tuple[int, float]:
    query = parse_qs(scope["query_string"].decode("ascii", "replace"))
    try:
        after, wait = int(query.get("after", ["0"])[-1]), float(query.get("wait", ["0"])[-1])
    except ValueError as error:
        raise PermanentError("message-not-understood", "after and wait are numbers") from error
    if not 0 <= after < 1 << 62 or not 0 <= wait < 3600:
        raise PermanentError("message-not-understood", "after or wait is out of bounds")
    return after, min(wait, LONGEST_WAIT_SECONDS)


def _target(scope: Scope) -> str:
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    query: bytes = scope["query_string"]
    return (raw + (b"?" + query if query else b"")).decode("ascii", "replace")


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


async def _rung_before_gone(node_id: int, wait: float, receive: Receive) -> bool:
    """Wait for the bell; False when the node hung up first."""
    bell = _bells.setdefault(asyncio.get_running_loop(), Bell())
    ringing = asyncio.create_task(bell.wait(node_id, wait))
    leaving = asyncio.create_task(_gone(receive))
    await asyncio.wait({ringing, leaving}, return_when=asyncio.FIRST_COMPLETED)
    rung = ringing.done()
    for task in (ringing, leaving):
        task.cancel()
    await asyncio.gather(ringing, leaving, return_exceptions=True)
    return rung


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _reply(send: Send, status: int, body: bytes, content_type: bytes) -> None:
    headers = [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

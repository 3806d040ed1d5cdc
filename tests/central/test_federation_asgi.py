"""What nodes ask all the time is answered in front of Django's handler, also while the database is away."""

import asyncio
import hashlib
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from django.db import connection, connections
from django.test import Client
from django.utils import timezone

from deploy.processes import free_port
from gateway.envelope import EventAnswer, RawEvent, RawEventBatch
from ris_central.federation import api, pressure
from ris_central.federation.asgi import for_nodes
from ris_central.federation.longpoll import Receive, Scope, Send
from ris_central.federation.models import InboxEvent, Node
from standards import http_signatures
from tests.central.nodes import Key, joined, status

pytestmark = pytest.mark.django_db(transaction=True)
PATH = "/federation/v1/events"


async def nobody(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("a question of a node went to Django's handler")


def batch(*numbers: int) -> bytes:
    body = {
        "type": "association.refused",
        "calling_ae_title": "X",
        "called_ae_title": "Y",
        "address": "192.0.2.1",
        "reason": "unknown AE",
    }
    events = [RawEvent(schema_version=1, epoch="e1", seq=seq, occurred_at=timezone.now(), body=body) for seq in numbers]
    return RawEventBatch(events=events).model_dump_json().encode()


def signed(key: Key, body: bytes, path: str = PATH) -> dict[str, str]:
    return http_signatures.sign("POST", path, hashlib.sha256(body).digest(), key, "clinic", int(time.time()))


def ask(key: Key, body: bytes, path: str = PATH, **headers: str) -> httpx.Response:
    application: Any = for_nodes(nobody)

    async def answer() -> httpx.Response:
        through = httpx.ASGITransport(app=application)
        async with httpx.AsyncClient(transport=through, base_url="https://centre.example") as client:
            return await client.post(path, content=body, headers=signed(key, body, path) | headers)

    return asyncio.run(answer())


@pytest.fixture
def away() -> Iterator[None]:
    """Every new connection to the database is refused."""
    at = connections.settings["default"]
    port, pool = at["PORT"], at["OPTIONS"]["pool"]
    connection.close()
    connection.close_pool()  # type: ignore[attr-defined]
    at["PORT"], at["OPTIONS"]["pool"] = str(free_port()), {**pool, "timeout": 1}
    yield
    connection.close()
    connection.close_pool()  # type: ignore[attr-defined]
    at["PORT"], at["OPTIONS"]["pool"] = port, pool


def test_events_and_heartbeats_need_no_middleware() -> None:
    node, key = joined()
    taken = ask(key, batch(1, 2))
    assert EventAnswer.model_validate_json(taken.content).cursor == 2
    assert InboxEvent.objects.filter(node=node).count() == 2
    told = status(epoch="e1").model_dump_json().encode()
    assert ask(key, told, "/federation/v1/status").json()["cursor"] == 2
    assert Node.objects.get(pk=node.pk).status["version"] == "0"


def test_who_signed_nothing_is_refused_there_as_well() -> None:
    _, key = joined()
    refused = ask(key, batch(1), Signature="regis=:none:")
    assert (refused.status_code, refused.json()["code"]) == (401, "signature-invalid")
    assert refused.headers["content-type"] == "application/problem+json"
    assert not InboxEvent.objects.exists()


def test_a_body_that_is_too_long_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    _, key = joined()
    monkeypatch.setattr(api, "MAX_BODY_BYTES", 100)
    assert ask(key, batch(1)).json()["code"] == "body-too-large"


@pytest.mark.usefixtures("away")
def test_a_database_that_refuses_connections_is_named_and_the_node_told_when_to_come_again() -> None:
    key, body = Key.generate(), batch(1)
    in_front = ask(key, body)
    behind = Client().post(PATH, body, "application/json", headers=signed(key, body), secure=True)
    for answer in (in_front, behind):
        assert answer.status_code == 503
        assert answer.json()["code"] == "database-unavailable"
        assert answer.headers["Retry-After"] == str(api.RETRY_SECONDS)


def test_a_busy_process_asks_to_gather_and_a_calm_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, used = [0.0], [0.0]
    monkeypatch.setattr("ris_central.federation.pressure.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("ris_central.federation.pressure.time.process_time", lambda: used[0])
    of_late = pressure.Pressure()

    def after(share: float) -> float:
        clock[0] += pressure.SPAN_SECONDS
        used[0] += share * pressure.SPAN_SECONDS
        return of_late.pause()

    assert after(0.4) == 0
    rising = [after(1.0) for _ in range(6)]
    assert rising == sorted(rising)
    assert 0.9 * pressure.LONGEST_SECONDS < rising[-1] <= pressure.LONGEST_SECONDS
    assert [after(0.2) for _ in range(8)][-1] == 0

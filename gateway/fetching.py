"""The way back: an instance that a peer receipted is fetched from it again, byte for byte as it was delivered."""

import threading
from collections.abc import Iterable
from datetime import datetime
from hashlib import sha256
from typing import BinaryIO
from urllib.parse import urlencode

import httpx
import structlog

from gateway import client, clock, registry
from gateway.deliveries import peer_named
from gateway.keys import node_key
from gateway.models import Delivery, IssuedReceipt, JoinState
from standards import http_signatures
from standards.errors import PermanentError, RegisError, TransientError

log = structlog.get_logger(__name__)

_AT_ONCE = 500
_CHUNK = 1 << 18
_NOTHING = sha256(b"").digest()


def proved_copies(instance_keys: Iterable[int]) -> dict[int, list[tuple[str, datetime]]]:
    """By instance key, ``(peer, when)`` of each peer whose verified receipt for these bytes is on the ledger."""
    keys, copies = list(instance_keys), dict[int, list[tuple[str, datetime]]]()
    for start in range(0, len(keys), _AT_ONCE):
        rows = Delivery.objects.filter(
            instance_key__in=keys[start : start + _AT_ONCE],
            status=Delivery.Status.RECEIPTED,
            receipted_at__isnull=False,
        )
        for key, destination, at in rows.values_list("instance_key", "destination", "receipted_at"):
            if at is not None:
                copies.setdefault(key, []).append((destination, at))
    return copies


def fetch(instance_key: int, sop_instance_uid: str, dataset_sha256: str, target: BinaryIO) -> str:
    """Write the Part 10 file of an instance to ``target`` from a peer that receipted it; the name of the peer.

    The caller checks the digest: what comes from outside is believed only then.

    Raises: PermanentError("no-other-copy") when nobody receipted it, else the TransientError of the last peer asked.
    """
    state = JoinState.objects.first()
    destinations = [name for name, _ in proved_copies([instance_key]).get(instance_key, [])]
    if state is None or not destinations:
        raise PermanentError("no-other-copy", "no peer has receipted this instance")
    failure: RegisError | None = None
    for destination in destinations:
        try:
            peer = peer_named(state, destination)
            query = urlencode({"to": peer.name, "dataset": dataset_sha256})
            _download(state, peer.url, f"/gateway/v1/instances/{sop_instance_uid}?{query}", target)
        except RegisError as error:
            log.warning("fetch-failed", destination=destination, sop_instance_uid=sop_instance_uid, error=str(error))
            failure = error
            target.seek(0)
            target.truncate()
        else:
            return destination
    raise TransientError("recall-failed", f"{', '.join(destinations)}: {failure}")


_connections: dict[str, httpx.Client] = {}
_connections_lock = threading.Lock()


def _connection(url: str) -> tuple[httpx.Client, bool]:
    """A kept-alive client for ``url``, and whether it is new: a study comes back by hundreds of files."""
    with _connections_lock:
        if url in _connections:
            return _connections[url], False
        _connections[url] = client.connect(url, registry.node().network_timeout_seconds)
        return _connections[url], True


def _download(state: JoinState, url: str, path: str, target: BinaryIO) -> None:
    """Raises: TransientError and PermanentError as ``client.ask`` does."""
    key = node_key(registry.node().data_dir)
    headers = http_signatures.sign("GET", path, _NOTHING, key, state.name, int(clock.seconds(state)))
    connection, is_new = _connection(url)
    try:
        with connection.stream("GET", path, headers=headers) as response:
            if not response.is_success:
                response.read()
                raise client.refusal(response)
            for chunk in response.iter_bytes(_CHUNK):
                target.write(chunk)
    except httpx.TransportError as error:
        if not is_new and not target.tell():  # the peer was started anew since the last fetch
            with _connections_lock:
                if _connections.get(url) is connection:
                    del _connections[url]
            return _download(state, url, path, target)
        raise TransientError("unreachable", f"{url}: {str(error) or type(error).__name__}") from error


def delivered_by(sender: str, sop_instance_uid: str, dataset_sha256: str) -> bool:
    """Whether this node gave ``sender`` a receipt for these bytes: then it may have them back."""
    return IssuedReceipt.objects.filter(
        sender=sender, sop_instance_uid=sop_instance_uid, dataset_sha256=dataset_sha256
    ).exists()

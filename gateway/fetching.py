"""The way back: an instance that a peer receipted is fetched from it again, byte for byte as it was delivered."""

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import BinaryIO, Final, NamedTuple
from urllib.parse import urlencode

import httpx
import structlog
from django.db.models import Max

from gateway import client, clock, encoding, queries, registry
from gateway.deliveries import peer_named
from gateway.envelope import Peer
from gateway.keys import node_key
from gateway.models import Delivery, IssuedReceipt, JoinState
from gateway.paying import Paying
from standards import digests, http_signatures
from standards.errors import PermanentError, RegisError, TransientError

log = structlog.get_logger(__name__)

ENCODED: Final = f"application/vnd.{encoding.NAME}"
"""The type of an answer that is encoded for the wire."""
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

    It is encoded for the wire where that was measured to pay. What came is believed for its digest alone.

    Raises: PermanentError("no-other-copy") when nobody receipted it, TransientError("recall-failed") with what went
    wrong at the last peer asked.
    """
    state = JoinState.objects.first()
    destinations = [name for name, _ in proved_copies([instance_key]).get(instance_key, [])]
    if state is None or not destinations:
        raise PermanentError("no-other-copy", "no peer has receipted this instance")
    size = Delivery.objects.filter(instance_key=instance_key).aggregate(size=Max("size"))["size"] or 0
    wanted = Wanted(sop_instance_uid, dataset_sha256, size)
    failure: RegisError | None = None
    for destination in destinations:
        try:
            _fetch_from(state, peer_named(state, destination), wanted, target)
        except RegisError as error:
            log.warning("fetch-failed", destination=destination, sop_instance_uid=sop_instance_uid, error=str(error))
            failure = error
        else:
            return destination
    raise TransientError("recall-failed", f"{', '.join(destinations)}: {failure}")


@dataclass(frozen=True)
class Wanted:
    """The instance that is fetched. ``size`` of its file, 0 if that is not known."""

    sop_instance_uid: str
    dataset_sha256: str
    size: int

    def path(self, peer: Peer, *, encoded: bool) -> str:
        """Where it is asked for; a peer that knows no encodings takes no notice of the last part."""
        query = {"to": peer.name, "dataset": self.dataset_sha256} | ({"encoding": encoding.NAME} if encoded else {})
        return f"/gateway/v1/instances/{self.sop_instance_uid}?{urlencode(query)}"

    def check(self, file: BinaryIO) -> None:
        """Raises: TransientError("recall-failed") when this is something else."""
        try:
            found = digests.dataset_sha256(file)
        except PermanentError as error:
            raise TransientError("recall-failed", f"what came is no instance: {error}") from error
        if found != self.dataset_sha256:
            raise TransientError("recall-failed", "what came is not what was receipted")


def _fetch_from(state: JoinState, peer: Peer, wanted: Wanted, target: BinaryIO) -> None:
    with _lock:
        paying = _paying.setdefault(peer.name, Paying(os.cpu_count() or 1))
    with paying.stretch(wanted.size, queries.configuration().mirror.encoding) as stretch:
        try:
            came = _download(state, peer.url, wanted.path(peer, encoded=stretch.encode), target)
            wanted.check(target)
            stretch.wire, stretch.encode = came.wire, came.encoded
            return
        except TransientError as error:
            if not stretch.encode or error.code not in ("not-restored", "recall-failed"):
                raise
            log.warning("encoding-not-restored", peer=peer.name, error=str(error))
    _download(state, peer.url, wanted.path(peer, encoded=False), target)
    wanted.check(target)


_paying: dict[str, Paying] = {}
"""What was measured of the way back from each peer."""
_connections: dict[str, httpx.Client] = {}
_lock = threading.Lock()


def _connection(url: str) -> tuple[httpx.Client, bool]:
    """A kept-alive client for ``url``, and whether it is new: a study comes back by hundreds of files."""
    with _lock:
        if url in _connections:
            return _connections[url], False
        _connections[url] = client.connect(url, registry.node().network_timeout_seconds)
        return _connections[url], True


class _Came(NamedTuple):
    """How an answer came."""

    encoded: bool
    wire: int


def _download(state: JoinState, url: str, path: str, target: BinaryIO) -> _Came:
    """Raises: TransientError and PermanentError as ``client.ask`` does; TransientError("not-restored")."""
    target.seek(0)
    target.truncate()
    key = node_key(registry.node().data_dir)
    headers = http_signatures.sign("GET", path, _NOTHING, key, state.name, int(clock.seconds(state)))
    connection, is_new = _connection(url)
    try:
        with connection.stream("GET", path, headers=headers) as response:
            if not response.is_success:
                response.read()
                raise client.refusal(response)
            is_encoded = response.headers.get("Content-Type", "") == ENCODED
            if is_encoded:
                encoding.restore(response.iter_bytes(_CHUNK), target)
            else:
                for chunk in response.iter_bytes(_CHUNK):
                    target.write(chunk)
            return _Came(is_encoded, response.num_bytes_downloaded)
    except httpx.TransportError as error:
        if not is_new and not target.tell():  # the peer was started anew since the last fetch
            with _lock:
                if _connections.get(url) is connection:
                    del _connections[url]
            return _download(state, url, path, target)
        raise TransientError("unreachable", f"{url}: {str(error) or type(error).__name__}") from error


def delivered_by(sender: str, sop_instance_uid: str, dataset_sha256: str) -> bool:
    """Whether this node gave ``sender`` a receipt for these bytes: then it may have them back."""
    return IssuedReceipt.objects.filter(
        sender=sender, sop_instance_uid=sop_instance_uid, dataset_sha256=dataset_sha256
    ).exists()

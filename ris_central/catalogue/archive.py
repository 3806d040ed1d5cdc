"""The archive as the centre uses it: store objects made here, read back what a disc needs. All of it streams."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import httpx
from django.conf import settings

from ris_central.catalogue.queries import archive_node
from ris_central.federation.keys import image_token
from ris_central.federation.models import Node
from standards.errors import PermanentError, TransientError
from standards.multipart import OutgoingPart, Part, encode_related, new_boundary, parse_related

_SUBJECT = "regis-centre"


@cache
def tls_context() -> ssl.SSLContext:
    """What the centre trusts when it dials nodes: the system's authorities and the configured one."""
    context = ssl.create_default_context()
    if settings.CONFIG.tls_ca:
        context.load_verify_locations(settings.CONFIG.tls_ca)
    return context


def the_archive() -> Node:
    """Raises: TransientError("no-archive") until one has joined."""
    node = archive_node()
    if node is None:
        raise TransientError("no-archive", "No archive has joined the region yet.")
    return node


@contextmanager
def _client(node: Node, study: str, operation: str) -> Iterator[httpx.Client]:
    token, _ = image_token(_SUBJECT, [study], [operation], node.name)
    with httpx.Client(
        base_url=f"{node.url.rstrip('/')}/dicom-web/",
        verify=tls_context(),
        trust_env=False,
        timeout=httpx.Timeout(60.0, connect=5.0),
        headers={"Authorization": f"Bearer {token}"},
    ) as client:
        yield client


def store(study: str, instance: bytes) -> None:
    """STOW-RS one Part 10 file of ``study``. Storing the same again succeeds.

    Raises: TransientError("archive-unreachable", "no-archive"), PermanentError("archive-refused").
    """
    node = the_archive()
    boundary = new_boundary()
    body = encode_related([OutgoingPart({"Content-Type": "application/dicom"}, instance)], boundary)
    headers = {
        "Content-Type": f'multipart/related; type="application/dicom"; boundary="{boundary}"',
        "Accept": "application/dicom+json",
    }
    try:
        with _client(node, study, "store") as client:
            answer = client.post(f"studies/{study}", content=body, headers=headers)
    except httpx.HTTPError as error:
        raise TransientError("archive-unreachable", f"{node.name}: {type(error).__name__}") from error
    if answer.status_code in (401, 403, 404, 408, 425, 429) or answer.status_code >= 500:
        # Refused rights heal with the next directory, the rest by itself.
        raise TransientError("archive-unreachable", f"{node.name} answered {answer.status_code}")
    if answer.status_code != 200:
        raise PermanentError("archive-refused", f"{node.name} answered {answer.status_code}: {answer.text[:150]}")


class _Stream:
    """What ``parse_related`` reads from: the body of an answer as it comes."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = piece
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken


def retrieve_series(node: Node, study: str, series: str) -> Iterator[Part]:
    """The instances of a series as Part 10 streams, one after the other, in the transfer syntax they are kept in.

    Raises: TransientError("holder-unreachable"), PermanentError("holder-refused").
    """
    accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
    try:
        with (
            _client(node, study, "read") as client,
            client.stream("GET", f"studies/{study}/series/{series}", headers={"Accept": accept}) as answer,
        ):
            if answer.status_code >= 500 or answer.status_code in (401, 403, 408, 429):
                raise TransientError("holder-unreachable", f"{node.name} answered {answer.status_code}")
            if answer.status_code != 200:
                raise PermanentError("holder-refused", f"{node.name} answered {answer.status_code} for a series")
            yield from parse_related(_Stream(answer.iter_bytes()), answer.headers.get("content-type", ""))
    except httpx.HTTPError as error:
        raise TransientError("holder-unreachable", f"{node.name}: {type(error).__name__}") from error

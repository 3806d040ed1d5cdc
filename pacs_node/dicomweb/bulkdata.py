"""WADO-RS: the long binary values that metadata names by BulkDataURI. Source: PS3.18 10.4.1.1.5"""

import re
from collections.abc import Iterator
from typing import Final

from django.http import HttpRequest, HttpResponseBase, StreamingHttpResponse
from django.views.decorators.http import require_GET
from pydicom.dataset import Dataset

from pacs_node.dicomweb.permissions import Reach, guarded
from pacs_node.dicomweb.qido import service_root
from pacs_node.dicomweb.wado import IMMUTABLE, cached, etag_of, existing, header_of, not_modified, path_of
from pacs_node.storage.filesystem import storage
from pacs_node.study_index.models import Instance
from standards.errors import PermanentError
from standards.frames import iter_frames, media_type
from standards.media_types import OCTET_STREAM, Offer, content_type, negotiate
from standards.multipart import OutgoingPart, encode_related, new_boundary
from standards.part10 import Header, open_plain, text

_CHUNK: Final = 1 << 18
_PATH: Final = re.compile(r"[0-9A-F]{8}(/\d{1,6}/[0-9A-F]{8})*")
_PIXELS: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_DOCUMENT: Final = 0x00420011


def _range(instance: Instance, header: Header, offset: int, length: int) -> Iterator[bytes]:
    with storage().open(instance.path) as file, open_plain(file, header) as plain:
        plain.seek(offset)
        while length > 0 and (chunk := plain.read(min(_CHUNK, length))):
            length -= len(chunk)
            yield chunk


def _frames(instance: Instance, header: Header) -> Iterator[bytes]:
    with storage().open(instance.path) as file, open_plain(file, header) as plain:
        yield from iter_frames(plain, header)


def _kept(header: Header, path: str) -> bytes:
    """A value that the header holds. Raises: PermanentError("not-found")."""
    steps = path.split("/")
    dataset: Dataset = header.dataset
    try:
        for tag, item in zip(steps[:-1:2], steps[1::2], strict=True):
            dataset = dataset[int(tag, 16)].value[int(item)]
        value = dataset[int(steps[-1], 16)].value
    except (KeyError, IndexError, TypeError) as error:
        raise PermanentError("not-found", "The object has no such value.") from error
    if not isinstance(value, bytes):
        raise PermanentError("not-found", "This value is not bulk data; it is in the metadata.")
    return value


@require_GET
@guarded("read")
def bulkdata(request: HttpRequest, reach: Reach, path: str, **at: str) -> HttpResponseBase:
    """One value, streamed: as octets, a document as its own media type, compressed pixels one part a frame."""
    if not _PATH.fullmatch(path):
        raise PermanentError("not-found", "The object has no such value.")
    instance = existing(reach, **at)[0]
    header = header_of(instance)
    tag = int(path.split("/")[0], 16)
    place = {found: (offset, length) for found, offset, length in header.omitted}.get(tag)
    kind = OCTET_STREAM
    bodies: Iterator[bytes | Iterator[bytes]]
    if path.count("/") == 0 and tag in _PIXELS and header.pixel_offset is not None and header.encapsulated:
        kind = media_type(header)
        bodies = iter(_frames(instance, header))
    elif path.count("/") == 0 and tag in _PIXELS and header.pixel_offset is not None:
        bodies = iter([_range(instance, header, header.pixel_offset, header.pixel_length or 0)])
    elif path.count("/") == 0 and place:
        bodies = iter([_range(instance, header, *place)])
    else:
        bodies = iter([_kept(header, path)])
    if tag == _DOCUMENT:
        kind = text(header.dataset, "MIMETypeOfEncapsulatedDocument") or kind
    single = not (tag in _PIXELS and header.encapsulated)
    syntax = header.transfer_syntax if tag in _PIXELS else ""
    kinds = list(dict.fromkeys([kind, OCTET_STREAM]))
    offers = [Offer(name, syntax, multipart=True, stored=True) for name in kinds]
    offers += [Offer(name, syntax, stored=True) for name in kinds if single]
    offer = negotiate(request.headers.get("Accept"), offers)
    if offer is None:
        raise PermanentError("not-acceptable", f"Here there is {' and '.join(kinds)}.")
    etag = etag_of([instance], "bulkdata", path, offer)
    if answer := not_modified(request, etag, IMMUTABLE):
        return answer
    if not offer.multipart:
        body = next(bodies)
        chunks: Iterator[bytes] = iter([body]) if isinstance(body, bytes) else body
        return cached(StreamingHttpResponse(chunks, content_type=offer.type), etag, IMMUTABLE)
    headers = {
        "Content-Type": content_type(Offer(offer.type, syntax)),
        "Content-Location": f"{service_root(request)}{path_of(instance)}/bulkdata/{path}",
    }
    boundary = new_boundary()
    parts = (OutgoingPart(headers, body) for body in bodies)
    response = StreamingHttpResponse(encode_related(parts, boundary), content_type=content_type(offer, boundary))
    return cached(response, etag, IMMUTABLE)

"""WADO-RS: the long binary values that metadata names by BulkDataURI. Source: PS3.18 10.4.1.1.5"""

import re
from typing import Final

from django.http import HttpRequest, HttpResponseBase
from django.views.decorators.http import require_safe
from pydicom.dataset import Dataset

from pacs_node.dicomweb.permissions import Reach, guarded
from pacs_node.dicomweb.qido import accepted, service_root
from pacs_node.dicomweb.retrieval import (
    IMMUTABLE,
    cached,
    etag_of,
    existing,
    header_of,
    not_modified,
    path_of,
    plain_source,
    table_of,
)
from pacs_node.dicomweb.segments import FileRange, Segment, Segments, SegmentsResponse, ranged
from pacs_node.dicomweb.wado import stored_frame
from pacs_node.storage.stores import storage
from pacs_node.study_index.models import Instance
from standards.element_walker import PixelElement
from standards.errors import PermanentError
from standards.frames import media_type
from standards.media_types import OCTET_STREAM, Offer, content_type, negotiate
from standards.multipart import framed, new_boundary
from standards.part10 import Header, read_header, text

_PATH: Final = re.compile(r"[0-9A-F]{8}(/\d{1,6}/[0-9A-F]{8})*")
_PIXELS: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_DOCUMENT: Final = 0x00420011


def _value(instance: Instance, header: Header, path: str) -> Segment:
    """A value that the header holds, or one within items by its place. Raises: PermanentError("not-found")."""
    steps = path.split("/")
    if len(steps) > 1:
        with storage().open(instance.path) as file:
            header = read_header(file, tell_places=True)
    dataset: Dataset = header.dataset
    try:
        for tag, item in zip(steps[:-1:2], steps[1::2], strict=True):
            dataset = dataset[int(tag, 16)].value[int(item)]
        value = dataset[int(steps[-1], 16)].value
    except (KeyError, IndexError, TypeError) as error:
        raise PermanentError("not-found", "The object has no such value.") from error
    if isinstance(value, PixelElement):
        return FileRange(plain_source(instance, header), value.offset, value.length)
    if not isinstance(value, bytes):
        raise PermanentError("not-found", "This value is not bulk data; it is in the metadata.")
    return value


def _sandboxed(response: HttpResponseBase) -> HttpResponseBase:
    response["Content-Security-Policy"] = "sandbox"
    return response


@require_safe
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
    bodies: list[list[Segment]]
    top_level = path.count("/") == 0
    if top_level and tag in _PIXELS and header.pixel_offset is not None and header.encapsulated:
        kind = media_type(header)
        table = table_of(instance, header)
        bodies = [stored_frame(instance, header, table, index) for index in range(table.count)]
    elif top_level and tag in _PIXELS and header.pixel_offset is not None:
        bodies = [[FileRange(plain_source(instance, header), header.pixel_offset, header.pixel_length or 0)]]
    elif top_level and place:
        bodies = [[FileRange(plain_source(instance, header), *place)]]
    else:
        bodies = [[_value(instance, header, path)]]
    if tag == _DOCUMENT:
        kind = text(header.dataset, "MIMETypeOfEncapsulatedDocument") or kind
    syntax = header.transfer_syntax if tag in _PIXELS else ""
    kinds = list(dict.fromkeys([kind, OCTET_STREAM]))
    offers = [Offer(name, syntax, multipart=True, stored=True) for name in kinds]
    offers += [Offer(name, syntax, stored=True) for name in kinds if len(bodies) == 1]
    offer = negotiate(accepted(request), offers)
    if offer is None:
        raise PermanentError("not-acceptable", f"Here there is {' and '.join(kinds)}.")
    etag = etag_of([instance], "bulkdata", path, offer)
    if answer := not_modified(request, etag, IMMUTABLE):
        return answer
    if not offer.multipart:
        # A document of a stranger must not run as a page of this node.
        return cached(_sandboxed(ranged(request, Segments(bodies[0]), offer.type, etag)), etag, IMMUTABLE)
    headers = {
        "Content-Type": content_type(Offer(offer.type, syntax)),
        "Content-Location": f"{service_root(request)}{path_of(instance)}/bulkdata/{path}",
    }
    boundary = new_boundary()
    parts: list[Segment] = []
    for body in bodies:
        parts += [*framed(headers, boundary, first=not parts), *body]
    parts.append(f"\r\n--{boundary}--\r\n".encode("ascii"))
    response = SegmentsResponse(Segments(parts), content_type=content_type(offer, boundary))
    return cached(response, etag, IMMUTABLE)

"""QIDO-RS: searches for studies, series and instances. Source: PS3.18 10.6"""

import hashlib
import json
from typing import Any, Final

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from pacs_node.config import config
from pacs_node.dicomweb.attributes import Writer
from pacs_node.dicomweb.permissions import Reach, guarded
from pacs_node.dicomweb.queries import parse
from pacs_node.study_index.keys import Level
from pacs_node.study_index.queries import counts_of, page
from standards.dicom_xml import MEDIA_TYPE as XML
from standards.dicom_xml import to_xml
from standards.errors import PermanentError
from standards.media_types import Offer, content_type, negotiate
from standards.multipart import OutgoingPart, encode_related, new_boundary

JSON: Final = "application/dicom+json"
_JSON_OFFER: Final = Offer(JSON)
_OFFERS: Final = [_JSON_OFFER, Offer("application/json"), Offer(XML, multipart=True)]


def service_root(request: HttpRequest) -> str:
    """The address of ``/dicom-web`` for links: never from the Host header alone, but a configured one that it names."""
    return root_for(f"{request.scheme}://{request.get_host()}")


def root_for(asked: str) -> str:
    """:func:`service_root` for a request to this scheme and host."""
    known = [config().url, config().peer_url]
    return f"{asked if asked in known else known[0]}/dicom-web"


def accepted(request: HttpRequest) -> str:
    """What the client accepts: by a parameter of the address, as a link cannot set headers, else by its header.

    A plus that was not escaped in the address has become a space. Source: PS3.18 8.3.3.1
    """
    asked = request.GET.get("accept", "")
    return asked.replace("dicom json", JSON[12:]).replace("dicom xml", XML[12:]) or request.headers.get("Accept", "")


def _search(request: HttpRequest, reach: Reach, level: Level, **within: str) -> HttpResponse:
    accept = accepted(request)
    offer = _JSON_OFFER if accept in ("", "*/*", JSON) else negotiate(accept, _OFFERS)
    if offer is None:
        raise PermanentError("not-acceptable", f"{JSON} and multipart/related; type={XML} are available here.")
    asked = parse(level, request.GET, reach, within)
    writer = Writer(asked.search, asked.fields, service_root(request), upper="study" not in within)
    rows = page(asked.search, writer.wanted, asked.offset, asked.limit + 1)
    more = len(rows) > asked.limit
    del rows[asked.limit :]
    counts = counts_of({row.study_key for row in rows}, sop_classes=writer.sop_classes) if writer.counts else {}
    body = f"[{','.join([writer.row(row, counts) for row in rows])}]".encode()
    response = _xml(body) if offer.type == XML else _json(request, body, offer.type)
    warnings = [f"The key {name} is not matched here and was ignored." for name in sorted(asked.ignored)]
    if more:
        warnings.append("There are additional results that can be requested.")
    if warnings:  # Source: PS3.18 8.3.4.3
        response["Warning"] = ", ".join(f'299 regis "{text}"' for text in warnings)
    return response


def _json(request: HttpRequest, body: bytes, media_type: str) -> HttpResponse:
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    if etag in request.headers.get("If-None-Match", ""):
        response = HttpResponse(status=304)
    else:
        response = HttpResponse(body, content_type=media_type)
    response["ETag"] = etag
    response["Cache-Control"] = "private, no-cache"
    response["Vary"] = "Accept"
    return response


def _xml(body: bytes) -> HttpResponse:
    found: list[dict[str, Any]] = json.loads(body)
    if not found:
        response = HttpResponse(status=204)
        del response["Content-Type"]
        return response
    boundary = new_boundary()
    parts = (OutgoingPart({"Content-Type": XML}, to_xml(one)) for one in found)
    response = HttpResponse(encode_related(parts, boundary), content_type=content_type(_OFFERS[2], boundary))
    response["Cache-Control"] = "private, no-cache"
    return response


@require_safe
@guarded("read")
def studies(request: HttpRequest, reach: Reach) -> HttpResponse:
    """``/studies``"""
    return _search(request, reach, "STUDY")


@require_safe
@guarded("read")
def series(request: HttpRequest, reach: Reach, **within: str) -> HttpResponse:
    """``/series`` and ``/studies/{study}/series``"""
    return _search(request, reach, "SERIES", **within)


@require_safe
@guarded("read")
def instances(request: HttpRequest, reach: Reach, **within: str) -> HttpResponse:
    """``/instances``, ``/studies/{study}/instances`` and ``/studies/{study}/series/{series}/instances``"""
    return _search(request, reach, "IMAGE", **within)

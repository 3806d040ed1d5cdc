"""QIDO-RS: searches for studies, series and instances. Source: PS3.18 10.6"""

import hashlib
import json
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from pacs_node.config import config
from pacs_node.dicomweb import queries
from pacs_node.dicomweb.attributes import Level
from pacs_node.dicomweb.permissions import Reach, guarded
from standards.errors import PermanentError

JSON = "application/dicom+json"


def service_root(request: HttpRequest) -> str:
    """The address of ``/dicom-web`` for links: never from the Host header alone, but a configured one that it names."""
    known = [config().url, config().peer_url]
    asked = f"{request.scheme}://{request.get_host()}"
    return f"{asked if asked in known else known[0]}/dicom-web"


def accepts_json(request: HttpRequest) -> None:
    """Raises: PermanentError("not-acceptable") unless DICOM JSON (or JSON) will do."""
    if not any(request.accepts(kind) for kind in (JSON, "application/json")):
        raise PermanentError("not-acceptable", f"Only {JSON} is available here.")


def json_answer(request: HttpRequest, body: Any) -> HttpResponse:
    """A DICOM JSON body with an ETag; 304 when the client has it already."""
    content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    if request.headers.get("If-None-Match") == etag:
        response = HttpResponse(status=304)
    else:
        response = HttpResponse(content, content_type=JSON)
    response["ETag"] = etag
    response["Cache-Control"] = "private, no-cache"
    return response


def _search(request: HttpRequest, reach: Reach, level: Level, **within: str) -> HttpResponse:
    accepts_json(request)
    search = queries.parse(level, request.GET)
    rows = list(queries.search_rows(search, reach, within))
    more = len(rows) > search.limit
    upper = "study" not in within
    response = json_answer(request, queries.results(search, rows[: search.limit], service_root(request), upper=upper))
    warnings = [f"The key {name} is not matched here and was ignored." for name in sorted(set(search.ignored))]
    if more:
        warnings.append("There are additional results that can be requested.")
    if warnings:  # Source: PS3.18 8.3.4.3
        response["Warning"] = ", ".join(f'299 regis "{text}"' for text in warnings)
    return response


@require_GET
@guarded("read")
def studies(request: HttpRequest, reach: Reach) -> HttpResponse:
    """``/studies``"""
    return _search(request, reach, "study")


@require_GET
@guarded("read")
def series(request: HttpRequest, reach: Reach, **within: str) -> HttpResponse:
    """``/series`` and ``/studies/{study}/series``"""
    return _search(request, reach, "series", **within)


@require_GET
@guarded("read")
def instances(request: HttpRequest, reach: Reach, **within: str) -> HttpResponse:
    """``/instances``, ``/studies/{study}/instances`` and ``/studies/{study}/series/{series}/instances``"""
    return _search(request, reach, "instance", **within)

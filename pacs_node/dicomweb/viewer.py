"""OHIF at ``/viewer/`` of this very origin, so that images need neither CORS nor mixed content."""

import json
import mimetypes
import re
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import urlsplit

from django.http import FileResponse, HttpRequest, HttpResponse, HttpResponseBase
from django.views.decorators.clickjacking import xframe_options_exempt
from django.views.decorators.http import require_GET

from gateway.models import JoinState
from pacs_node.config import config
from pacs_node.dicomweb.problems import problem_response

_HASHED: Final = re.compile(r"\.?[0-9a-f]{16}\.")
_CONFIG_SOURCE: Final = Path(__file__).with_name("app-config.js")
_TYPES: Final = {".js": "text/javascript", ".wasm": "application/wasm", ".json": "application/json"}


def find_file(root: Path, name: str) -> Path | None:
    """The file ``name`` of the viewer; ``index.html`` for an address inside the application; None if missing."""
    path = (root / name).resolve()
    if name and path.is_relative_to(root.resolve()) and path.is_file():
        return path
    if PurePosixPath(name).suffix and not re.fullmatch(r"[0-9.]+", PurePosixPath(name).name):
        return None
    index = root / "index.html"
    return index if index.is_file() else None


def file_answer(path: Path, accept_encoding: str, if_none_match: str) -> HttpResponseBase:
    """The file, compressed beforehand where that exists; for ever where its name has a digest, else revalidated."""
    packed = path.with_name(f"{path.name}.gz")
    gzipped = packed.is_file() and "gzip" in accept_encoding
    served = packed if gzipped else path
    status = served.stat()
    etag = f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
    response: HttpResponseBase
    if if_none_match == etag:
        response = HttpResponse(status=304)
    else:
        kind = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        response = FileResponse(served.open("rb"), content_type=kind)
        response["Content-Length"] = str(status.st_size)
        if gzipped:
            response["Content-Encoding"] = "gzip"
    response["ETag"] = etag
    response["Vary"] = "Accept-Encoding"
    forever = _HASHED.search(path.name) is not None
    response["Cache-Control"] = "public, max-age=31536000, immutable" if forever else "no-cache"
    return response


@require_GET
@xframe_options_exempt
def viewer(request: HttpRequest, name: str = "") -> HttpResponseBase:
    """The application's files. They show nothing by themselves: images need a token or a login."""
    path = find_file(config().vendor_dir / "ohif", name)
    if path is None:
        return problem_response("not-found", "The viewer has no such file, or is not installed at this node.", 404)
    response = file_answer(path, request.headers.get("Accept-Encoding", ""), request.headers.get("If-None-Match", ""))
    state = JoinState.objects.only("centre_url").first()
    centre = urlsplit(state.centre_url) if state else None
    ancestors = f" {centre.scheme}://{centre.netloc}" if centre and centre.netloc else ""
    response["Cross-Origin-Opener-Policy"] = "unsafe-none"  # the centre's page hands fresh tokens to this window
    response["Content-Security-Policy"] = f"frame-ancestors 'self'{ancestors}"
    return response


@require_GET
def app_config(request: HttpRequest) -> HttpResponse:
    """OHIF's configuration for this node: its own ``/dicom-web/``, with the token of the address bar's fragment."""
    state = JoinState.objects.only("centre_url").first()
    facts = {"name": config().name, "centre": state.centre_url if state else ""}
    text = f"window.REGIS_NODE = {json.dumps(facts)};\n{_CONFIG_SOURCE.read_text(encoding='utf-8')}"
    response = HttpResponse(text, content_type="text/javascript; charset=utf-8")
    response["Cache-Control"] = "no-store"
    return response

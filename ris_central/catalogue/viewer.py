"""OHIF below ``/viewer/``: its files as they were prepared, and a configuration that names the region's DICOMweb."""

import json
import mimetypes
import re
from pathlib import Path

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from django.views.decorators.clickjacking import xframe_options_sameorigin
from django.views.decorators.http import require_safe

from ris_central.accounts.permissions import Capability, requires

_HASHED = re.compile(r"(?:^|[./-])[0-9a-f]{16,20}\.")
_YEAR = "private, max-age=31536000, immutable"


def configuration(language: str) -> dict[str, object]:
    """OHIF's ``window.config``: one data source, no study list of its own, nothing that covers the images."""
    return {
        "routerBasename": "/viewer",
        "showStudyList": False,
        "extensions": [],
        "modes": [],
        "customizationService": {},
        "showWarningMessageForCrossOrigin": False,
        "showCPUFallbackMessage": False,
        "showLoadingIndicator": True,
        "strictZSpacingForVolumeViewport": True,
        "investigationalUseDialog": {"option": "never"},
        "maxNumRequests": {"interaction": 100, "thumbnail": 8, "prefetch": 20},
        "studyPrefetcher": {"enabled": False},
        "defaultDataSourceName": "dicomweb",
        "i18n": {"language": language},
        "dataSources": [
            {
                "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
                "sourceName": "dicomweb",
                "configuration": {
                    "friendlyName": "Regis",
                    "name": "Regis",
                    "qidoRoot": "/dicom-web",
                    "wadoRoot": "/dicom-web",
                    "wadoUriRoot": "/dicom-web",
                    "qidoSupportsIncludeField": True,
                    "supportsFuzzyMatching": False,
                    "supportsWildcard": True,
                    "imageRendering": "wadors",
                    "thumbnailRendering": "wadors",
                    "enableStudyLazyLoad": True,
                    "omitQuotationForMultipartRequest": True,
                    "bulkDataURI": {"enabled": True, "relativeResolution": "studies"},
                    "singlepart": "video",
                },
            }
        ],
    }


@requires(Capability.SEE_STUDIES)
@require_safe
def app_config(request: HttpRequest) -> HttpResponse:
    """``/viewer/app-config.js``: also the person's language, and that the first-use tour was seen."""
    language = "ru" if getattr(request, "LANGUAGE_CODE", "ru").startswith("ru") else "en-US"
    lines = [
        f"window.config = {json.dumps(configuration(language))};",
        f"localStorage.setItem('i18nextLng', {json.dumps(language)});",
        "localStorage.setItem('shownTours', JSON.stringify(['basicViewerTour']));",
    ]
    response = HttpResponse("\n".join(lines), content_type="text/javascript; charset=utf-8")
    response["Cache-Control"] = "no-store"
    return response


@requires(Capability.SEE_STUDIES)
@require_safe
@xframe_options_sameorigin
def viewer_file(request: HttpRequest, path: str = "") -> HttpResponse:
    """A file of the viewer; every path that is none is a page of it (SPA). Hashed names are kept for a year."""
    root = (settings.CONFIG.vendor_dir / "ohif").resolve()
    wanted = (root / path).resolve()
    if not wanted.is_relative_to(root):
        raise Http404
    is_page = not path or not wanted.is_file()
    if is_page and Path(path).suffix in {".js", ".css", ".wasm", ".map", ".json"}:
        raise Http404
    target = root / "index.html" if is_page else wanted
    if not target.is_file():
        raise Http404("the viewer is not installed")
    return _answer(request, target, _YEAR if _HASHED.search(target.name) else "private, no-cache")


def _answer(request: HttpRequest, target: Path, caching: str) -> HttpResponse:
    content_type = mimetypes.guess_type(target.name)[0] or "application/octet-stream"
    if target.suffix == ".wasm":
        content_type = "application/wasm"
    packed = target.with_name(f"{target.name}.gz")
    use_packed = packed.is_file() and "gzip" in request.headers.get("Accept-Encoding", "")
    response = HttpResponse((packed if use_packed else target).read_bytes(), content_type=content_type)
    if use_packed:
        response["Content-Encoding"] = "gzip"
    response["Vary"] = "Accept-Encoding"
    response["Cache-Control"] = caching
    return response

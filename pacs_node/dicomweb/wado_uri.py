"""WADO-URI: one instance by the parameters of a link, as a picture or as a Part 10 file. Source: PS3.18 9"""

import re
from typing import Final

from django.http import HttpRequest, HttpResponseBase
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe

from pacs_node.dicomweb.permissions import Reach, guarded
from pacs_node.dicomweb.rendered import document, picture
from pacs_node.dicomweb.retrieval import (
    IMMUTABLE,
    StoredFile,
    cached,
    etag_of,
    existing,
    files_of,
    header_of,
    not_modified,
)
from pacs_node.dicomweb.wado import single_instance, transcodable
from pacs_node.study_index.models import Instance
from standards.errors import PermanentError
from standards.media_types import DICOM, instance_choice, parse
from standards.render import MEDIA_TYPES, Window
from standards.uids import validated_uid
from standards.viewports import Viewport

_PICTURE_ONLY: Final = frozenset(
    {"rows", "columns", "region", "windowCenter", "windowWidth", "frameNumber", "imageQuality", "annotation"}
)
_UNSUPPORTED: Final = ("presentationUID", "presentationSeriesUID", "anonymize")
_NUMBER: Final = re.compile(r"-?\d{1,9}(\.\d{1,9})?", re.ASCII)


@csrf_exempt
def wado_uri(request: HttpRequest) -> HttpResponseBase:
    """``/wado?requestType=WADO&studyUID=…&seriesUID=…&objectUID=…``"""
    study = request.GET.get("studyUID", "")
    return _retrieve(request, study=study if re.fullmatch(r"[0-9.]{1,64}", study) else "")


def _invalid(detail: str) -> PermanentError:
    return PermanentError("invalid-parameter", detail)


@require_safe
@guarded("read")
def _retrieve(request: HttpRequest, reach: Reach, study: str) -> HttpResponseBase:
    if request.GET.get("requestType") != "WADO":
        raise _invalid("requestType is WADO.")
    uids = {}
    for name in ("studyUID", "seriesUID", "objectUID"):
        if not request.GET.get(name):
            raise _invalid(f"{name} is missing.")
        uids[name] = validated_uid(request.GET[name])
    for name in _UNSUPPORTED:
        if request.GET.get(name):
            raise _invalid(f"{name} is not supported here.")
    at = {"study": uids["studyUID"], "series": uids["seriesUID"], "instance": uids["objectUID"]}
    instance, file = existing(reach, **at)[0], files_of(reach, at)[0]
    asked = [media.type for media in parse(request.GET.get("contentType", ""))] or [_default(request, instance)]
    for kind in asked:
        if kind in (DICOM, "application/*", "*/*"):
            return _as_file(request, file)
        if instance.rows is not None and kind in (*MEDIA_TYPES, "image/*"):
            return _as_picture(request, instance, MEDIA_TYPES[0] if kind == "image/*" else kind)
        made = document(request, instance, kind)
        if made is not None:
            return made
    kinds = [DICOM, *(MEDIA_TYPES if instance.rows is not None else ())]
    raise PermanentError("not-acceptable", f"This object is given as {', '.join(kinds)}.")


def _default(request: HttpRequest, instance: Instance) -> str:
    """Of an image with one frame, or of one frame, a picture; else the file. Source: PS3.18 9.1.2.2.1"""
    is_picture = instance.rows is not None and (instance.number_of_frames == 1 or "frameNumber" in request.GET)
    return MEDIA_TYPES[0] if is_picture else DICOM


def _as_file(request: HttpRequest, instance: StoredFile) -> HttpResponseBase:
    given = sorted(_PICTURE_ONLY & request.GET.keys())
    if given:
        raise _invalid(f"{', '.join(given)} are for pictures; a file is given whole.")
    syntax = request.GET.get("transferSyntax", "")
    if syntax and not re.fullmatch(r"[0-9.]{1,64}|\*", syntax):
        raise _invalid("transferSyntax is a UID.")
    accept = f"{DICOM}; transfer-syntax={syntax}" if syntax else DICOM
    choice = instance_choice(accept, [instance.transfer_syntax_uid], single=True, transcodable=transcodable)
    if choice is None:
        raise PermanentError("not-acceptable", f"Here there is {instance.transfer_syntax_uid} as stored.")
    etag = etag_of([instance], "instances", choice.multipart, sorted(choice.syntaxes.items()))
    if answer := not_modified(request, etag, IMMUTABLE):
        return answer
    return cached(single_instance(request, instance, choice, etag), etag, IMMUTABLE)


def _as_picture(request: HttpRequest, instance: Instance, kind: str) -> HttpResponseBase:
    if request.GET.get("transferSyntax"):
        raise _invalid("transferSyntax is for application/dicom.")
    frame = _whole(request, "frameNumber", 1)
    if not 1 <= frame <= instance.number_of_frames:
        raise PermanentError("no-such-frame", f"The object has frames 1 to {instance.number_of_frames}, not {frame}.")
    quality = _whole(request, "imageQuality", 90)
    if not 1 <= quality <= 100:
        raise _invalid("imageQuality is from 1 to 100.")
    return picture(
        request, instance, frame - 1, IMMUTABLE, kind, _viewport(request, instance), _window(request), quality
    )


def _whole(request: HttpRequest, name: str, default: int) -> int:
    value = request.GET.get(name, "")
    if not value:
        return default
    if not re.fullmatch(r"\d{1,9}", value, re.ASCII):
        raise _invalid(f"{name} is a whole number.")
    return int(value)


def _numbers(request: HttpRequest, name: str, count: int) -> list[float]:
    parts = [part.strip() for part in request.GET[name].split(",")]
    if len(parts) != count or not all(_NUMBER.fullmatch(part) for part in parts):
        raise _invalid(f"{name} needs {count} numbers." if count > 1 else f"{name} is a number.")
    return [float(part) for part in parts]


def _window(request: HttpRequest) -> Window | None:
    given = [name for name in ("windowCenter", "windowWidth") if request.GET.get(name)]
    if not given:
        return None
    if len(given) == 1:
        raise _invalid("windowCenter and windowWidth belong together.")
    (center,), (width,) = _numbers(request, "windowCenter", 1), _numbers(request, "windowWidth", 1)
    if width < 1:
        raise _invalid("windowWidth is from 1.")
    return Window(center, width)


def _viewport(request: HttpRequest, instance: Instance) -> Viewport | None:
    """``rows`` and ``columns`` bound the size; ``region`` is left, top, right, bottom as parts of 1."""
    header = header_of(instance)
    rows, columns = int(header.dataset.get("Rows") or 1), int(header.dataset.get("Columns") or 1)
    region = None
    if request.GET.get("region"):
        left, top, right, bottom = _numbers(request, "region", 4)
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise _invalid("region is left, top, right and bottom, from 0 to 1.")
        region = (left * columns, top * rows, (right - left) * columns, (bottom - top) * rows)
    high, wide = _whole(request, "rows", 0), _whole(request, "columns", 0)
    if not high and not wide and region is None:
        return None
    bounded = bool(high or wide)
    return Viewport(wide or (1 << 20), high or (1 << 20), region, enlarge=bounded)

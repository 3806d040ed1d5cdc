"""WADO-RS: pictures for people and thumbnails. Source: PS3.18 10.4.1.1.3, 8.3.5.1"""

import re
from typing import Final

from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.views.decorators.http import require_GET

from pacs_node.dicomweb.permissions import Reach, guarded
from pacs_node.dicomweb.retrieval import (
    IMMUTABLE,
    REVALIDATE,
    cached,
    etag_of,
    existing,
    header_of,
    not_modified,
)
from pacs_node.dicomweb.wado import frame_numbers
from pacs_node.storage.filesystem import storage
from pacs_node.study_index.models import Instance
from standards.errors import PermanentError
from standards.media_types import Offer, negotiate
from standards.render import MEDIA_TYPES, Window, render

THUMBNAIL: Final = (128, 128)
_OFFERS: Final = [Offer(kind) for kind in MEDIA_TYPES]
_FUNCTIONS: Final = {"linear": "LINEAR", "linear-exact": "LINEAR_EXACT", "sigmoid": "SIGMOID"}


def _numbers(value: str, name: str, least: int) -> list[float]:
    parts = value.split(",")
    try:
        numbers = [float(part) for part in parts[:least] if re.fullmatch(r"-?\d{1,9}(\.\d{1,9})?", part.strip())]
    except ValueError:
        numbers = []
    if len(numbers) < least:
        raise PermanentError("invalid-parameter", f"{name} needs {least} numbers parted by commas.")
    return numbers


def _window(request: HttpRequest) -> Window | None:
    value = request.GET.get("window", "")
    if not value:
        return None
    center, width = _numbers(value, "window", 2)
    name = value.split(",")[2].strip().lower() if value.count(",") == 2 else "linear"
    function = _FUNCTIONS.get(name)
    if function is None or width < 1 or value.count(",") > 2:
        raise PermanentError("invalid-parameter", "window is a center, a width from 1, and perhaps a function.")
    return Window(center, width, function)


def _viewport(request: HttpRequest, default: tuple[int, int] | None) -> tuple[int, int] | None:
    value = request.GET.get("viewport", "")
    if not value:
        return default
    width, height = _numbers(value, "viewport", 2)
    if width < 1 or height < 1:
        raise PermanentError("invalid-parameter", "viewport is a width and a height from 1.")
    return int(width), int(height)


def _quality(request: HttpRequest) -> int:
    value = request.GET.get("quality", "90")
    if not re.fullmatch(r"[1-9]\d?|100", value, re.ASCII):
        raise PermanentError("invalid-parameter", "quality is a whole number from 1 to 100.")
    return int(value)


def _picture(
    request: HttpRequest, instance: Instance, frame: int, cache: str, viewport: tuple[int, int] | None = None
) -> HttpResponseBase:
    accept = request.GET.get("accept") or request.headers.get("Accept")
    offer = negotiate(accept, _OFFERS)
    if offer is None:
        raise PermanentError("not-acceptable", f"Pictures here are {', '.join(MEDIA_TYPES)}.")
    size, window, quality = _viewport(request, viewport), _window(request), _quality(request)
    etag = etag_of([instance], "picture", frame, offer, size, window, quality)
    if answer := not_modified(request, etag, cache):
        return answer
    content = render(
        storage().local_path(instance.path),
        frame,
        window=window,
        viewport=size,
        quality=quality,
        media_type=offer.type,
        header=header_of(instance),
    )
    return cached(HttpResponse(content, content_type=offer.type), etag, cache)


def _representative(reach: Reach, at: dict[str, str]) -> tuple[Instance, int]:
    """The middle image of the first series below that has images, and its middle frame."""
    images = [instance for instance in existing(reach, **at) if instance.rows]
    if not images:
        raise PermanentError("no-pixel-data", "There is no image here.")
    first = [instance for instance in images if instance.series_id == images[0].series_id]
    chosen = first[len(first) // 2]
    return chosen, (chosen.number_of_frames - 1) // 2


@require_GET
@guarded("read")
def rendered(request: HttpRequest, reach: Reach, **at: str) -> HttpResponseBase:
    """A picture of an instance's first frame, or of what represents a series or a study."""
    if "instance" in at:
        return _picture(request, existing(reach, **at)[0], 0, IMMUTABLE)
    return _picture(request, *_representative(reach, at), REVALIDATE)


@require_GET
@guarded("read")
def rendered_frame(request: HttpRequest, reach: Reach, frames: str, **at: str) -> HttpResponseBase:
    """A picture of one frame."""
    instance = existing(reach, **at)[0]
    wanted = frame_numbers(frames, instance.number_of_frames)
    if len(wanted) != 1:
        raise PermanentError("not-acceptable", "One picture an answer: ask for one frame.")
    return _picture(request, instance, wanted[0], IMMUTABLE)


@require_GET
@guarded("read")
def thumbnail(request: HttpRequest, reach: Reach, frames: str = "", **at: str) -> HttpResponseBase:
    """A small picture of what represents the study, series, instance or frame."""
    instance, frame = _representative(reach, at)
    if frames:
        frame = frame_numbers(frames, instance.number_of_frames)[0]
    return _picture(request, instance, frame, IMMUTABLE if "instance" in at else REVALIDATE, THUMBNAIL)

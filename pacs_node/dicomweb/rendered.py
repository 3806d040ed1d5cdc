"""WADO-RS: pictures for people and thumbnails. Source: PS3.18 10.4.1.1.3, 8.3.5.1"""

import re
import threading
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Final

import structlog
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.views.decorators.http import require_safe

from pacs_node.dicomweb.permissions import Reach, guarded
from pacs_node.dicomweb.qido import accepted, service_root
from pacs_node.dicomweb.retrieval import (
    IMMUTABLE,
    REVALIDATE,
    Answer,
    cached,
    etag_of,
    existing,
    header_of,
    not_modified,
    path_of,
    plain_of,
    plain_source,
    table_of,
)
from pacs_node.dicomweb.segments import FileRange, Segments, ranged
from pacs_node.dicomweb.wado import frame_numbers, stored_frame
from pacs_node.study_index.models import Instance
from standards import transfer_syntaxes
from standards.errors import PermanentError
from standards.frames import read_from_table
from standards.media_types import Offer, content_type, negotiate
from standards.multipart import OutgoingPart, encode_related, new_boundary
from standards.part10 import text
from standards.render import MEDIA_TYPES, Window, render_stored
from standards.transfer_syntaxes import frame_media_type
from standards.viewports import Viewport

log = structlog.get_logger()

THUMBNAIL: Final = Viewport(128, 128, enlarge=False)
_TO_THE_EDGE: Final = 1e9
_DOCUMENT: Final = 0x00420011
# A picture of a large image costs up to a hundred megabytes while it is made, and all threads share two processors.
_RENDERERS: Final = threading.BoundedSemaphore(2)
_OFFERS: Final = [Offer(kind) for kind in MEDIA_TYPES]
_PARTS: Final = [Offer(kind, multipart=True) for kind in MEDIA_TYPES]
_NOT_APPLIED: Final = ("annotation", "iccprofile")
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
    if function is None or width <= 0 or (function == "LINEAR" and width < 1) or value.count(",") > 2:
        raise PermanentError("invalid-parameter", "window is a center, a width from 1, and perhaps a function.")
    return Window(center, width, function)


def _viewport(request: HttpRequest, default: Viewport | None) -> Viewport | None:
    """``vw,vh`` or ``vw,vh,sx,sy,sw,sh``, of which all but the first two may be empty. Source: PS3.18 8.3.5.1.3"""
    value = request.GET.get("viewport", "")
    if not value:
        return default
    parts = [part.strip() for part in value.split(",")]
    if len(parts) not in (2, 6):
        raise PermanentError("invalid-parameter", "viewport is two or six numbers parted by commas.")
    width, height = _numbers(",".join(parts[:2]), "viewport", 2)
    if width < 1 or height < 1:
        raise PermanentError("invalid-parameter", "viewport is a width and a height from 1.")
    if len(parts) == 2:
        return Viewport(int(width), int(height))
    left, top = (_numbers(part or "0", "viewport", 1)[0] for part in parts[2:4])
    across, down = (_numbers(part, "viewport", 1)[0] if part else _TO_THE_EDGE for part in parts[4:])
    return Viewport(int(width), int(height), (left, top, across, down))


def _quality(request: HttpRequest) -> int:
    value = request.GET.get("quality", "90")
    if not re.fullmatch(r"[1-9]\d?|100", value, re.ASCII):
        raise PermanentError("invalid-parameter", "quality is a whole number from 1 to 100.")
    return int(value)


Shown = tuple[Instance, int]
"""An image and one of its frames, from 0."""


def _pictures(
    request: HttpRequest, one: Shown | None, every: Callable[[], list[Shown]], cache: str, size: Viewport | None = None
) -> HttpResponseBase:
    """One picture, or all as parts for who wants them so or where ``one`` cannot stand for them."""
    offer = negotiate(accepted(request), [*_OFFERS, *_PARTS] if one else _PARTS)
    if offer is None:
        parts = "" if one else "parts of "
        raise PermanentError("not-acceptable", f"Pictures here are {parts}{', '.join(MEDIA_TYPES)}.")
    size, window, quality = _viewport(request, size), _window(request), _quality(request)
    if one and not offer.multipart:
        return picture(request, *one, cache, offer.type, size, window, quality)
    shown = every()
    etag = etag_of(
        [instance for instance, _ in shown], "pictures", [frame for _, frame in shown], offer, size, window, quality
    )
    if answer := not_modified(request, etag, cache):
        return answer
    root, boundary = service_root(request), new_boundary()
    made = _made_parts(root, shown, offer.type, size, window, quality)
    first = next(made)  # what cannot be shown at all still has a status to say so
    body = encode_related(chain([first], made), boundary)
    response = StreamingHttpResponse(body, content_type=content_type(offer, boundary))
    return cached(_saying_what_is_left_out(request, response), etag, cache)


def _made_parts(
    root: str, shown: list[Shown], kind: str, size: Viewport | None, window: Window | None, quality: int
) -> Iterator[OutgoingPart]:
    """One picture that cannot be made never stops the rest. Raises: PermanentError when none can."""
    failed: PermanentError | None = None
    given = False
    for instance, frame in shown:
        try:
            content = _made(instance, frame, kind, size, window, quality)
        except PermanentError as error:
            log.warning("dicomweb.not_rendered", instance=instance.pk, frame=frame, code=error.code)
            failed = error
            continue
        given = True
        place = f"{root}{path_of(instance)}/frames/{frame + 1}/rendered"
        yield OutgoingPart({"Content-Type": kind, "Content-Location": place}, content)
    if failed is not None and not given:
        raise failed


def _made(
    instance: Instance, frame: int, kind: str, size: Viewport | None, window: Window | None, quality: int
) -> bytes:
    header = header_of(instance)
    with _RENDERERS, plain_of(instance, header) as plain:
        stored = read_from_table(plain, table_of(instance, header), frame)
        return render_stored(
            stored,
            header,
            frame,
            plain=plain,
            window=window,
            viewport=size,
            quality=quality,
            media_type=kind,
        )


def picture(
    request: HttpRequest,
    instance: Instance,
    frame: int,
    cache: str,
    media_type: str,
    viewport: Viewport | None,
    window: Window | None,
    quality: int,
) -> HttpResponseBase:
    """One frame as a picture, with an ETag. Raises: PermanentError, see ``render.render_stored``."""
    etag = etag_of([instance], "picture", frame, media_type, viewport, window, quality)
    if answer := not_modified(request, etag, cache):
        return answer
    content = _made(instance, frame, media_type, viewport, window, quality)
    response = HttpResponse(content, content_type=media_type)
    return cached(_saying_what_is_left_out(request, response), etag, cache)


def _saying_what_is_left_out(request: HttpRequest, response: Answer) -> Answer:
    """A warning for each parameter that pictures here do not follow. Source: PS3.18 8.3.5.1"""
    names = [name for name in _NOT_APPLIED if request.GET.get(name, "no") not in ("", "no")]
    if names:
        response["Warning"] = ", ".join(f'299 regis "The parameter {name} is not applied here."' for name in names)
    return response


def document(request: HttpRequest, instance: Instance, asked: str | None) -> HttpResponseBase | None:
    """What is no picture but has a form for people: a video as it is stored, a PDF as itself; None for the rest.

    ``asked`` is what the client accepts. Raises: PermanentError("not-acceptable").
    """
    header = header_of(instance)
    if transfer_syntaxes.is_video(header.transfer_syntax):
        kind = frame_media_type(header.transfer_syntax)
        body = stored_frame(instance, header, table_of(instance, header), 0)
    elif text(header.dataset, "MIMETypeOfEncapsulatedDocument") == "application/pdf":
        kind = "application/pdf"
        place = next((found[1:] for found in header.omitted if found[0] == _DOCUMENT), None)
        if place:
            body = [FileRange(plain_source(instance, header), *place)]
        else:
            body = [bytes(header.dataset.get("EncapsulatedDocument") or b"")]
    else:
        return None
    if negotiate(asked, [Offer(kind)]) is None:
        raise PermanentError("not-acceptable", f"This object is shown as {kind}.")
    etag = etag_of([instance], "document", kind)
    if answer := not_modified(request, etag, IMMUTABLE):
        return answer
    return cached(ranged(request, Segments(body), kind, etag), etag, IMMUTABLE)


def _representative(images: list[Instance]) -> Shown:
    """The middle image of the first series that has images, and its middle frame."""
    if not images:
        raise PermanentError("no-pixel-data", "There is no image here.")
    first = [instance for instance in images if instance.series_id == images[0].series_id]
    chosen = first[len(first) // 2]
    return chosen, (chosen.number_of_frames - 1) // 2


@require_safe
@guarded("read")
def rendered(request: HttpRequest, reach: Reach, **at: str) -> HttpResponseBase:
    """A picture of an instance's first frame, or of what represents a series or a study; as parts, all frames below."""
    found = existing(reach, **at)
    if "instance" in at and (answer := document(request, found[0], accepted(request))):
        return answer
    images = [instance for instance in found if instance.rows]
    one, cache = ((found[0], 0), IMMUTABLE) if "instance" in at else (_representative(images), REVALIDATE)
    return _pictures(request, one, lambda: _frames_of(images), cache)


def _frames_of(images: list[Instance]) -> list[Shown]:
    if not images:
        raise PermanentError("no-pixel-data", "There is no image here.")
    return [(instance, frame) for instance in images for frame in range(instance.number_of_frames or 1)]


@require_safe
@guarded("read")
def rendered_frame(request: HttpRequest, reach: Reach, frames: str, **at: str) -> HttpResponseBase:
    """A picture of one frame; of several, as parts."""
    instance = existing(reach, **at)[0]
    shown = [(instance, frame) for frame in frame_numbers(frames, instance.number_of_frames)]
    return _pictures(request, shown[0] if len(shown) == 1 else None, lambda: shown, IMMUTABLE)


@require_safe
@guarded("read")
def thumbnail(request: HttpRequest, reach: Reach, frames: str = "", **at: str) -> HttpResponseBase:
    """A small picture of what represents the study, series, instance or frame."""
    instance, frame = _representative([instance for instance in existing(reach, **at) if instance.rows])
    if frames:
        frame = frame_numbers(frames, instance.number_of_frames)[0]
    cache = IMMUTABLE if "instance" in at else REVALIDATE
    return _pictures(request, (instance, frame), lambda: [(instance, frame)], cache, THUMBNAIL)

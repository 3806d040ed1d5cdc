"""WADO-RS: instances, metadata, frames and bulk data as they are stored. Source: PS3.18 10.4"""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Final, TypeVar

import numpy as np
import structlog
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.views.decorators.http import require_GET
from pydicom.datadict import dictionary_VR

from pacs_node.dicomweb.permissions import Reach, guarded, study_filter
from pacs_node.dicomweb.qido import JSON, accepts_json, service_root
from pacs_node.dicomweb.queries import held
from pacs_node.storage.filesystem import storage
from pacs_node.study_index.models import Instance
from standards import transfer_syntaxes
from standards.dicom_json import to_json
from standards.errors import PermanentError
from standards.frames import frame_bytes
from standards.media_types import DICOM, Offer, content_type, frame_offers, negotiate
from standards.multipart import OutgoingPart, encode_related, new_boundary
from standards.part10 import Header, open_plain, read_header
from standards.pixels import decode_frame

log = structlog.get_logger()
Answer = TypeVar("Answer", bound=HttpResponseBase)

_CHUNK: Final = 1 << 18
_INLINE_BYTES: Final = 1024
_MOST_FRAMES: Final = 10_000
IMMUTABLE: Final = "private, max-age=31536000, immutable"
REVALIDATE: Final = "private, no-cache"


def instances_of(reach: Reach, study: str, series: str = "", instance: str = "") -> QuerySet[Instance]:
    """The instances below this path, within reach, in the order of their numbers; variants are never given."""
    found = Instance.objects.filter(
        held(), study_filter(reach, "series__study__"), series__study__study_instance_uid=study
    )
    if series:
        found = found.filter(series__series_instance_uid=series)
    if instance:
        found = found.filter(sop_instance_uid=instance)
    return found.select_related("series__study").order_by(
        "series__study_id", "series__series_number", "series_id", "instance_number", "pk"
    )


def existing(reach: Reach, study: str, series: str = "", instance: str = "") -> list[Instance]:
    """:func:`instances_of` as a list. Raises: PermanentError("not-found") when there are none."""
    found = list(instances_of(reach, study, series, instance))
    if not found:
        raise PermanentError("not-found", "This node holds nothing by that address.")
    return found


def present(found: list[Instance]) -> list[Instance]:
    """Those whose file is on the storage: one lost file never stops the rest of its study.

    Raises: PermanentError("instance-gone") when none is left.
    """
    there = [instance for instance in found if storage().exists(instance.path)]
    if len(there) < len(found):
        log.error("dicomweb.files_missing", missing=len(found) - len(there), of=len(found))
    if not there:
        raise PermanentError("instance-gone", "The files are not on the storage any more.")
    return there


@lru_cache(maxsize=32)
def _header(path: str, _digest: str) -> Header:
    with storage().open(path) as file:
        return read_header(file)


def header_of(instance: Instance) -> Header:
    """The header of an instance; a few are remembered, as the frames of one object are asked for one by one."""
    return _header(instance.path, instance.dataset_sha256)


def not_modified(request: HttpRequest, etag: str, cache: str) -> HttpResponse | None:
    """304 when the client has it."""
    if etag not in request.headers.get("If-None-Match", ""):
        return None
    response = HttpResponse(status=304)
    return cached(response, etag, cache)


def cached(response: Answer, etag: str, cache: str) -> Answer:
    """Say how long the answer holds."""
    response["ETag"] = etag
    response["Cache-Control"] = cache
    response["Vary"] = "Accept"
    return response


def etag_of(instances: Iterable[Instance], *what: object) -> str:
    """The ETag of what is made of these instances: it changes with any content and with how it is given."""
    digest = hashlib.sha256(repr(what).encode())
    for instance in instances:
        digest.update(instance.dataset_sha256.encode())
    return f'"{digest.hexdigest()[:32]}"'


def path_of(instance: Instance) -> str:
    """The path of an instance below the service root."""
    series = instance.series
    return (
        f"/studies/{series.study.study_instance_uid}/series/{series.series_instance_uid}"
        f"/instances/{instance.sop_instance_uid}"
    )


# Instances


def _file_chunks(instance: Instance) -> Iterator[bytes]:
    with storage().open(instance.path) as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _stored_offers(syntaxes: set[str]) -> list[Offer]:
    if len(syntaxes) == 1:
        return [Offer(DICOM, next(iter(syntaxes)), multipart=True, stored=True)]
    return [Offer(DICOM, "", multipart=True, stored=True)]


@require_GET
@guarded("read")
def instances(request: HttpRequest, reach: Reach, **at: str) -> HttpResponseBase:
    """A study, series or instance as Part 10 files, exactly as stored, streamed."""
    found = present(existing(reach, **at))
    syntaxes = {instance.transfer_syntax_uid for instance in found}
    offers = _stored_offers(syntaxes)
    if len(found) == 1 and "instance" in at:
        offers.append(Offer(DICOM, found[0].transfer_syntax_uid, stored=True))
    offer = negotiate(request.headers.get("Accept"), offers)
    if offer is None:
        raise PermanentError(
            "not-acceptable", f"Here there is application/dicom as stored: {', '.join(sorted(syntaxes))}."
        )
    cache = IMMUTABLE if "instance" in at else REVALIDATE
    etag = etag_of(found, "instances", offer)
    if answer := not_modified(request, etag, cache):
        return answer
    if not offer.multipart:
        response = StreamingHttpResponse(_file_chunks(found[0]), content_type=content_type(offer))
        return cached(response, etag, cache)
    root, boundary = service_root(request), new_boundary()
    parts = (
        OutgoingPart(
            {
                "Content-Type": f"{DICOM}; transfer-syntax={instance.transfer_syntax_uid}",
                "Content-Location": root + path_of(instance),
            },
            _file_chunks(instance),
        )
        for instance in found
    )
    response = StreamingHttpResponse(encode_related(parts, boundary), content_type=content_type(offer, boundary))
    return cached(response, etag, cache)


# Metadata


def metadata_of(instance: Instance, root: str) -> dict[str, Any]:
    """All attributes of an instance in DICOM JSON; long binary values and pixels by BulkDataURI below ``root``."""
    header = header_of(instance)
    base = f"{root}{path_of(instance)}/bulkdata"
    extra: dict[str, dict[str, Any]] = {
        "00083002": {"vr": "UI", "Value": [header.transfer_syntax]},
        "00081190": {"vr": "UR", "Value": [root + path_of(instance)]},
    }
    for tag, _, _ in header.omitted:
        extra[f"{tag:08X}"] = {"vr": _bulk_vr(tag), "BulkDataURI": f"{base}/{tag:08X}"}
    if header.pixel_offset is not None:
        tag = _PIXEL_TAGS[header.pixel_keyword]
        extra[f"{tag:08X}"] = {"vr": _bulk_vr(tag), "BulkDataURI": f"{base}/{tag:08X}"}
    notes: list[str] = []
    uri = lambda path, length: f"{base}/{path}" if length > _INLINE_BYTES else None  # noqa: E731
    body = to_json(header.dataset, uri, notes=notes, extra=extra)
    if notes:
        log.warning("dicomweb.values_unreadable", instance=instance.pk, values=notes[:20])
    return body


_PIXEL_TAGS: Final = {"PixelData": 0x7FE00010, "FloatPixelData": 0x7FE00008, "DoubleFloatPixelData": 0x7FE00009}


def _bulk_vr(tag: int) -> str:
    try:
        vr = dictionary_VR(tag)
    except KeyError:
        return "UN"
    return "OW" if "OW" in vr else vr


@require_GET
@guarded("read")
def metadata(request: HttpRequest, reach: Reach, **at: str) -> HttpResponseBase:
    """The attributes of all instances below, as one JSON array that is sent while it is made."""
    accepts_json(request)
    found = present(existing(reach, **at))
    root = service_root(request)
    cache = REVALIDATE
    etag = etag_of(found, "metadata", root)
    if answer := not_modified(request, etag, cache):
        return answer
    return cached(StreamingHttpResponse(_json_array(found, root), content_type=JSON), etag, cache)


def _json_array(found: list[Instance], root: str) -> Iterator[bytes]:
    separator = b"["
    for instance in found:
        yield separator + _remembered.text(instance, root)
        separator = b","
    yield b"]"


class _Remembered:
    """Metadata texts made lately, up to so many bytes: a stored instance never changes, so they stay true."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._texts: OrderedDict[tuple[int, str], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def text(self, instance: Instance, root: str) -> bytes:
        """The metadata of an instance as JSON text."""
        key = (instance.pk, f"{root} {instance.dataset_sha256}")
        with self._lock:
            if key in self._texts:
                self._texts.move_to_end(key)
                return self._texts[key]
        text = json.dumps(metadata_of(instance, root), ensure_ascii=False, separators=(",", ":")).encode()
        with self._lock:
            if key not in self._texts:
                self._texts[key] = text
                self._bytes += len(text)
            while self._bytes > self._most_bytes:
                self._bytes -= len(self._texts.popitem(last=False)[1])
        return text


_remembered = _Remembered(64 << 20)


# Frames


def frame_numbers(text: str, count: int) -> list[int]:
    """Frame indices from 0 of a path segment like ``1,3``.

    Raises: PermanentError "invalid-parameter", "no-such-frame".
    """
    parts = text.replace("%2C", ",").replace("%2c", ",").split(",")
    if len(parts) > _MOST_FRAMES or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise PermanentError("invalid-parameter", "Frames are numbers from 1, parted by commas.")
    numbers = [int(part) for part in parts]
    for number in numbers:
        if not 1 <= number <= count:
            raise PermanentError("no-such-frame", f"The object has frames 1 to {count}, not {number}.")
    return [number - 1 for number in numbers]


def _native_frame(instance: Instance, header: Header, index: int) -> bytes:
    with storage().open(instance.path) as file, open_plain(file, header) as plain:
        frame = decode_frame(plain, header, index)
    if int(header.dataset.get("BitsAllocated") or 8) == 1:
        return np.packbits(frame, bitorder="little").tobytes()
    return frame.tobytes()


@require_GET
@guarded("read")
def frames(request: HttpRequest, reach: Reach, study: str, series: str, instance: str, frames: str) -> HttpResponseBase:
    """Frames as stored, or decoded to native little-endian bytes where that is asked for; multipart or single."""
    found = existing(reach, study, series, instance)[0]
    header = header_of(found)
    if header.pixel_offset is None:
        raise PermanentError("no-pixel-data", "This object has no image.")
    stored = header.transfer_syntax
    count = 1 if transfer_syntaxes.is_video(stored) else found.number_of_frames
    wanted = frame_numbers(frames, count)
    offers = frame_offers(stored, decodable=not transfer_syntaxes.is_video(stored))
    if len(wanted) == 1:
        offers += [Offer(offer.type, offer.transfer_syntax, stored=offer.stored) for offer in offers]
    accept = request.headers.get("Accept")
    # octet-stream alone means native bytes (PS3.18 8.7.3.3); a codec's own media type needs no transfer syntax.
    offer = negotiate(accept, offers, default_transfer_syntax=transfer_syntaxes.EXPLICIT_VR_LITTLE_ENDIAN)
    offer = offer or negotiate(accept, offers)
    if offer is None:
        raise PermanentError("not-acceptable", "Here there is " + ", ".join(sorted({o.type for o in offers})) + ".")
    etag = etag_of([found], "frames", frames, offer)
    if answer := not_modified(request, etag, IMMUTABLE):
        return answer
    path = storage().local_path(found.path)

    def body(index: int) -> bytes:
        return frame_bytes(path, header, index) if offer.stored else _native_frame(found, header, index)

    first = body(wanted[0])  # what cannot be decoded becomes a 406 while there still is a status to choose
    if not offer.multipart:
        return cached(HttpResponse(first, content_type=content_type(offer)), etag, IMMUTABLE)
    root, boundary = service_root(request), new_boundary()
    parts = (
        OutgoingPart(
            {
                "Content-Type": f"{offer.type}; transfer-syntax={offer.transfer_syntax}",
                "Content-Location": f"{root}{path_of(found)}/frames/{index + 1}",
            },
            first if place == 0 else body(index),
        )
        for place, index in enumerate(wanted)
    )
    chunks = encode_related(parts, boundary)
    return cached(StreamingHttpResponse(chunks, content_type=content_type(offer, boundary)), etag, IMMUTABLE)

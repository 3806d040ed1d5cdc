"""WADO-RS metadata: all attributes of instances, in DICOM JSON or XML. Source: PS3.18 10.4.1.1.2"""

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Final

import structlog
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.views.decorators.http import require_GET
from pydicom.datadict import dictionary_VR

from pacs_node.dicomweb.permissions import Reach, guarded
from pacs_node.dicomweb.qido import service_root
from pacs_node.dicomweb.retrieval import REVALIDATE, cached, etag_of, existing, not_modified, path_of, present
from pacs_node.storage.stores import storage
from pacs_node.study_index.models import Instance
from standards.dicom_json import to_json
from standards.dicom_xml import MEDIA_TYPE as XML
from standards.dicom_xml import to_xml
from standards.errors import PermanentError
from standards.media_types import DICOM_JSON, Offer, content_type, negotiate
from standards.multipart import OutgoingPart, encode_related, new_boundary
from standards.part10 import read_header

log = structlog.get_logger()

_INLINE_BYTES: Final = 1024
_PIXEL_TAGS: Final = {"PixelData": 0x7FE00010, "FloatPixelData": 0x7FE00008, "DoubleFloatPixelData": 0x7FE00009}
_OFFERS: Final = [Offer(DICOM_JSON), Offer("application/json"), Offer(XML, multipart=True)]
_OFFERS_OF_ONE: Final = [*_OFFERS, Offer(XML)]
_AHEAD: Final = 1 << 18


def metadata_of(instance: Instance, root: str) -> dict[str, Any]:
    """All attributes of an instance in DICOM JSON; long binary values and pixels by BulkDataURI below ``root``."""
    with storage().open(instance.path) as file:
        header = read_header(file)
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


def _bulk_vr(tag: int) -> str:
    try:
        vr = dictionary_VR(tag)
    except KeyError:
        return "UN"
    return "OW" if "OW" in vr else vr


@require_GET
@guarded("read")
def metadata(request: HttpRequest, reach: Reach, **at: str) -> HttpResponseBase:
    """The attributes of all instances below: one JSON array, or an XML document an instance; sent while it is made."""
    accept = request.GET.get("accept") or request.headers.get("Accept")
    offer = negotiate(accept, _OFFERS_OF_ONE if "instance" in at else _OFFERS)
    if offer is None:
        raise PermanentError("not-acceptable", f"Metadata are given as {DICOM_JSON} and as parts of {XML}.")
    found = present(existing(reach, **at))
    root = service_root(request)
    etag = etag_of(found, "metadata", root, offer)
    if answer := not_modified(request, etag, REVALIDATE):
        return answer
    if offer.type != XML:
        response: HttpResponseBase = StreamingHttpResponse(_json_array(found, root), content_type=offer.type)
    elif offer.multipart:
        boundary = new_boundary()
        parts = (OutgoingPart({"Content-Type": XML}, _xml(instance, root)) for instance in found)
        response = StreamingHttpResponse(encode_related(parts, boundary), content_type=content_type(offer, boundary))
    else:
        response = HttpResponse(_xml(found[0], root), content_type=XML)
    return cached(response, etag, REVALIDATE)


def _xml(instance: Instance, root: str) -> bytes:
    return to_xml(json.loads(_remembered.text(instance, root)))


def _json_array(found: list[Instance], root: str) -> Iterator[bytes]:
    buffer = bytearray()
    for place, instance in enumerate(found):
        buffer += b"," if place else b"["
        buffer += _remembered.text(instance, root)
        if len(buffer) > _AHEAD or place == 0:  # the first at once, so that the reader can begin
            yield bytes(buffer)
            buffer.clear()
    yield bytes(buffer) + b"]"


class _Remembered:
    """Metadata texts made lately, up to so many bytes: a stored instance never changes, so they stay true."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._texts: OrderedDict[tuple[int, str], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def text(self, instance: Instance, root: str) -> bytes:
        """The metadata of an instance as JSON text."""
        key = (instance.pk, f"{root} {instance.path} {instance.dataset_sha256}")  # recompressed, it has another path
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


_remembered = _Remembered(48 << 20)

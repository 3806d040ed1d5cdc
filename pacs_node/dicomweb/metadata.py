"""WADO-RS metadata: all attributes of instances, in DICOM JSON or XML. Source: PS3.18 10.4.1.1.2"""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import structlog
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.views.decorators.http import require_safe
from pydicom.datadict import dictionary_VR

from pacs_node.dicomweb.permissions import Reach, guarded
from pacs_node.dicomweb.qido import accepted, service_root
from pacs_node.dicomweb.retrieval import (
    REVALIDATE,
    cached,
    instances_of,
    not_modified,
    path_of,
)
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
_BATCH: Final = 200


def metadata_of(instance: Instance, root: str) -> dict[str, Any]:
    """All attributes of an instance in DICOM JSON; long binary values and pixels by BulkDataURI below ``root``."""
    with storage().open(instance.path) as file:
        header = read_header(file, tell_places=True)
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


class _Row(NamedTuple):
    """What of an instance says which metadata text is its."""

    pk: int
    dataset_sha256: str
    path: str


@require_safe
@guarded("read")
def metadata(request: HttpRequest, reach: Reach, **at: str) -> HttpResponseBase:
    """The attributes of all instances below: one JSON array, or an XML document an instance; sent while it is made."""
    accept = accepted(request)
    offer = negotiate(accept, _OFFERS_OF_ONE if "instance" in at else _OFFERS)
    if offer is None:
        raise PermanentError("not-acceptable", f"Metadata are given as {DICOM_JSON} and as parts of {XML}.")
    found = _rows(reach, at)
    root = service_root(request)
    digest = hashlib.sha256(repr((root, offer)).encode())
    for row in found:
        digest.update(f"{row.dataset_sha256}{row.path}".encode())
    etag = f'"{digest.hexdigest()[:32]}"'
    if answer := not_modified(request, etag, REVALIDATE):
        return answer
    texts = _texts(found, root)
    if offer.type != XML:
        response = _json_response(texts, offer.type, len(found))
    elif offer.multipart:
        boundary = new_boundary()
        parts = (OutgoingPart({"Content-Type": XML}, to_xml(json.loads(text))) for text in texts)
        response = StreamingHttpResponse(encode_related(parts, boundary), content_type=content_type(offer, boundary))
    else:
        response = HttpResponse(to_xml(json.loads(next(texts))), content_type=XML)
    return cached(response, etag, REVALIDATE)


def _rows(reach: Reach, at: dict[str, str]) -> list[_Row]:
    """A series has hundreds, so nothing more is made of them here. Raises: PermanentError("not-found")."""
    found = [_Row(*row) for row in instances_of(reach, **at).values_list("pk", "dataset_sha256", "path")]
    if not found:
        raise PermanentError("not-found", "This node holds nothing by that address.")
    return found


def _texts(found: list[_Row], root: str) -> Iterator[bytes]:
    """The metadata of each as JSON text; what is not remembered is read in batches.

    One file that is lost or damaged never stops the rest of its study; without any there is an error.

    Raises: PermanentError "instance-gone" and those of ``part10.read_header``; TransientError("recall-failed").
    """
    given, failed = 0, None
    for start in range(0, len(found), _BATCH):
        batch = found[start : start + _BATCH]
        known = [_remembered.get(row, root) for row in batch]
        missing = [row.pk for row, text in zip(batch, known, strict=True) if text is None]
        models = Instance.objects.select_related("series__study").in_bulk(missing) if missing else {}
        for row, text in zip(batch, known, strict=True):
            if text is None and row.pk in models:
                try:
                    made = metadata_of(models[row.pk], root)
                except PermanentError as error:
                    log.error("dicomweb.unreadable", instance=row.pk, code=error.code)
                    failed = error
                    continue
                text = json.dumps(made, ensure_ascii=False, separators=(",", ":")).encode()
                _remembered.put(row, root, text)
            if text is not None:
                given += 1
                yield text
    if failed is not None and not given:
        raise failed


def _json_response(texts: Iterator[bytes], kind: str, count: int) -> HttpResponseBase:
    chunks = _json_array(texts)
    if count <= _BATCH:
        return HttpResponse(b"".join(chunks), content_type=kind)
    return StreamingHttpResponse(chunks, content_type=kind)


def _json_array(texts: Iterator[bytes]) -> Iterator[bytes]:
    buffer = bytearray(b"[")
    for place, text in enumerate(texts):
        if place:
            buffer += b","
        buffer += text
        if len(buffer) > _AHEAD or place == 0:  # the first at once, so that the reader can begin
            yield bytes(buffer)
            buffer.clear()
    yield bytes(buffer) + b"]"


class _Remembered:
    """Metadata texts made lately, up to so many bytes: a stored instance never changes, so they stay true.

    One that is stored in another encoding by now lies at another path.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._texts: OrderedDict[tuple[_Row, str], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, row: _Row, root: str) -> bytes | None:
        """The metadata of an instance as JSON text, if it is remembered."""
        with self._lock:
            text = self._texts.get((row, root))
            if text is not None:
                self._texts.move_to_end((row, root))
            return text

    def put(self, row: _Row, root: str, text: bytes) -> None:
        """Remember it, and forget the oldest for it."""
        with self._lock:
            if (row, root) not in self._texts:
                self._texts[row, root] = text
                self._bytes += len(text)
            while self._bytes > self._most_bytes:
                self._bytes -= len(self._texts.popitem(last=False)[1])


_remembered = _Remembered(48 << 20)

"""STOW-RS: taking instances in over HTTP, one answer an item; one bad item never stops the rest.

Source: PS3.18 10.5
"""

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
from django.http import HttpRequest, HttpResponse, JsonResponse

from pacs_node.clinic import audit
from pacs_node.dicomweb.permissions import Reach, client_address, guarded, record_refusal
from pacs_node.dicomweb.problems import Refused, error_response
from pacs_node.dicomweb.qido import JSON, service_root
from pacs_node.dicomweb.stow_metadata import MEDIA_TYPES as METADATA_TYPES
from pacs_node.dicomweb.stow_metadata import MetadataMessage
from pacs_node.dimse.statuses import NOT_AUTHORISED, OUT_OF_RESOURCES, status_of
from pacs_node.storage.stores import storage
from pacs_node.study_index.actions import Ingested, ingest
from standards.dicom_xml import MEDIA_TYPE as XML
from standards.dicom_xml import to_xml
from standards.errors import PermanentError, RegisError, TransientError
from standards.media_types import DICOM, MULTIPART_RELATED, Offer, negotiate, parse
from standards.multipart import Part, parse_related
from standards.part10 import Header, read_header

log = structlog.get_logger()

SOURCE: Final = "STOW-RS"
_OTHER_STUDY: Final = 0xA900
_KEPT_ASIDE: Final = 0xB000
_MEDIA_TYPE_NOT_SUPPORTED: Final = 0xC0FF
_CHUNK: Final = 1 << 20
_META_GROUP: Final = b"\x02\0\0\0UL\4\0"
"""How a Part 10 file begins without its preamble: File Meta Information Group Length."""


class _Answer:
    """The response module: what was stored, what was not and why. Source: PS3.18 I.2"""

    def __init__(self, root: str) -> None:
        self._root = root
        self.stored: list[dict[str, Any]] = []
        self.failed: list[dict[str, Any]] = []
        self.other_failures: list[dict[str, Any]] = []
        self.warned = self.full = self.failing = self.refused = False
        self.studies: set[str] = set()

    def add(self, done: Ingested, header: Header) -> None:
        """An instance that is safe now."""
        url = (
            f"{self._root}/studies/{header.study_instance_uid}/series/{header.series_instance_uid}"
            f"/instances/{header.sop_instance_uid}"
        )
        item = _reference(header) | {"00081190": {"vr": "UR", "Value": [url]}}
        if done.outcome == "conflict":  # kept, but under a used UID: not what that address gives
            item["00081196"] = {"vr": "US", "Value": [_KEPT_ASIDE]}
            self.warned = True
        self.stored.append(item)
        self.studies.add(header.study_instance_uid)

    def fail(self, reason: int, header: Header | None) -> None:
        """An instance that was not stored; without a readable header it cannot be named."""
        failure = {"00081197": {"vr": "US", "Value": [reason]}}
        if header is None:
            self.other_failures.append(failure)
        else:
            self.failed.append(_reference(header) | failure)

    def fail_named(self, reason: int, sop_class_uid: str, sop_instance_uid: str) -> None:
        """An instance that was not stored, and is known by what its sender says of it."""
        failure = {"00081197": {"vr": "US", "Value": [reason]}}
        if sop_instance_uid:
            self.failed.append(
                {
                    "00081150": {"vr": "UI", "Value": [sop_class_uid]},
                    "00081155": {"vr": "UI", "Value": [sop_instance_uid]},
                    **failure,
                }
            )
        else:
            self.other_failures.append(failure)

    def body(self, study: str) -> dict[str, Any]:
        """The data set in DICOM JSON. Retrieve URL is empty where the instances are not of one study."""
        uid = study or (next(iter(self.studies)) if len(self.studies) == 1 else "")
        url = {"Value": [f"{self._root}/studies/{uid}"]} if uid else {}
        body: dict[str, Any] = {"00081190": {"vr": "UR"} | url}
        sequences = {"00081198": self.failed, "00081199": self.stored, "0008119A": self.other_failures}
        return body | {tag: {"vr": "SQ", "Value": items} for tag, items in sequences.items() if items}

    def status(self) -> int:
        """200 all stored, 202 some or with warnings, 409 none; 507 none because the disk is full, 503 none because the
        storage fails, 403 none by right."""
        failures = len(self.failed) + len(self.other_failures)
        if not self.stored:
            return 507 if self.full else 503 if self.failing else 403 if self.refused else 409
        return 202 if failures or self.warned else 200


class _Body:
    """The body of a request as a stream; a sender that breaks off is "truncated" and nothing worse."""

    def __init__(self, request: HttpRequest) -> None:
        # Django reads no further than Content-Length; a chunked body has none and ends by itself.
        self._stream: Any = request if request.headers.get("Content-Length") else request.META["wsgi.input"]

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes. Raises: PermanentError("truncated")."""
        try:
            return bytes(self._stream.read(size))
        except (OSError, ValueError) as error:  # a closed socket, or the HTTP server's "Bad chunked transfer size"
            raise PermanentError("truncated", "the sender broke off") from error


def _reference(header: Header) -> dict[str, Any]:
    return {
        "00081150": {"vr": "UI", "Value": [header.sop_class_uid]},
        "00081155": {"vr": "UI", "Value": [header.sop_instance_uid]},
    }


@contextlib.contextmanager
def _incoming(part: "Part | _Single") -> Iterator[Path]:
    """The part in a file on the storage, gone afterwards unless it was taken in.

    Raises: TransientError("storage-full"), PermanentError("truncated").
    """
    path = storage().new_incoming()
    try:
        with path.open("xb") as file:
            try:
                chunk = part.read(_CHUNK)
                if chunk.startswith(_META_GROUP):  # dicomweb-client sends so what was never a file
                    file.write(bytes(128) + b"DICM")
                while chunk:
                    file.write(chunk)
                    chunk = part.read(_CHUNK)
                file.flush()
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise TransientError("storage-full", os.strerror(error.errno)) from error
                raise
        yield path
    finally:
        path.unlink(missing_ok=True)


@guarded("store")
def store(request: HttpRequest, reach: Reach, study: str = "") -> HttpResponse:
    """``POST /studies`` and ``/studies/{study}``: the body is read as a stream, an item at a time."""
    if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise PermanentError("unsupported-media-type", "Send the message as it is, without a Content-Encoding.")
    kind = request.headers.get("Content-Type", "")
    media = parse(kind)
    inner = media[0].inner if media else ""
    if inner not in (DICOM, *METADATA_TYPES):
        wanted = ", ".join((DICOM, *METADATA_TYPES))
        raise PermanentError("unsupported-media-type", f"Send one of {wanted}, or multipart/related of them.")
    transaction = _Transaction(request, reach, study, _Answer(service_root(request)))
    answer = transaction.answer
    broken: RegisError | None = None
    try:
        if media[0].type == DICOM:
            single = _Single(_Body(request), kind)
            transaction.take(single)
            if not single.length:
                broken = PermanentError("empty-payload", "The message has no body.")
        elif media[0].type != MULTIPART_RELATED:
            transaction.take_described([_Single(_Body(request), kind)], inner)
        elif inner == DICOM:
            for part in parse_related(_Body(request), kind):
                if _type_of(part) != DICOM:
                    answer.fail(_MEDIA_TYPE_NOT_SUPPORTED, None)
                else:
                    transaction.take(part)
                if answer.full:
                    break
        else:
            transaction.take_described(parse_related(_Body(request), kind), inner)
    except PermanentError as error:  # the message itself breaks off; what came before it is safe and is answered for
        broken = error
        log.warning("stow.message_broken", code=error.code)
        answer.fail(status_of(error), None)
    if not answer.stored and not answer.failed and (broken or not answer.other_failures):
        return error_response(broken or PermanentError("invalid-multipart", "The message has no instance in it."))
    for uid in sorted(answer.studies):
        audit.record(
            "study.stored",
            actor=reach.actor,
            entity=uid,
            address=client_address(request),
            detail={"instances": len(answer.stored), "failed": len(answer.failed) + len(answer.other_failures)},
        )
    return _response(request, answer, study)


def _response(request: HttpRequest, answer: _Answer, study: str) -> HttpResponse:
    """The answer in XML where only that is wanted; the instances are stored, so nothing is 406 any more."""
    body = answer.body(study)
    offer = negotiate(request.headers.get("Accept"), [Offer(JSON), Offer("application/json"), Offer(XML)])
    response: HttpResponse
    if offer is not None and offer.type == XML:
        response = HttpResponse(to_xml(body), status=answer.status(), content_type=XML)
    else:
        response = JsonResponse(body, status=answer.status(), content_type=JSON)
    response["Cache-Control"] = "no-store"
    return response


class _Single:
    """A body that is one instance, as if it were a part."""

    def __init__(self, body: _Body, content_type: str) -> None:
        self._body = body
        self.content_type = content_type
        self.headers: dict[str, str] = {}
        self.length = 0

    def read(self, size: int = _CHUNK) -> bytes:
        """Up to ``size`` bytes, b"" at the end."""
        piece = self._body.read(size)
        self.length += len(piece)
        return piece


def _type_of(part: Part) -> str:
    return (parse(part.content_type) or parse(DICOM))[0].type


@dataclass(frozen=True)
class _Transaction:
    """Who stores what into which study, and how it went so far."""

    request: HttpRequest
    reach: Reach
    study: str
    answer: _Answer

    def take(self, part: Part | _Single) -> None:
        """Store one part. Raises: PermanentError when the message itself ends too early."""
        try:
            with _incoming(part) as path:
                self._take_file(path)
        except TransientError as error:
            log.error("stow.storage", code=error.code)
            self.answer.full = True
            self.answer.fail(OUT_OF_RESOURCES, None)

    def take_described(self, parts: Iterable[Part | _Single], media_type: str) -> None:
        """Store instances that come as metadata and bulk data. Raises: PermanentError when the message is broken."""
        with MetadataMessage(media_type) as message:
            for part in parts:
                message.take(part)
            for described in message.instances():
                try:
                    with described.file() as path:
                        self._take_file(path)
                except TransientError as error:
                    log.error("stow.storage", code=error.code)
                    self.answer.full = True
                    self.answer.fail(OUT_OF_RESOURCES, None)
                except PermanentError as error:
                    log.warning("stow.item_refused", code=error.code)
                    self.answer.fail_named(status_of(error), described.uid("00080016"), described.uid("00080018"))

    def _take_file(self, path: Path) -> None:
        header: Header | None = None
        address = client_address(self.request)
        try:
            with path.open("rb") as file:
                header = read_header(file)
            if self.study and header.study_instance_uid != self.study:
                self.answer.fail(_OTHER_STUDY, header)
                return
            if not self.reach.covers(header.study_instance_uid):
                raise Refused("study-not-granted", "The image token is not for this study.")
            self.answer.add(ingest(path, source_ae_title=SOURCE, address=address), header)
        except Refused as error:
            self.answer.refused = True
            record_refusal(self.request, error, self.reach.actor, header.study_instance_uid if header else "")
            self.answer.fail(NOT_AUTHORISED, header)
        except RegisError as error:
            log.warning("stow.item_refused", code=error.code)
            self.answer.full = self.answer.full or error.code == "storage-full"
            self.answer.fail(status_of(error), header)
        except OSError as error:  # as C-STORE: a disk that may only be read, a folder without rights
            log.error("stow.storage", code="storage-failed", detail=error.strerror or type(error).__name__)
            self.answer.failing = True
            self.answer.fail(OUT_OF_RESOURCES, header)

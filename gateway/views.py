"""``/gateway/v1/``: what other nodes may ask of this one."""

from collections.abc import Iterator
from http import HTTPStatus
from io import SEEK_END
from typing import BinaryIO, Final, cast

import structlog
from django.db import OperationalError, connection
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods

from gateway import encoding, fetching, receiving, registry
from gateway.envelope import problem
from gateway.ledger import Judge
from gateway.models import JoinState
from gateway.rates import throttle
from gateway.uploads import Upload
from standards import http_signatures
from standards.errors import PermanentError, RegisError, TransientError, trouble_of_database
from standards.uids import validated_uid

log = structlog.get_logger(__name__)

_STRETCH: Final = 4 << 20
_GRAIN: Final = 1 << 14
"""Many are fetched back at once, and none of them may be silent for as long as a line that is dead."""
_STATUS: Final = {
    "signature-missing": 401,
    "signature-invalid": 401,
    "signature-expired": 401,
    "unknown-key": 401,
    "never-delivered": 403,
    "instance-gone": 410,
    "length-missing": 411,
    "other-receiver": 421,
    "digests-missing": 400,
    "body-cut-short": 400,
    "body-damaged": 409,
    "digest-mismatch": 409,
    "not-restored": 409,
    "chunks-missing": 409,
    "no-upload": 404,
    "bad-upload": 400,
    "body-too-long": 413,
    "unknown-encoding": 415,
    "storage-full": 507,
}


def _refuse(cause: RegisError | OperationalError) -> HttpResponse:
    error = cause if isinstance(cause, RegisError) else trouble_of_database(cause)
    status = _STATUS.get(error.code, 503 if isinstance(error, TransientError) else 422)
    document = problem(error.code, error.detail or HTTPStatus(status).phrase, status)
    response = JsonResponse(document, status=status, content_type="application/problem+json")
    response["Cache-Control"] = "no-store"
    return response


def _drain(request: HttpRequest) -> None:
    """Read what is left of the body, in small pieces, so that the sender hears the answer and not a broken pipe."""
    try:
        while request.read(receiving.CHUNK):
            pass
    except OSError as error:
        log.info("sender-hung-up", error=str(error))


@csrf_exempt
@require_http_methods(["GET", "PUT"])
def instance(request: HttpRequest, sop_instance_uid: str) -> HttpResponseBase:
    """GET: give a peer back what it delivered. PUT: take one Part 10 file and answer with a signed receipt."""
    return _give(request, sop_instance_uid) if request.method == "GET" else _take(request, sop_instance_uid)


def _give(request: HttpRequest, sop_instance_uid: str) -> HttpResponseBase:
    """The Part 10 file as it was delivered, to the peer that delivered it and to nobody else; for the wire in the
    ``encoding`` that it asks for, which the type of the answer then says.
    """
    try:
        state, sender = _asked(request)
        dataset_sha256 = request.GET.get("dataset", "")
        if not fetching.delivered_by(sender, sop_instance_uid, dataset_sha256):
            raise PermanentError("never-delivered", f"{sender} has no receipt for this instance")
        key = registry.store().find(sop_instance_uid, dataset_sha256)
        if key is None:
            raise PermanentError("instance-gone", "it is not held here any more")
        Judge(state).keep_cap()
        file = registry.store().open(key)
    except RegisError as error:
        log.warning("instance-not-given", sop_instance_uid=sop_instance_uid, error=str(error))
        return _refuse(error)
    if request.GET.get("encoding") == encoding.NAME:
        response = StreamingHttpResponse(_capped(_encoded(file)), content_type=fetching.ENCODED)
    else:
        length = file.seek(0, SEEK_END)
        response = StreamingHttpResponse(_capped(_chunks(file)), content_type="application/dicom")
        response["Content-Length"] = str(length)
    response["Cache-Control"] = "no-store"
    return response


def _capped(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Parts when they may leave the site: somebody waits for them, so they go before what nobody asked for."""
    if throttle.bytes_per_second is not None and not connection.in_atomic_block:
        connection.close()  # it may be waiting for long
    throttle.carry(urgent=True)
    for part in parts:
        if throttle.bytes_per_second is None:  # nothing is gained by cutting it up
            yield part
        else:
            yield from throttle.pieces(part, _GRAIN)


def _encoded(file: BinaryIO) -> Iterator[bytes]:
    with file:
        pixels, offset = encoding.pixels_of(file), 0
        file.seek(0)
        while raw := file.read(_STRETCH):
            with encoding.encoders:
                body = encoding.encode(raw, offset, pixels)
            yield body
            offset += len(raw)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        file.seek(0)
        while chunk := file.read(receiving.CHUNK):
            yield chunk


def _take(request: HttpRequest, sop_instance_uid: str) -> HttpResponse:
    """Take one Part 10 file of a peer and answer with a signed receipt; again and again with the same one.

    ``encoding`` says that the body is no file as it is; ``size`` and ``chunk`` that its chunks were uploaded before.
    """
    try:
        state, sender = _asked(request)
        ledger = receiving.promised(request.GET.dict())
        if "chunk" in request.GET:
            upload = _upload(request, sender, sop_instance_uid, ledger.dataset)
            receipt = receiving.finish(state, upload, ledger)
        else:
            receipt = receiving.receive(
                state,
                cast(BinaryIO, request),
                length=_length(request),
                content_digest=http_signatures.content_digest(request.headers),
                sender=sender,
                sop_instance_uid=sop_instance_uid,
                ledger=ledger,
                encoded=request.GET.get("encoding", ""),
            )
    except (RegisError, OperationalError) as error:
        log.warning("instance-refused", sop_instance_uid=sop_instance_uid, error=str(error))
        _drain(request)
        return _refuse(error)
    return HttpResponse(receipt.model_dump_json(), content_type="application/json")


def _asked(request: HttpRequest) -> tuple[JoinState, str]:
    """The join of this node and the name of the peer that asks it. Raises: as ``sender_of``, "other-receiver"."""
    state = receiving.joined()
    sender = receiving.sender_of(state, request.method or "", request.get_full_path(), request.headers)
    if request.GET.get("to") != state.name:
        raise PermanentError("other-receiver", f"this is {state.name}")
    return state, sender


def _length(request: HttpRequest) -> int:
    if not (length := request.headers.get("Content-Length", "")).isdigit():
        raise PermanentError("length-missing", "Content-Length is wanted")
    return int(length)


def _upload(request: HttpRequest, sender: str, sop_instance_uid: str, dataset_sha256: str) -> Upload:
    said = [request.GET.get(name, "") for name in ("size", "chunk")]
    if not all(text.isdigit() and len(text) < 16 for text in said):
        raise PermanentError("bad-upload", "size and chunk are wanted")
    return Upload(sender, validated_uid(sop_instance_uid), dataset_sha256, int(said[0]), int(said[1]))


@require_http_methods(["GET"])
def wire(request: HttpRequest) -> HttpResponse:
    """What this node understands of bodies; a node that has no such page takes whole files only."""
    try:
        _asked(request)
    except RegisError as error:
        return _refuse(error)
    response = JsonResponse({"encodings": [encoding.NAME], "longest": encoding.MOST_RAW})
    response["Cache-Control"] = "no-store"
    return response


@csrf_exempt
@require_http_methods(["PUT"])
def upload(request: HttpRequest, sop_instance_uid: str) -> HttpResponse:
    """Begin an upload or go on with one: which chunks are missing. What is receipted already misses none."""
    try:
        _, sender = _asked(request)
        ledger = receiving.promised(request.GET.dict())
        wanted = _upload(request, sender, sop_instance_uid, ledger.dataset)
        is_here = receiving.known_receipt(sender, wanted.sop_instance_uid, ledger.dataset) is not None
        missing = [] if is_here else wanted.begin()
    except (RegisError, OperationalError) as error:
        log.warning("upload-refused", sop_instance_uid=sop_instance_uid, error=str(error))
        _drain(request)
        return _refuse(error)
    return JsonResponse({"missing": missing})


@csrf_exempt
@require_http_methods(["PUT"])
def chunk(request: HttpRequest, sop_instance_uid: str, index: int) -> HttpResponse:
    """Take one chunk of an upload; ``raw`` is the digest of what the body stands for."""
    try:
        _, sender = _asked(request)
        ledger = receiving.promised(request.GET.dict())
        wanted = _upload(request, sender, sop_instance_uid, ledger.dataset)
        raw = receiving.restored(
            cast(BinaryIO, request),
            _length(request),
            http_signatures.content_digest(request.headers),
            request.GET.get("encoding", ""),
        )
        wanted.take(index, raw, receiving.raw_digest(request.GET.get("raw", "")))
    except (RegisError, OperationalError) as error:
        log.warning("chunk-refused", sop_instance_uid=sop_instance_uid, index=index, error=str(error))
        _drain(request)
        return _refuse(error)
    return HttpResponse(status=204)

"""``/gateway/v1/``: what other nodes may ask of this one."""

from collections.abc import Iterator
from http import HTTPStatus
from io import SEEK_END
from typing import BinaryIO, Final, cast

import structlog
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods

from gateway import fetching, receiving, registry
from gateway.envelope import problem
from standards import http_signatures
from standards.errors import PermanentError, RegisError, TransientError

log = structlog.get_logger(__name__)

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
    "storage-full": 507,
}


def _refuse(error: RegisError) -> HttpResponse:
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
    """The Part 10 file as it was delivered, to the peer that delivered it and to nobody else."""
    try:
        state = receiving.joined()
        sender = receiving.sender_of(state, "GET", request.get_full_path(), request.headers)
        if request.GET.get("to") != state.name:
            raise PermanentError("other-receiver", f"this is {state.name}")
        dataset_sha256 = request.GET.get("dataset", "")
        if not fetching.delivered_by(sender, sop_instance_uid, dataset_sha256):
            raise PermanentError("never-delivered", f"{sender} has no receipt for this instance")
        key = registry.store().find(sop_instance_uid, dataset_sha256)
        if key is None:
            raise PermanentError("instance-gone", "it is not held here any more")
        file = registry.store().open(key)
    except RegisError as error:
        log.warning("instance-not-given", sop_instance_uid=sop_instance_uid, error=str(error))
        return _refuse(error)
    length = file.seek(0, SEEK_END)
    response = StreamingHttpResponse(_chunks(file), content_type="application/dicom")
    response["Content-Length"] = str(length)
    response["Cache-Control"] = "no-store"
    return response


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        file.seek(0)
        while chunk := file.read(receiving.CHUNK):
            yield chunk


def _take(request: HttpRequest, sop_instance_uid: str) -> HttpResponse:
    """Take one Part 10 file of a peer and answer with a signed receipt; again and again with the same one."""
    try:
        state = receiving.joined()
        sender = receiving.sender_of(state, "PUT", request.get_full_path(), request.headers)
        if request.GET.get("to") != state.name:
            raise PermanentError("other-receiver", f"this is {state.name}")
        if not (length := request.headers.get("Content-Length", "")).isdigit():
            raise PermanentError("length-missing", "Content-Length is wanted")
        receipt = receiving.receive(
            state,
            cast(BinaryIO, request),
            length=int(length),
            content_digest=http_signatures.content_digest(request.headers),
            sender=sender,
            sop_instance_uid=sop_instance_uid,
            ledger=receiving.promised(request.GET.dict()),
        )
    except RegisError as error:
        log.warning("instance-refused", sop_instance_uid=sop_instance_uid, error=str(error))
        _drain(request)
        return _refuse(error)
    return HttpResponse(receipt.model_dump_json(), content_type="application/json")

"""``/federation/v1/``: what nodes ask of the centre. Waiting for commands is in ``longpoll``."""

import hashlib
from collections.abc import Callable
from functools import wraps
from http import HTTPStatus
from typing import Final, TypeVar

import structlog
from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST
from pydantic import BaseModel, ValidationError

from gateway.envelope import JoinRequest, KeyChange, NodeStatus, RawEventBatch, problem
from ris_central.audit.actions import address_of
from ris_central.federation import actions, intake, permissions, queries, trust
from ris_central.federation.models import Node
from ris_central.federation.pressure import pressure
from standards import http_signatures
from standards.errors import PermanentError, RegisError, TransientError

log = structlog.get_logger(__name__)

MAX_BODY_BYTES: Final = 64 << 20
RETRY_SECONDS: Final = 5
ARRIVED: Final = "regis.arrived"
"""In ``request.META``: when a question that had to wait its turn came (``time.monotonic``)."""
_STATUS: Final = {
    "signature-missing": 401,
    "signature-invalid": 401,
    "signature-expired": 401,
    "unknown-key": 401,
    "node-revoked": 403,
    "join-code-wrong": 403,
    "join-code-spent": 409,
    "join-code-expired": 410,
    "join-kind-mismatch": 409,
    "key-taken": 409,
    "key-superseded": 409,
    "epoch-superseded": 409,
    "epoch-forked": 409,
    "body-damaged": 409,
    "body-too-large": 413,
}
_AUDITED: Final = {401, 403, 409, 410}
Message = TypeVar("Message", bound=BaseModel)


def status_of(error: RegisError) -> int:
    """The HTTP status of an error: by code, else 503 for what may work later and 400 for what never will."""
    return _STATUS.get(error.code, 503 if isinstance(error, TransientError) else 400)


def problem_of(error: RegisError) -> dict[str, object]:
    """The RFC 9457 problem document of an error."""
    status = status_of(error)
    return problem(error.code, error.detail or HTTPStatus(status).phrase, status)


def answering(view: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """A view of nodes: only by POST, and what is refused or cannot be done now is a problem document."""

    @csrf_exempt
    @require_POST
    @wraps(view)
    def answered(request: HttpRequest) -> HttpResponse:
        try:
            try:
                return view(request)
            except RegisError as error:
                return _refuse(request, error)
        except (DatabaseError, InterfaceError) as error:
            if not intake.may_pass(error):
                raise
            log.warning("database-unavailable", path=request.path, error=str(error))
            return _problem(TransientError("database-unavailable", "the centre's database does not answer now"))

    return answered


def _problem(error: RegisError) -> HttpResponse:
    status = status_of(error)
    response = JsonResponse(problem_of(error), status=status, content_type="application/problem+json")
    response["Cache-Control"] = "no-store"
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        response["Retry-After"] = str(RETRY_SECONDS)
    return response


def _refuse(request: HttpRequest, error: RegisError) -> HttpResponse:
    log.warning("node-refused", path=request.path, error=str(error))
    if status_of(error) in _AUDITED:
        permissions.record_refusal(error, request.path, address_of(request))
    return _problem(error)


def _body(request: HttpRequest) -> bytes:
    body = request.read(MAX_BODY_BYTES + 1)
    if len(body) > MAX_BODY_BYTES:
        raise PermanentError("body-too-large", f"more than {MAX_BODY_BYTES} bytes")
    return bytes(body)


def _parse(model: type[Message], body: bytes) -> Message:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise PermanentError("message-not-understood", f"{first['loc']}: {first['msg']}") from error


def _signed(request: HttpRequest) -> tuple[Node, bytes]:
    """The node that signed this request and the body that it signed. Raises as ``permissions.node_of``."""
    node = permissions.node_of(request.method or "", request.get_full_path(), request.headers)
    body = _body(request)
    if hashlib.sha256(body).digest() != http_signatures.content_digest(request.headers):
        raise TransientError("body-damaged", "the bytes that came are not those that were signed")
    return node, body


def _answer(message: BaseModel) -> HttpResponse:
    return HttpResponse(message.model_dump_json(), content_type="application/json")


@answering
def join(request: HttpRequest) -> HttpResponse:
    """Spend a one-time code. The code is the proof, so nothing is signed yet."""
    return _answer(actions.join(_parse(JoinRequest, _body(request))))


@answering
def keys(request: HttpRequest) -> HttpResponse:
    """Take a node's new key. The statement is signed by both keys, so the request itself is not."""
    trust.change_key(_parse(KeyChange, _body(request)))
    return JsonResponse({})


@answering
def events(request: HttpRequest) -> HttpResponse:
    """Take a batch of events; the answer is how far they are taken."""
    node, body = _signed(request)
    taken = intake.take(node, _parse(RawEventBatch, body).events, request.META.get(ARRIVED))
    return _answer(taken.model_copy(update={"pause": pressure.pause()}))


@answering
def status(request: HttpRequest) -> HttpResponse:
    """Keep a heartbeat; the answer is how far the events of the node's epoch are taken."""
    node, body = _signed(request)
    told = _parse(NodeStatus, body)
    actions.record_status(node, told)
    return _answer(queries.cursor_of(node, told.epoch))


def signed_view(
    model: type[Message], take: Callable[[Node, Message], BaseModel]
) -> Callable[[HttpRequest], HttpResponse]:
    """A view that hands the signed body of a node to ``take``: for questions of nodes that higher apps answer."""

    @answering
    def view(request: HttpRequest) -> HttpResponse:
        node, body = _signed(request)
        return _answer(take(node, _parse(model, body)))

    return view

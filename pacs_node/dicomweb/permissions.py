"""Who may ask the web services for what: a person logged in at this node, or the bearer of an image token.

A token is checked with the keys that the centre's directory gave, so it holds while the centre is away.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final

import structlog
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.middleware.csrf import CsrfViewMiddleware
from django.views.decorators.csrf import csrf_exempt

from gateway.models import JoinState
from pacs_node.clinic import audit
from pacs_node.config import config
from pacs_node.dicomweb.problems import Refused, error_response
from pacs_node.study_index.models import Study
from standards.errors import PermanentError, RegisError
from standards.tokens import ALL_STUDIES, SKEW_SECONDS, ImageClaims, public_key_from_text, verify_image_token

log = structlog.get_logger()

REGION_AUDIENCE: Final = "regis-nodes"
_MOST_TOKENS: Final = 1000
_DIRECTORY_SECONDS: Final = 1.0
_TOKEN_SENTENCES: Final = {
    "token-expired": "The image token has expired; ask the centre for a fresh one.",
    "token-wrong-audience": "The image token is for another node.",
    "token-invalid": "The image token is not one that the centre of this region signed.",
}
View = Callable[..., HttpResponseBase]


@dataclass(frozen=True)
class Reach:
    """How far a request may go. ``studies`` None means all that this node holds."""

    actor: str
    studies: frozenset[str] | None
    operations: frozenset[str]

    def covers(self, study_instance_uid: str) -> bool:
        """Whether this study may be touched."""
        return self.studies is None or study_instance_uid in self.studies


def visible_to(reach: Reach) -> QuerySet[Study]:
    """The studies within reach."""
    return Study.objects.filter(study_filter(reach))


def study_filter(reach: Reach, prefix: str = "") -> Q:
    """The condition on ``{prefix}study_instance_uid`` that keeps a query within reach."""
    if reach.studies is None:
        return Q()
    return Q(**{f"{prefix}study_instance_uid__in": sorted(reach.studies)})


def _claims(token: str) -> ImageClaims:
    state = JoinState.objects.only("name", "directory").first()
    keys = state.directory.get("token_keys", {}) if state else {}
    trusted = {kid: public_key_from_text(text) for kid, text in keys.items()}
    try:
        return verify_image_token(token, trusted, state.name if state else config().name)
    except PermanentError as error:
        if error.code != "token-wrong-audience":
            raise
    return verify_image_token(token, trusted, REGION_AUDIENCE)


class _Verified:
    """Tokens verified lately. They hold until they expire, or until the keys of the directory are others.

    The directory is asked for at most once a second, so a key that is taken out of it is trusted that much longer.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reaches: dict[str, tuple[Reach, float]] = {}
        self._trusted: object = None
        self._asked_at = float("-inf")

    def reach(self, token: str) -> Reach:
        """Raises: PermanentError "token-expired", "token-wrong-audience", "token-invalid"."""
        self._follow_directory()
        known = self._reaches.get(token)
        if known is None:
            trusted = self._trusted
            claims = _claims(token)
            studies = None if ALL_STUDIES in claims.studies else claims.studies
            known = (Reach(claims.subject, studies, claims.operations), claims.expires.timestamp() + SKEW_SECONDS)
            with self._lock:
                if len(self._reaches) >= _MOST_TOKENS:
                    self._reaches.clear()
                if trusted == self._trusted:
                    self._reaches[token] = known
        if time.time() > known[1]:
            self._reaches.pop(token, None)
            raise PermanentError("token-expired")
        return known[0]

    def _follow_directory(self) -> None:
        now = time.monotonic()
        if now - self._asked_at < _DIRECTORY_SECONDS:
            return
        state = JoinState.objects.only("name", "directory").first()
        trusted = (state.name, state.directory.get("token_keys", {})) if state else None
        with self._lock:
            if trusted != self._trusted:
                self._reaches.clear()
                self._trusted = trusted
            self._asked_at = now


_verified = _Verified()


def bearer_reach(token: str) -> Reach:
    """How far an image token reaches. Raises: PermanentError, as ``tokens.verify_image_token``."""
    return _verified.reach(token)


def reach_of(request: HttpRequest) -> Reach:
    """How far this request may go; an ``Authorization`` header decides, else the login session.

    Raises: Refused "token-missing", "token-not-accepted", "token-expired", "token-wrong-audience", "token-invalid".
    """
    header = request.headers.get("Authorization", "")
    if header:
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer":
            raise Refused("token-not-accepted", "Only a Bearer image token is accepted here.")
        try:
            return bearer_reach(token.strip())
        except PermanentError as error:
            log.info("dicomweb.token_refused", code=error.code)
            raise Refused(error.code, _TOKEN_SENTENCES[error.code]) from error
    if request.user.is_authenticated:
        operations = {"read", "store"} | ({"delete"} if request.user.has_perm("study_index.delete_study") else set())
        return Reach(request.user.get_username(), None, frozenset(operations))
    raise Refused("token-missing", "This needs an image token of the centre or a login at this node.")


def _refuse_forged(request: HttpRequest) -> None:
    """A session's cookie goes along with whatever page makes the browser ask, so writing needs Django's CSRF token."""
    if CsrfViewMiddleware(lambda _request: HttpResponse()).process_view(request, _anonymous, (), {}) is not None:
        raise Refused("csrf-failed", "A login session may write only with the page's CSRF token.")


def _anonymous(_request: HttpRequest) -> HttpResponse:
    return HttpResponse()


def client_address(request: HttpRequest) -> str:
    """The address that the request came from."""
    return str(request.META.get("REMOTE_ADDR", ""))


def guarded(operation: str) -> Callable[[View], View]:
    """Run a view only for who may do ``operation`` (on the study of the path, where it names one).

    The view gets the ``Reach`` as second argument. Every refusal is a problem document that is the same whether or not
    the study exists, and is in the audit trail; so is a look at a study, once a sitting. Errors the view raises before
    its first byte become problem documents too.
    """

    def decorate(view: View) -> View:
        @csrf_exempt
        @wraps(view)
        def guard(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            study = kwargs.get("study", "")
            actor = "unknown"
            try:
                reach = reach_of(request)
                actor = reach.actor
                if operation not in reach.operations:
                    raise Refused("operation-not-granted", f"Nobody gave the right to {operation} here.")
                if study and not reach.covers(study):
                    raise Refused("study-not-granted", "The image token is not for this study.")
                if operation != "read" and not request.headers.get("Authorization"):
                    _refuse_forged(request)
                response = view(request, reach, *args, **kwargs)
                if study and operation == "read" and response.status_code < 400:
                    audit.record_once_a_sitting(
                        "study.viewed", actor=actor, entity=study, address=client_address(request)
                    )
                return response
            except Refused as error:
                record_refusal(request, error, actor, study)
                return error_response(error)
            except RegisError as error:
                return error_response(error)

        return guard

    return decorate


def record_refusal(request: HttpRequest, error: Refused, actor: str, study: str) -> None:
    """Put a refusal into the audit trail; a stranger without any token leaves none, or crawlers would fill the disk."""
    if error.code != "token-missing":
        audit.record_once_a_sitting(
            f"dicomweb.{error.code}", actor=actor, entity=study, outcome="refused", address=client_address(request)
        )

"""Everything below a series (and whole studies): permission first, then streamed from the nearest holder.

Nothing is buffered. A holder that does not answer is passed over; when none answers, the problem document says who has
the images and since when it has not been heard of.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import httpx
import structlog
from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponseBase, StreamingHttpResponse

from ris_central.accounts.models import User
from ris_central.audit.actions import record_view
from ris_central.catalogue import queries, reach
from ris_central.catalogue.actions.sending import hurry
from ris_central.catalogue.archive import tls_context
from ris_central.catalogue.dicomweb.access import for_people, problem_response
from ris_central.catalogue.dicomweb.searches import root_url
from ris_central.catalogue.models import Series, Study
from ris_central.federation.keys import image_token
from ris_central.federation.models import Node
from standards.errors import PermanentError, TransientError

log = structlog.get_logger()

_UID = r"[0-9.]{1,64}"
PATH = re.compile(
    rf"studies/(?P<study>{_UID})"
    rf"(?:(?:/series/(?P<series>{_UID}))?(?P<instance>/instances/{_UID})?"
    rf"(?P<rest>(?:/frames/[0-9,]+)?(?:/rendered|/thumbnail|/metadata|/instances|/bulkdata(?:/[0-9A-Fa-f/.]+)?)?))\Z"
)
_PASSED_ON = ("accept", "accept-encoding", "if-none-match", "range")
_PASSED_BACK = ("content-type", "content-encoding", "content-length", "etag", "cache-control", "content-range", "vary")
_TOKEN_MARGIN = 60
_PATIENCE_SECONDS = 10.0
"""How long a holder may think before it answers while there is another one to ask."""
_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()
_tokens: dict[tuple[int, str, str], tuple[str, float]] = {}


@dataclass(frozen=True)
class Holder:
    """A node to ask, with what people need to know of it when it does not answer."""

    name: str
    site: str
    url: str
    unheard_since: str | None
    token: str
    is_down: bool
    """It did not answer a moment ago: not asked again, as a frame must not wait for what the last one waited for."""


def client() -> httpx.AsyncClient:
    """The connection pool of this event loop."""
    loop = asyncio.get_running_loop()
    if loop not in _clients:
        _clients[loop] = httpx.AsyncClient(
            verify=tls_context(),
            trust_env=False,
            timeout=httpx.Timeout(connect=reach.CONNECT_SECONDS, read=60.0, write=30.0, pool=30.0),
            limits=httpx.Limits(max_connections=100, max_keepalive_connections=40),
        )
    return _clients[loop]


@for_people
async def images(request: HttpRequest, user: User, path: str) -> HttpResponseBase:
    """``GET /dicom-web/studies/{study}…``: instances, metadata, frames, rendered, thumbnails, instance searches."""
    found = PATH.match(path)
    if found is None:
        raise PermanentError("not-served-here", "There is no such resource in this service.")
    holders = await sync_to_async(holders_for)(request, user, found["study"], found["series"] or "")
    failed: list[Holder] = []
    just_failed = False
    holders.sort(key=lambda one: one.is_down)
    for holder in holders:
        if holder.is_down and not just_failed:
            failed.append(holder)
            continue
        # One that was down is asked once more when the one that stood in for it has gone away too.
        response = await _ask(request, holder, path, is_last=holder is holders[-1])
        if response is None:
            failed.append(holder)
            just_failed = True
            continue
        if holder.is_down:
            await sync_to_async(reach.note_up)(holder.name)
        if response.status_code == 404 and (failed or len(holders) > 1):
            # The nearest node may still be receiving it; somebody else counts more of it.
            await response.aclose()
            continue
        return _streamed(response, holder)
    return _nobody_answers(failed)


async def _ask(request: HttpRequest, holder: Holder, path: str, *, is_last: bool) -> httpx.Response | None:
    query = request.META.get("QUERY_STRING", "")
    url = f"{holder.url}/dicom-web/{path}{'?' + query if query else ''}"
    headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
    if "json" in headers.get("accept", "") or path.endswith(("/metadata", "/instances")):
        headers["accept-encoding"] = "identity"  # addresses inside are rewritten while it streams
    headers["authorization"] = f"Bearer {holder.token}"
    try:
        async with asyncio.timeout(None if is_last else _PATIENCE_SECONDS):
            response = await client().send(
                client().build_request(request.method or "GET", url, headers=headers), stream=True
            )
    except (httpx.HTTPError, TimeoutError) as error:
        log.warning("holder-unreachable", node=holder.name, error=type(error).__name__)
        await sync_to_async(reach.note_down)(holder.name)
        return None
    if response.status_code in (401, 403) or response.status_code >= 500:
        log.warning("holder-refused", node=holder.name, status=response.status_code)
        await response.aclose()
        return None
    return response


def _streamed(response: httpx.Response, holder: Holder) -> HttpResponseBase:
    is_json = "json" in response.headers.get("content-type", "")
    body = _rewritten(response, f"{holder.url}/dicom-web".encode(), root_url().encode()) if is_json else _raw(response)
    answer = StreamingHttpResponse(body, status=response.status_code)
    for name in _PASSED_BACK:
        if name in response.headers and not (is_json and name == "content-length"):
            answer[name] = response.headers[name]
    answer["X-Regis-Holder"] = holder.name
    if is_json:
        answer["Cache-Control"] = "private, no-cache"  # more of it may arrive at any moment
    if response.status_code >= 400:
        answer["Cache-Control"] = "no-store"
    return answer


async def _raw(response: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.aiter_raw():
            yield chunk
    finally:
        await response.aclose()


async def _rewritten(response: httpx.Response, old: bytes, new: bytes) -> AsyncIterator[bytes]:
    """The body with the node's own address replaced, also where it lies across two chunks."""
    rest = b""
    try:
        async for chunk in response.aiter_bytes():
            rest = (rest + chunk).replace(old, new)
            keep = _overlap(rest, old)
            if len(rest) > keep:
                yield rest[: len(rest) - keep]
            rest = rest[len(rest) - keep :]
        if rest:
            yield rest
    finally:
        await response.aclose()


def _overlap(text: bytes, word: bytes) -> int:
    """How many of the last bytes of ``text`` may be the beginning of ``word``."""
    return next((size for size in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:size])), 0)


def _nobody_answers(failed: list[Holder]) -> HttpResponseBase:
    if not failed:
        return problem_response(PermanentError("not-found", "No node holds this any more."))
    where = "; ".join(f"{holder.site} ({holder.name})" for holder in failed)
    error = TransientError("holder-unreachable", f"The images are at {where}, which does not answer now.")
    holders = [{"node": h.name, "site": h.site, "unreachable_since": h.unheard_since} for h in failed]
    return problem_response(error, 503, holders=holders)


def holders_for(request: HttpRequest, user: User, study_uid: str, series_uid: str) -> list[Holder]:
    """The nodes to ask for a study or series that this person may see, best first. The look is audited.

    Raises: PermanentError "not-found" (also for what is not open to the person), "study-uid-shared".
    """
    visible = queries.visible_to(user).filter(study_instance_uid=study_uid)
    if series_uid:
        visible = visible.filter(pk__in=Series.objects.filter(series_instance_uid=series_uid).values("study"))
    study = visible.first()
    if study is None:
        raise PermanentError("not-found", "There is no such study, or it is not open to you.")
    if not series_uid and Study.objects.filter(study_instance_uid=study_uid).exclude(pk=study.pk).exists():
        # Nodes know studies by UID: asked for the whole, they would give another person's images too.
        raise PermanentError("study-uid-shared", "Several patients' studies have this UID: ask series by series.")
    record_view("study.images-viewed", request=request, entity=study, patient_key=study.patient_id)
    nodes = queries.nearest_nodes(study.pk, series_uid)
    if study.instances_safe < study.instances_known:
        hurry(study, nodes)
    down = reach.known_down(node.name for node in nodes)
    return [_holder(node, user, study_uid, is_down=node.name in down) for node in nodes]


def _holder(node: Node, user: User, study_uid: str, *, is_down: bool) -> Holder:
    seen: Any = node.last_seen_at
    return Holder(
        name=node.name,
        site=str(node.site),
        url=node.url.rstrip("/"),
        unheard_since=seen.isoformat() if seen else None,
        token=_token(user, study_uid, node.name),
        is_down=is_down,
    )


def _token(user: User, study_uid: str, audience: str) -> str:
    """A token for this person, study and node; made once for some minutes, as frames are asked for by the hundred."""
    key = (user.pk, study_uid, audience)
    known = _tokens.get(key)
    if known and known[1] - _TOKEN_MARGIN > time.time():
        return known[0]
    token, expires = image_token(user.username, [study_uid], ["read"], audience)
    if len(_tokens) > 2000:
        _tokens.clear()
    _tokens[key] = (token, expires.timestamp())
    return token

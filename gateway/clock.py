"""A node whose clock is wrong can still speak: it signs by the centre's time, and both sides tell people.

Signatures must be fresh by the receiver's clock. The centre's answers carry its time in ``Date``, also the answer that
refuses a signature for its age. That header is believed only from the centre itself over verified TLS: whoever could
forge it there could forge everything else. Nothing but signatures and the times of what is told is corrected; the
machine's clock stays what it is, and the alarm stays on until a person mends it.
"""

import time
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime

import httpx
import structlog
from django.utils import timezone

from gateway.models import JoinState

log = structlog.get_logger(__name__)

NOTICEABLE_SECONDS = 5
"""``Date`` has whole seconds and takes its time on the way."""


def seconds(state: JoinState) -> float:
    """Seconds since 1970 by the centre's clock, as far as this node knows it."""
    return time.time() + state.clock_offset_seconds


def now(state: JoinState) -> datetime:
    """The time (UTC) by the centre's clock, as far as this node knows it."""
    return timezone.now() + timedelta(seconds=state.clock_offset_seconds)


def learn(state: JoinState, response: httpx.Response, took_seconds: float = 0.0) -> None:
    """Learn from an answer that has just come how far this node's clock is from the centre's.

    Answers of others than the centre, and answers without TLS, teach nothing. Neither do those that were long in
    coming: a server may date an answer when it begins to wait for what to say.
    """
    if took_seconds > NOTICEABLE_SECONDS:
        return
    url = response.request.url
    centre = httpx.URL(state.centre_url)
    if url.scheme != "https" or (url.host, url.port) != (centre.host, centre.port):
        return
    try:
        told = parsedate_to_datetime(response.headers["Date"])
    except (KeyError, ValueError):
        return
    if told.tzinfo is None:
        return
    offset = round(told.timestamp() + 0.5 - time.time())
    if abs(offset) <= NOTICEABLE_SECONDS:
        offset = 0
    if abs(offset - state.clock_offset_seconds) <= NOTICEABLE_SECONDS and bool(offset) == bool(
        state.clock_offset_seconds
    ):
        return
    log.warning("clock-differs-from-the-centre", centre_ahead_seconds=offset, before=state.clock_offset_seconds)
    JoinState.objects.filter(pk=state.pk).update(clock_offset_seconds=offset)
    state.clock_offset_seconds = offset

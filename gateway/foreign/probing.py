"""Trying a foreign PACS out because a person asked: is it there, does it answer, does it send."""

import time
from collections.abc import Callable
from datetime import date, datetime

import structlog
from django.utils import timezone

from gateway.envelope import ForeignSource, Probe, ProbeStep
from gateway.foreign.pacs import Pacs, Window
from standards.errors import RegisError

log = structlog.get_logger(__name__)

PATIENCE_SECONDS = 20.0
"""A person waits: no answer within this is an answer."""


def with_patience(source: ForeignSource) -> ForeignSource:
    """The source as it is tried out."""
    return source.model_copy(update={"timeout_seconds": min(source.timeout_seconds, PATIENCE_SECONDS)})


def probe(source: ForeignSource, pacs: Pacs, *, asked_at: datetime, today: date) -> Probe:
    """Everything that a poll and a fetch need, one after the other; what cannot even be reached is asked no further."""

    def echo() -> tuple[None, str]:
        pacs.echo()
        return None, ""

    steps = [_tried("echo", echo)]
    if steps[0].outcome == "ok" or not steps[0].detail.startswith(("connection-failed", "association-rejected")):
        steps.append(_tried("find", lambda: (len(pacs.studies(Window("StudyDate", today, today)).studies), "")))
        steps.append(_tried("retrieve", lambda: (None, pacs.try_retrieve())))
    log.info("foreign-probed", source=source.name, steps={one.step: one.outcome for one in steps})
    return Probe(asked_at=asked_at, done_at=timezone.now(), steps=steps)


def _tried(step: str, ask: Callable[[], tuple[int | None, str]]) -> ProbeStep:
    began = time.monotonic()
    found: int | None = None
    try:
        found, detail = ask()
        outcome = "unclear" if detail else "ok"
    except RegisError as error:
        outcome, detail = "failed", str(error)
    taken = round(1000 * (time.monotonic() - began))
    return ProbeStep.model_validate(
        {"step": step, "outcome": outcome, "detail": detail[:255], "found": found, "milliseconds": taken}
    )

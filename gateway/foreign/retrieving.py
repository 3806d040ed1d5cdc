"""Fetching a study from a foreign PACS: what it lists, what is here, the difference, and again until there is none."""

import structlog

from gateway import registry
from gateway.envelope import ForeignSource
from gateway.foreign import actions
from gateway.foreign.models import Retrieval
from gateway.foreign.pacs import FoundInstance, Pacs, Retrieved
from standards.errors import PermanentError, RegisError

log = structlog.get_logger(__name__)

_ONE_BY_ONE = 200
"""No more instances of a series than this are asked for by name; else the series."""


def fetch(job: Retrieval, source: ForeignSource, pacs: Pacs) -> Retrieval.Status:
    """Try once to have all of a study here, and write down what came of it. Only what is missing is asked for."""
    uid = job.study_instance_uid
    before = registry.store().received_of_study(uid)
    expected: list[FoundInstance] | None = None
    said = Retrieved()
    error: RegisError | None = None
    try:
        expected = _listed(pacs, uid)
        missing = [one for one in expected or [] if one.sop_instance_uid not in before]
        if expected is None or (missing and len(missing) == len(expected)):
            said = pacs.retrieve(uid)
        elif missing:
            said = _missing(pacs, uid, expected, missing)
    except RegisError as caught:
        error = caught
    held = registry.store().received_of_study(uid)
    complaint = _complaint(said, expected, held)
    status = actions.record_attempt(
        job, expected=expected, held=held, before=len(before), complaint=complaint, error=error
    )
    log.info(
        "foreign-fetch",
        source=source.name,
        study_instance_uid=uid,
        status=str(status),
        expected=None if expected is None else len(expected),
        held=len(held),
        error=str(error) if error else complaint,
    )
    return status


def _listed(pacs: Pacs, uid: str) -> list[FoundInstance] | None:
    """The instances that the PACS lists; None where it does not answer at image level. None at all is no answer too:
    what cannot be listed may still be sent."""
    try:
        found = {one.sop_instance_uid: one for one in pacs.instances(uid)}
    except PermanentError as error:
        if error.code != "query-refused":
            raise
        log.info("foreign-instances-not-listed", study_instance_uid=uid, error=str(error))
        return None
    return list(found.values()) or None


def _missing(pacs: Pacs, uid: str, expected: list[FoundInstance], missing: list[FoundInstance]) -> Retrieved:
    """By series; where a part of a series is here, by instance, and by series again if the PACS cannot do that."""
    said = Retrieved()
    for series in sorted({one.series_instance_uid for one in missing}):
        all_of_it = [one for one in expected if one.series_instance_uid == series]
        wanted = [one.sop_instance_uid for one in missing if one.series_instance_uid == series]
        if len(wanted) == len(all_of_it) or len(wanted) > _ONE_BY_ONE:
            said.add(pacs.retrieve(uid, series))
            continue
        try:
            some = pacs.retrieve(uid, series, wanted)
        except PermanentError as error:
            if error.code != "retrieve-refused":
                raise
            some = Retrieved()
        said.add(some if some.completed else pacs.retrieve(uid, series))
    return said


def _complaint(said: Retrieved, expected: list[FoundInstance] | None, held: set[str]) -> str:
    """What is to be said of a try that broke nothing. Where all that is listed is here, nothing."""
    if expected is not None and {one.sop_instance_uid for one in expected} <= held:
        return ""
    if said.refused:
        return f"{len(said.refused)} could not be taken in: {said.refused[0]}"
    if said.failed:
        return f"{said.failed} were not sent" + (f": {said.comment}" if said.comment else "")
    if not held:
        return said.comment or "nothing came"
    return said.comment if expected is not None else ""

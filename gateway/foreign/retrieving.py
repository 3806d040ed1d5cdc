"""Fetching a study from a foreign PACS: what it lists, what is here, the difference, and again until there is none."""

import structlog

from gateway import registry
from gateway.envelope import ForeignSource
from gateway.foreign import actions, queries
from gateway.foreign.models import Retrieval
from gateway.foreign.pacs import FoundInstance, Pacs, Retrieved
from standards.errors import PermanentError, RegisError, TransientError

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
        in_one_go = job.by_person or len({one.series_instance_uid for one in missing}) == 1
        if expected is None or (missing and len(missing) == len(expected) and in_one_go):
            said = pacs.retrieve(uid)
        elif missing:
            said = _missing(job, pacs, expected, missing)
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


def _missing(job: Retrieval, pacs: Pacs, expected: list[FoundInstance], missing: list[FoundInstance]) -> Retrieved:
    """By series; where a part of a series is here, by instance, and by series again if the PACS cannot do that.

    Raises: TransientError("gave-way") between two series when a person waits for another study.
    """
    said, uid = Retrieved(), job.study_instance_uid
    for series in sorted({one.series_instance_uid for one in missing}):
        all_of_it = [one for one in expected if one.series_instance_uid == series]
        if said.completed and not job.by_person and queries.is_anybody_waiting(job.source):
            raise TransientError("gave-way", "a person waits for another study")
        wanted = [one.sop_instance_uid for one in missing if one.series_instance_uid == series]
        if len(wanted) == len(all_of_it) or len(wanted) > _ONE_BY_ONE:
            said.add(pacs.retrieve(uid, series))
        else:
            said.add(_some(pacs, uid, series, wanted))
    return said


def _some(pacs: Pacs, uid: str, series: str, wanted: list[str]) -> Retrieved:
    """Instances by name: at once, then one by one as many PACS stop at the first that they cannot send, and at last the
    whole series from a PACS that sends nothing by name."""
    said = Retrieved()
    for lot in [wanted, *([one] for one in wanted)]:
        if len(wanted) > 1 and len(lot) == 1 and lot[0] in registry.store().received_of_study(uid):
            continue
        try:
            said.add(pacs.retrieve(uid, series, lot))
        except RegisError as error:
            if error.code not in _OF_ONE:
                raise
            said.failed += 1
            said.comment = str(error)
        if said.completed >= len(wanted):
            return said
    if not said.completed:
        said.add(pacs.retrieve(uid, series))
    return said


_OF_ONE = {"retrieve-refused", "retrieve-failed"}
"""What may be the trouble of one image alone."""


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

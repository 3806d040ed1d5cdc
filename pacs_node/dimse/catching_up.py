"""Fetching from the old PACS what its proxy passed and did not copy: every instance that is named, and what may have
passed in times of which nothing is known."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final, Literal

import structlog

from gateway.envelope import ForeignSource
from gateway.foreign.pacs import Pacs, Window
from gateway.proxy import journal
from pacs_node.config import config
from pacs_node.dimse.foreign import DimsePacs
from pacs_node.proxying import folder
from pacs_node.study_index.models import Instance
from standards.errors import RegisError

log = structlog.get_logger(__name__)

_TIMEOUT_SECONDS: Final = 60.0


def old_pacs(ae_title: str, retrieve: Literal["c-get", "c-move"]) -> ForeignSource:
    """The PACS behind the proxy, as what it is fetched from. ``retrieve``: c-get, or c-move, for which it must know
    this node."""
    return ForeignSource(
        name="behind-the-proxy",
        ae_title=ae_title,
        host=config().proxy_pacs_host,
        port=config().proxy_pacs_port,
        retrieve=retrieve,
        character_set=config().default_character_set,
        timeout_seconds=_TIMEOUT_SECONDS,
    )


def catch_up(source: ForeignSource) -> Iterator[str]:
    """Fetch, and say of each study what came. What still lacks is asked for again next time.

    Raises: TransientError, PermanentError of the PACS as a whole (``gateway.foreign.pacs.Pacs``); nothing is settled.
    """
    lines, end = journal.unsettled(folder(), "missing")
    pacs = DimsePacs(source, lambda: None)
    lacking: list[dict[str, Any]] = []
    try:
        for study, wanted in _studies(pacs, lines).items():
            fetched = _fetch(pacs, study, wanted)
            lacking += fetched.lacking
            yield fetched.sentence
    finally:
        pacs.close()
    journal.settle(folder(), "missing", end, lacking)


def _studies(pacs: Pacs, lines: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Study → the instances of it that are named; none where all of the study may be concerned."""
    found: dict[str, set[str]] = {}
    days: set[date] = set()
    for line in lines:
        if line.get("study_instance_uid"):
            found.setdefault(line["study_instance_uid"], set()).add(line["sop_instance_uid"])
        else:
            days.add(datetime.fromisoformat(line["at"]).date())
    around = {day + timedelta(days=off) for day in days for off in (-1, 0, 1)}  # zones, and examinations over midnight
    for day in sorted(around):
        for study in pacs.studies(Window("StudyDate", day, day)).studies:
            found[study.study.study_instance_uid] = set()
    return found


@dataclass(frozen=True)
class _Fetched:
    """What came of a study, and the lines of the journal for what still lacks."""

    sentence: str
    lacking: tuple[dict[str, Any], ...] = ()


def _fetch(pacs: Pacs, study: str, named: set[str]) -> _Fetched:
    listed = {one.sop_instance_uid for one in pacs.instances(study)}
    wanted = listed & named if named else listed
    before = _held(study, wanted)
    if wanted == before:
        return _Fetched(f"{study}: nothing lacks")
    why = ""
    try:
        pacs.retrieve(study)
    except RegisError as error:
        why = str(error)
    after = _held(study, wanted)
    lacking = sorted(wanted - after)
    return _Fetched(
        f"{study}: {len(after - before)} fetched, {len(lacking)} still lack{f' ({why})' if why else ''}",
        tuple(
            {"reason": f"not-fetched {why}".strip(), "sop_instance_uid": uid, "study_instance_uid": study}
            for uid in lacking
        ),
    )


def _held(study: str, wanted: set[str]) -> set[str]:
    here = Instance.objects.filter(series__study__study_instance_uid=study, is_variant=False)
    return wanted & set(here.values_list("sop_instance_uid", flat=True))

"""What tests of foreign PACS share: a look at one, and the answers of a quirky one."""

from datetime import UTC, datetime

from pydicom.dataset import Dataset

from gateway.envelope import ForeignSource
from gateway.foreign import polling
from gateway.foreign.models import Retrieval
from gateway.foreign.pacs import pacs_of
from tests.contract.region import make_instance

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
TODAY = "20261120"


def at_once() -> None:
    """No pacing."""


def polled(source: ForeignSource, *, sweep: bool = True, now: datetime = NOW) -> polling.Look:
    pacs = pacs_of(source, at_once)
    try:
        return polling.poll(source, pacs, now=now, sweep=sweep)
    finally:
        pacs.close()


def job_for(source: ForeignSource, study: str) -> Retrieval:
    return Retrieval.objects.create(source=source.name, study_instance_uid=study, next_attempt_at=NOW)


def image(study: str, number: int = 1, *, series: str = "", date: str = TODAY, **more: str) -> Dataset:
    made = make_instance(study=study, series=series, number=number)
    made.StudyDate = date
    for keyword, value in more.items():
        setattr(made, keyword, value)
    return made


def quirky_source(port: int, **changes: object) -> ForeignSource:
    return ForeignSource.model_validate(
        {"name": "quirky", "ae_title": "QUIRKY", "host": "127.0.0.1", "port": port, **changes}
    )


def listed(uid: str, date: str = TODAY, time: str = "120000", **more: object) -> Dataset:
    answer = Dataset()
    answer.QueryRetrieveLevel = "STUDY"
    answer.StudyInstanceUID, answer.StudyDate, answer.StudyTime, answer.PatientID = uid, date, time, "Q-1"
    for keyword, value in more.items():
        setattr(answer, keyword, value)
    return answer


def matching(query: Dataset, studies: list[Dataset]) -> list[Dataset]:
    """By dates and times, as a PACS does."""
    first, _, last = str(query.get("StudyDate", "")).partition("-")
    begin, _, end = str(query.get("StudyTime", "") or "").partition("-")
    return [
        one
        for one in studies
        if first <= one.StudyDate <= (last or first) and (not begin or begin <= one.StudyTime <= (end or begin))
    ]

"""A foreign PACS as polling and fetching see it, whatever it speaks; who speaks what is plugged in here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Protocol

from pydicom.dataset import Dataset

from gateway.envelope import ForeignSource, PatientIdentity, StudyDescription
from standards.errors import PermanentError
from standards.part10 import text
from standards.uids import validated_uid

MOST_ANSWERS = 10_000
"""After so many a query is broken off: whoever answers more has not looked at the keys."""


@dataclass(frozen=True)
class FoundStudy:
    """A study as a foreign PACS lists it; counts are None where it does not say."""

    patient: PatientIdentity
    study: StudyDescription
    modalities: tuple[str, ...]
    series_count: int | None
    instance_count: int | None


@dataclass(frozen=True)
class FoundSeries:
    """A series as a foreign PACS lists it."""

    series_instance_uid: str
    instance_count: int | None


@dataclass(frozen=True)
class FoundInstance:
    """An instance as a foreign PACS lists it."""

    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class Window:
    """What studies are asked for: ``keyword`` (a date) within ``since`` and ``until``, both included (None: open; with
    both open also studies without a date); for one day also between two times of it (``HHMMSS``); of one modality;
    no more than ``most``."""

    keyword: str
    since: date | None
    until: date | None
    times: tuple[str, str] | None = None
    modality: str = ""
    most: int = MOST_ANSWERS

    @property
    def span(self) -> str:
        """The dates as a key of a query. One day is a single value: every PACS matches that."""
        since, until = (f"{day:%Y%m%d}" if day else "" for day in (self.since, self.until))
        return since if since == until else f"{since}-{until}"


@dataclass
class Answers:
    """The studies of a window. ``is_capped``: there are more; ``is_whole``: there are no more, whatever their number;
    ``nameless``: answers that name no study."""

    studies: list[FoundStudy] = field(default_factory=list)
    is_capped: bool = False
    is_whole: bool = False
    nameless: int = 0
    quirks: set[str] = field(default_factory=set)


@dataclass
class Retrieved:
    """What a PACS says of a retrieve."""

    completed: int = 0
    failed: int = 0
    comment: str = ""
    refused: list[str] = field(default_factory=list)
    """Instances that came and could not be taken in, with the reason."""

    def add(self, other: "Retrieved") -> None:
        """Take in what another one says."""
        self.completed += other.completed
        self.failed += other.failed
        self.comment = other.comment or self.comment
        self.refused += other.refused


class Pacs(Protocol):
    """One foreign PACS for as long as one poll or one fetch takes.

    All raise TransientError when it is away or broke off, and PermanentError: "query-refused" when it does not answer
    this kind of query, "move-destination-unknown", "retrieve-refused", "invalid-setting".
    """

    def studies(self, window: Window) -> Answers:
        """What it lists."""

    def series(self, study_instance_uid: str) -> list[FoundSeries]:
        """The series of a study."""

    def instances(self, study_instance_uid: str) -> list[FoundInstance]:
        """The instances of a study."""

    def retrieve(
        self, study_instance_uid: str, series_instance_uid: str = "", sop_instance_uids: Sequence[str] = ()
    ) -> Retrieved:
        """Have a study, a series or instances of it sent; on return they are in the index."""

    def echo(self) -> None:
        """Ask whether it is there at all."""

    def try_retrieve(self) -> str:
        """Have a study sent that does not exist, so that only what stands in the way is said; "" where nothing does,
        else an answer that may mean either. Raises also what ``retrieve`` would."""

    def close(self) -> None:
        """End what is open. Never raises."""


Factory = Callable[[ForeignSource, Callable[[], None]], Pacs]
_factories: dict[str, Factory] = {}


def speak(kind: str, factory: Factory) -> None:
    """Have ``factory(source, pace)`` make what talks to sources of this kind; it calls ``pace()`` before each request.

    Called in ``AppConfig.ready()``.
    """
    _factories[kind] = factory


def pacs_of(source: ForeignSource, pace: Callable[[], None]) -> Pacs:
    """What talks to this source. Raises: PermanentError("invalid-setting")."""
    kinds = [source.kind]
    if source.kind == "dicom" and source.retrieve == "wado-rs":
        kinds.append("dicomweb")
    if missing := set(kinds) - _factories.keys():
        raise PermanentError("invalid-setting", f"nothing here speaks {', '.join(sorted(missing))}")
    made = [_factories[kind](source, pace) for kind in kinds]
    return made[0] if len(made) == 1 else _AskedAndFetched(*made)


class _AskedAndFetched:
    """A PACS that is asked by one way and gives its images by another."""

    def __init__(self, asked: Pacs, fetched: Pacs) -> None:
        self._asked, self._fetched = asked, fetched
        self.studies, self.series, self.instances = asked.studies, asked.series, asked.instances
        self.echo, self.retrieve, self.try_retrieve = asked.echo, fetched.retrieve, fetched.try_retrieve

    def close(self) -> None:
        """End what is open."""
        self._asked.close()
        self._fetched.close()


STUDY_KEYS = (
    *("StudyDate", "StudyTime", "AccessionNumber", "ModalitiesInStudy", "StudyDescription", "ReferringPhysicianName"),
    *("InstitutionName", "TimezoneOffsetFromUTC", "StudyID", "StudyInstanceUID", "PatientName", "PatientID"),
    *("IssuerOfPatientID", "PatientBirthDate", "PatientSex", "NumberOfStudyRelatedSeries"),
    "NumberOfStudyRelatedInstances",
)
"""What is asked back of a study."""


def found_study(answer: Dataset, default_issuer: str) -> FoundStudy | None:
    """An answer at study level; None when it names no valid study."""
    try:
        uid = validated_uid(text(answer, "StudyInstanceUID"))
    except PermanentError:
        return None
    return FoundStudy(
        patient=PatientIdentity(
            patient_id=text(answer, "PatientID"),
            issuer_of_patient_id=text(answer, "IssuerOfPatientID") or default_issuer,
            patient_name=text(answer, "PatientName"),
            patient_birth_date=text(answer, "PatientBirthDate"),
            patient_sex=text(answer, "PatientSex"),
        ),
        study=StudyDescription(
            study_instance_uid=uid,
            study_date=text(answer, "StudyDate"),
            study_time=text(answer, "StudyTime"),
            timezone_offset_from_utc=text(answer, "TimezoneOffsetFromUTC"),
            accession_number=text(answer, "AccessionNumber"),
            study_id=text(answer, "StudyID"),
            study_description=text(answer, "StudyDescription"),
            referring_physician_name=text(answer, "ReferringPhysicianName"),
            institution_name=text(answer, "InstitutionName"),
        ),
        modalities=tuple(sorted(set(filter(None, text(answer, "ModalitiesInStudy").split("\\"))))),
        series_count=number(answer, "NumberOfStudyRelatedSeries"),
        instance_count=number(answer, "NumberOfStudyRelatedInstances"),
    )


def found_series(answer: Dataset) -> FoundSeries | None:
    """An answer at series level; None when it names no valid series."""
    try:
        uid = validated_uid(text(answer, "SeriesInstanceUID"))
    except PermanentError:
        return None
    return FoundSeries(uid, number(answer, "NumberOfSeriesRelatedInstances"))


def found_instance(answer: Dataset, series_instance_uid: str = "") -> FoundInstance | None:
    """An answer at image level; None when it names no valid instance. ``series_instance_uid``: that was asked for."""
    try:
        uid = validated_uid(text(answer, "SOPInstanceUID"))
    except PermanentError:
        return None
    return FoundInstance(text(answer, "SeriesInstanceUID") or series_instance_uid, text(answer, "SOPClassUID"), uid)


def number(answer: Dataset, keyword: str) -> int | None:
    """A count, None where there is none or no number."""
    said = text(answer, keyword)
    return int(said) if said.isascii() and said.isdigit() else None

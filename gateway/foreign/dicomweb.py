"""A foreign PACS over DICOMweb: QIDO-RS page by page, WADO-RS in the transfer syntax that it keeps.

Source: PS3.18 8.3.4, 10.4, 10.6
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, Final, Protocol, cast

import httpx
import structlog
from pydicom.dataset import Dataset

from gateway.envelope import ForeignSource
from gateway.foreign.pacs import (
    STUDY_KEYS,
    Answers,
    FoundInstance,
    FoundSeries,
    Retrieved,
    Window,
    found_instance,
    found_series,
    found_study,
)
from gateway.foreign.polling import SUSPICIOUS
from gateway.outside.web import Service, Stream
from standards.dicom_json import from_json
from standards.errors import PermanentError, RegisError, TransientError
from standards.multipart import Part, parse_related
from standards.uids import new_uid

log = structlog.get_logger(__name__)

_PAGE: Final = 100
_JSON: Final = {"Accept": "application/dicom+json"}
_AS_STORED: Final = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_PLAIN: Final = 'multipart/related; type="application/dicom"'


class Intake(Protocol):
    """Takes a Part 10 file of a source in: durable and in the index on return. Raises: RegisError."""

    def __call__(self, file: BinaryIO, source: ForeignSource) -> None: ...


class DicomWebPacs:
    """``gateway.foreign.pacs.Pacs`` over DICOMweb."""

    def __init__(self, intake: Intake, source: ForeignSource, pace: Callable[[], None]) -> None:
        self._service = Service(source.name, source.url, source.timeout_seconds)
        self._source, self._pace, self._intake = source, pace, intake

    def studies(self, window: Window) -> Answers:
        """What it lists at study level."""
        keys = {"includefield": ",".join(STUDY_KEYS)} | ({window.keyword: window.span} if window.span else {})
        if window.times is not None:
            keys["StudyTime"] = "-".join(window.times)
        if window.modality:
            keys["ModalitiesInStudy"] = window.modality
        answers = Answers(is_whole=True)
        for count, answer in enumerate(self._paged("studies", keys, "StudyInstanceUID")):
            if count >= window.most:
                answers.is_whole, answers.is_capped = False, True
                break
            found = found_study(answer, self._source.issuer_of_patient_id)
            if found is None:
                answers.nameless += 1
            else:
                answers.studies.append(found)
        return answers

    def series(self, study_instance_uid: str) -> list[FoundSeries]:
        """What it lists at series level."""
        keys = {"includefield": "NumberOfSeriesRelatedInstances"}
        rows = self._paged(f"studies/{study_instance_uid}/series", keys, "SeriesInstanceUID")
        return list(dict.fromkeys(one for one in map(found_series, rows) if one is not None))

    def instances(self, study_instance_uid: str) -> list[FoundInstance]:
        """What it lists at instance level."""
        keys = {"includefield": "SeriesInstanceUID,SOPClassUID"}
        rows = self._paged(f"studies/{study_instance_uid}/instances", keys, "SOPInstanceUID")
        return list(dict.fromkeys(one for one in map(found_instance, rows) if one is not None))

    def _paged(self, path: str, keys: dict[str, str], unique: str) -> Iterator[Dataset]:
        """Rows page by page, until one is short, or brings nothing new because the PACS knows no offset."""
        seen: set[str] = set()
        page = min(_PAGE, self._source.answers_at_most or _PAGE)
        offset = 0
        while True:
            rows, has_more = self._page(path, keys | {"limit": str(page), "offset": str(offset)})
            fresh = 0
            for row in rows:
                uid = str(row.get(unique, "") or "")
                fresh += uid not in seen
                if uid and uid in seen:
                    continue
                seen.add(uid)
                yield row
            offset += len(rows)
            if not fresh or not (has_more or len(rows) >= page or len(rows) in SUSPICIOUS):
                return

    def _page(self, path: str, parameters: dict[str, str]) -> tuple[list[Dataset], bool]:
        self._pace()
        with self._service.ask("GET", path, parameters=parameters, headers=_JSON) as answer:
            body = answer.read()
        if answer.status_code == 204:
            return [], False
        if answer.status_code == 413:
            raise PermanentError("query-refused", "too many results for the PACS")
        if answer.status_code >= 500:
            raise TransientError("query-failed", f"{self._source.name} answered {answer.status_code}")
        if answer.status_code != 200:
            raise PermanentError("query-refused", f"{self._source.name} answered {answer.status_code}")
        return list(_rows(body)), answer.headers.get("Warning", "").startswith("299")

    def retrieve(
        self, study_instance_uid: str, series_instance_uid: str = "", sop_instance_uids: Sequence[str] = ()
    ) -> Retrieved:
        """By WADO-RS into the node's storage, an instance at a time."""
        path = f"studies/{study_instance_uid}"
        if series_instance_uid:
            path += f"/series/{series_instance_uid}"
        said = Retrieved()
        for one in [f"{path}/instances/{uid}" for uid in sop_instance_uids] or [path]:
            self._download(one, said)
        return said

    def _download(self, path: str, said: Retrieved) -> None:
        for accept in (_AS_STORED, _PLAIN):  # old services do not know the wildcard
            self._pace()
            with self._service.ask("GET", path, headers={"Accept": accept}) as answer:
                if answer.status_code in (400, 406, 415) and accept == _AS_STORED:
                    continue
                if answer.status_code in (404, 410):
                    raise PermanentError("retrieve-refused", f"{self._source.name} answered {answer.status_code}")
                if answer.status_code >= 500:
                    raise TransientError("retrieve-failed", f"{self._source.name} answered {answer.status_code}")
                if answer.status_code not in (200, 206):
                    raise PermanentError("retrieve-refused", f"{self._source.name} answered {answer.status_code}")
                self._take(answer, said)
                return

    def _take(self, answer: httpx.Response, said: Retrieved) -> None:
        try:
            for part in parse_related(Stream(answer), answer.headers.get("Content-Type", "")):
                self._take_part(part, said)
        except PermanentError as error:  # the message breaks off; what came before is safe and is not asked for again
            raise TransientError("retrieve-failed", f"{self._source.name}: {error}") from error

    def _take_part(self, part: Part, said: Retrieved) -> None:
        try:
            self._intake(cast(BinaryIO, part), self._source)
        except PermanentError as error:
            if error.code == "truncated":
                raise
            said.failed += 1
            said.refused.append(str(error))
            log.warning("instance-refused", source=self._source.name, reason=str(error))
        else:
            said.completed += 1

    def echo(self) -> None:
        """A search for one study, whichever."""
        self._page("studies", {"limit": "1"})

    def try_retrieve(self) -> str:
        """It should say that there is no such study."""
        try:
            self._download(f"studies/{new_uid()}", Retrieved())
        except PermanentError as error:
            if error.code == "retrieve-refused" and error.detail.endswith(("404", "410")):
                return ""
            raise
        except TransientError as error:
            if error.code == "retrieve-failed":  # some stumble over a study that they do not have
                return str(error)
            raise
        return ""

    def close(self) -> None:
        """End the connections."""
        self._service.close()


def _rows(body: bytes) -> Iterable[Dataset]:
    """The data sets of a QIDO-RS answer; one that cannot be read is an empty one, which names nothing."""
    try:
        rows: Any = json.loads(body or b"[]")
    except ValueError as error:
        raise PermanentError("query-refused", "the answer is no JSON") from error
    if not isinstance(rows, list):
        raise PermanentError("query-refused", "the answer is no list")
    for row in rows:
        try:
            yield from_json(row)
        except RegisError:
            yield Dataset()

"""A foreign PACS over DIMSE: what ``gateway.foreign`` asks of it, by C-FIND, C-MOVE and C-GET."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

import structlog
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset

from gateway.envelope import ForeignSource
from gateway.foreign.pacs import (
    MOST_ANSWERS,
    STUDY_KEYS,
    Answers,
    FoundInstance,
    FoundSeries,
    Retrieved,
    Window,
    found_instance,
    found_series,
    found_study,
    speak,
)
from pacs_node.clinic.models import ApplicationEntity
from pacs_node.config import config, storage_sop_classes
from pacs_node.dimse import asking
from pacs_node.dimse.calling import MOST_CONTEXTS, Address, associate
from pacs_node.dimse.channel import Channel, Context
from pacs_node.dimse.statuses import PROCESSING_FAILURE, SUCCESS, status_of
from pacs_node.dimse.tls import client_context
from pacs_node.storage.incoming import Incoming
from pacs_node.study_index.actions import Source, receive, take_in
from standards import charset_detection
from standards.errors import PermanentError, RegisError
from standards.part10 import text
from standards.sop_classes import STORAGE_SOP_CLASSES
from standards.transfer_syntaxes import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    JPEG_BASELINE,
    JPEG_EXTENDED,
    JPEG_LOSSLESS,
    JPEG_LS_LOSSLESS,
    JPEG_LS_NEAR_LOSSLESS,
    RLE_LOSSLESS,
    STORAGE_TRANSFER_SYNTAXES,
)
from standards.uids import new_uid

log = structlog.get_logger(__name__)

WRONG_CHARACTER_SET: Final = "wrong-character-set"
_TEXTS: Final = frozenset({"PN", "LO", "SH", "ST", "LT", "UC", "UT"})
_SILENCE_SECONDS: Final = 600.0
"""A PACS may say nothing while it gets a study from tape."""
_USUAL: Final = (
    *("1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1.2"),
    *("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.6.1"),
    *("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.12.1", "1.2.840.10008.5.1.4.1.1.20"),
)
_SYNTAXES: Final = tuple(
    dict.fromkeys(
        (
            *(EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, JPEG_LOSSLESS, "1.2.840.10008.1.2.4.70"),
            *(JPEG_BASELINE, "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91", JPEG_LS_LOSSLESS, RLE_LOSSLESS),
            *(JPEG_EXTENDED, JPEG_LS_NEAR_LOSSLESS, EXPLICIT_VR_BIG_ENDIAN, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN),
            *STORAGE_TRANSFER_SYNTAXES,
        )
    )
)
"""The usual first: an association has room for so many."""
_FEWEST_SYNTAXES: Final = 8
_MOST_SYNTAXES: Final = 13
"""In one context: old peers end the association over longer lists."""
T = TypeVar("T")


def admit(source: ForeignSource) -> None:
    """Let the PACS store here what it was asked for, by its own character set and issuer.

    What a person said of it in the registry stays; what the centre's devices replaced comes back before each fetch.
    """
    ApplicationEntity.objects.get_or_create(
        ae_title=source.sends_as,
        defaults={
            "origin": ApplicationEntity.Origin.CENTRE,
            "character_set": source.character_set,
            "issuer_of_patient_id": source.issuer_of_patient_id,
            "time_zone": config().time_zone,
            "may_query": False,
            "may_retrieve": False,
            "may_commit": False,
            "may_worklist": False,
        },
    )


class DimsePacs:
    """``gateway.foreign.pacs.Pacs`` over DIMSE; an association for questions is kept from one to the next."""

    def __init__(self, source: ForeignSource, pace: Callable[[], None]) -> None:
        if not (source.ae_title and source.host and source.port):
            raise PermanentError("invalid-setting", f"{source.name} needs AE title, host and port")
        self._source, self._pace = source, pace
        self._channel: Channel | None = None

    def studies(self, window: Window) -> Answers:
        """What it lists at study level."""
        keys = Dataset()
        for keyword in STUDY_KEYS:
            setattr(keys, keyword, "")
        setattr(keys, window.keyword, window.span)
        if window.times is not None:
            keys.StudyTime = "-".join(window.times)
        if window.modality:
            keys.ModalitiesInStudy = window.modality
        answers = Answers()
        try:
            for answer in self._find("STUDY", keys, window.most):
                if mended(answer):
                    answers.quirks.add(WRONG_CHARACTER_SET)
                found = found_study(answer, self._source.issuer_of_patient_id)
                if found is None:
                    answers.nameless += 1
                else:
                    answers.studies.append(found)
        except PermanentError as error:
            if error.code != "too-many-answers":
                raise
            answers.is_capped = True
        return answers

    def series(self, study_instance_uid: str) -> list[FoundSeries]:
        """What it lists at series level."""
        keys = _keys(StudyInstanceUID=study_instance_uid, SeriesInstanceUID="", Modality="")
        keys.NumberOfSeriesRelatedInstances = None
        return _unique(found_series(answer) for answer in self._find("SERIES", keys, MOST_ANSWERS))

    def instances(self, study_instance_uid: str) -> list[FoundInstance]:
        """What it lists at image level, series by series as the hierarchy asks."""
        found: list[FoundInstance] = []
        for series in self.series(study_instance_uid):
            found += self._images(study_instance_uid, series.series_instance_uid)
        return found

    def _images(self, study: str, series: str) -> list[FoundInstance]:
        unique = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SOPInstanceUID": ""}
        for more in ({"SOPClassUID": ""}, {}):  # some have only the unique keys at hand
            try:
                rows = self._find("IMAGE", _keys(**unique, **more), 10 * MOST_ANSWERS)
                return _unique(found_instance(answer, series) for answer in rows)
            except PermanentError as error:
                if error.code != "query-refused" or not more:
                    raise
        raise AssertionError("the last try either returned or raised")

    def _find(self, level: str, keys: Dataset, most: int) -> Iterable[Dataset]:
        keys.QueryRetrieveLevel = level
        self._pace()
        channel = self._opened()
        yield from asking.find(
            channel,
            keys,
            default_character_set=self._source.character_set,
            timeout=self._source.timeout_seconds,
            most=most,
        )

    def _opened(self) -> Channel:
        if self._channel is not None and (self._channel.ended or self._channel.waiting()):
            self._channel.close()  # it was ended, or the PACS ends it now
            self._channel = None
        if self._channel is None:
            contexts = [(uid, asking.PLAIN) for uid in (asking.STUDY_ROOT_FIND, asking.STUDY_ROOT_MOVE)]
            self._channel = self._associate(contexts, [])
        return self._channel

    def _associate(self, contexts: Sequence[tuple[str, Sequence[str]]], as_scp: Iterable[str]) -> Channel:
        source = self._source
        tls = client_context(config()) if source.use_tls else None
        return associate(
            Address(source.ae_title, source.host, source.port, tls),
            calling=source.calling_ae_title or config().ae_title,
            contexts=contexts,
            as_scp=as_scp,
            timeout=source.timeout_seconds,
        )

    def retrieve(
        self, study_instance_uid: str, series_instance_uid: str = "", sop_instance_uids: Sequence[str] = ()
    ) -> Retrieved:
        """By C-MOVE to this node, or by C-GET."""
        keys = _keys(StudyInstanceUID=study_instance_uid)
        keys.QueryRetrieveLevel = "STUDY"
        if series_instance_uid:
            keys.SeriesInstanceUID, keys.QueryRetrieveLevel = series_instance_uid, "SERIES"
        if sop_instance_uids:
            keys.SOPInstanceUID, keys.QueryRetrieveLevel = list(sop_instance_uids), "IMAGE"
        silence = max(_SILENCE_SECONDS, self._source.timeout_seconds)
        if self._source.retrieve == "c-get":
            return self._get(keys, silence)
        admit(self._source)
        self._pace()
        progress = asking.move(self._opened(), keys, config().ae_title, timeout=silence)
        return Retrieved(progress.completed, progress.failed, progress.comment)

    def _get(self, keys: Dataset, silence: float) -> Retrieved:
        classes = self._classes_of(str(keys.StudyInstanceUID))
        contexts: list[tuple[str, Sequence[str]]] = [(asking.STUDY_ROOT_GET, asking.PLAIN)]
        room = (MOST_CONTEXTS - 1) // len(classes)
        if room >= _FEWEST_SYNTAXES:  # a context for each syntax, so that all can be sent as they are stored
            contexts += [(sop_class, (syntax,)) for sop_class in classes for syntax in _SYNTAXES[:room]]
        else:
            contexts += [(sop_class, _SYNTAXES[:_MOST_SYNTAXES]) for sop_class in classes]
        self._pace()
        channel = self._associate(contexts, classes)
        taking = _Taking(self._source)
        try:
            progress = asking.get(channel, keys, taking.begin, timeout=silence)
        finally:
            _end(channel)
        return Retrieved(progress.completed, progress.failed, progress.comment, taking.refused)

    def _classes_of(self, study_instance_uid: str) -> list[str]:
        """What to be the SCP of: the classes that the PACS lists, or all the usual ones where it lists none."""
        listed: set[str] = set()
        try:
            listed = {one.sop_class_uid for one in self.instances(study_instance_uid)}
        except PermanentError as error:
            if error.code != "query-refused":
                raise
        found = sorted(listed & storage_sop_classes())
        rest = [uid for uid in STORAGE_SOP_CLASSES if uid not in _USUAL]
        return found or [*_USUAL, *rest][: MOST_CONTEXTS - 1]

    def echo(self) -> None:
        """C-ECHO over an association of its own, as some PACS take it only so."""
        self._pace()
        channel = self._associate([(asking.VERIFICATION, asking.PLAIN)], [])
        try:
            asking.echo(channel, timeout=self._source.timeout_seconds)
        finally:
            _end(channel)

    def try_retrieve(self) -> str:
        """By the operation that images are fetched with."""
        keys = _keys(StudyInstanceUID=new_uid())
        keys.QueryRetrieveLevel = "STUDY"
        try:
            if self._source.retrieve == "c-get":
                self._get(keys, self._source.timeout_seconds)
            else:
                self._pace()
                asking.move(self._opened(), keys, config().ae_title, timeout=self._source.timeout_seconds)
        except RegisError as error:
            if error.code not in ("retrieve-refused", "retrieve-failed"):
                raise
            return str(error)  # it may be that study alone
        return ""

    def close(self) -> None:
        """Release the association."""
        if self._channel is not None:
            _end(self._channel)
            self._channel = None


def _end(channel: Channel) -> None:
    if channel.ended:
        channel.close()
    else:
        channel.release()


class _Taking:
    """What comes over the association of a C-GET goes into the node's storage as from any modality."""

    def __init__(self, source: ForeignSource) -> None:
        self._from = Source(source.sends_as, source.host, source.character_set, source.issuer_of_patient_id)
        self.refused: list[str] = []

    def begin(self, command: dict[str, Any], context: Context) -> "_One":
        """What takes the next instance."""
        return _One(self._from, command, context, self.refused)


class _One:
    """An instance on its way in."""

    def __init__(self, source: Source, command: dict[str, Any], context: Context, refused: list[str]) -> None:
        self._source, self._refused = source, refused
        self._sop_class = str(command.get("AffectedSOPClassUID") or "")
        self._sop_instance = str(command.get("AffectedSOPInstanceUID") or "")
        self._incoming: Incoming | None = None
        self._status: int | None = None
        with self._noting():
            self._incoming = receive(self._sop_class, self._sop_instance, context.transfer_syntax, source)

    @contextlib.contextmanager
    def _noting(self) -> Any:
        """What goes wrong decides the status and is named; the rest of the data set is read away."""
        try:
            yield
        except RegisError as error:
            self._refuse(status_of(error), f"{self._sop_instance[:64]}: {error}")
        except OSError as error:
            self._refuse(PROCESSING_FAILURE, f"{self._sop_instance[:64]}: storage-failed: {error.strerror}")

    def _refuse(self, status: int, why: str) -> None:
        log.warning("instance-refused", reason=why)
        self._status = status
        self._refused.append(why)
        self.close()

    def take(self, piece: memoryview) -> None:
        """The next bytes of its data set."""
        if self._incoming is not None:
            with self._noting():
                self._incoming.write(piece)

    def finish(self) -> int:
        """Durable and in the index; the status to answer."""
        if self._incoming is not None:
            with self._noting():
                take_in(
                    self._incoming,
                    self._source,
                    expected_sop_class=self._sop_class,
                    expected_sop_instance=self._sop_instance,
                )
        self.close()
        return SUCCESS if self._status is None else self._status

    def close(self) -> None:
        """Let go of what was not stored."""
        if self._incoming is not None:
            self._incoming.close()
            self._incoming = None


def mended(answer: Dataset) -> bool:
    """Read texts as what they are written in where the character set of the answer surely lies; whether it did."""
    raw = [
        element
        for element in answer._dict.values()
        if isinstance(element, RawDataElement) and element.VR in _TEXTS and element.value
    ]
    detected = charset_detection.detect(
        [element.value for element in raw if element.value], text(answer, "SpecificCharacterSet")
    )
    if detected is None or not detected.is_sure:
        return False
    for element in raw:
        plain = (element.value or b"").decode(detected.codec, "replace").strip(" \0")
        answer[element.tag] = DataElement(element.tag, element.VR or "LO", plain)
    return True


def _keys(**values: str) -> Dataset:
    keys = Dataset()
    for keyword, value in values.items():
        setattr(keys, keyword, value)
    return keys


def _unique(found: Iterable[T | None]) -> list[T]:
    return list(dict.fromkeys(one for one in found if one is not None))


def register() -> None:
    """Called once, when the app is ready."""
    speak("dicom", DimsePacs)

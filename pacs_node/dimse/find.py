"""C-FIND as SCP: patient and study root at all levels, and the Modality Worklist.

Source: PS3.4 C.4.1, C.5.1.1, K.4.1
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, Final, cast, get_args
from weakref import WeakKeyDictionary

import structlog
from django.db import Error as DatabaseError
from pydicom.datadict import dictionary_has_tag
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (
    ModalityWorklistInformationFind,
    PatientRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelFind,
)

from pacs_node.clinic.models import ApplicationEntity
from pacs_node.clinic.queries import ClinicSchedule
from pacs_node.dimse.admission import Peer, peer_of
from pacs_node.dimse.channel import Channel, borrowed
from pacs_node.dimse.connections import healthy_connection
from pacs_node.dimse.identifiers import Answers, total
from pacs_node.dimse.statuses import CANCELLED, OUT_OF_RESOURCES, PENDING, SUCCESS, comment_text, refusal, status_of
from pacs_node.study_index.keys import Level
from pacs_node.study_index.queries import Counts, Row, counts_of, every
from pacs_node.study_index.searches import Search, Tree, search
from standards import charsets, upper_layer
from standards.errors import PermanentError, RegisError, TransientError
from standards.part10 import read_identifier, text
from worklist.scp import answers

log = structlog.get_logger(__name__)

STUDY_FINDS: Final = frozenset(
    {str(PatientRootQueryRetrieveInformationModelFind), str(StudyRootQueryRetrieveInformationModelFind)}
)
PENDING_WITH_WARNING: Final = 0xFF01
_NOT_KEYS: Final = frozenset({"00080005", "00080052", "00080054", "00080056"})
_REQUIRED_KEYS: Final = frozenset(
    {
        0x00080020, 0x00080030, 0x00080050, 0x00100010, 0x00100020, 0x00200010, 0x0020000D,
        0x00080060, 0x00200011, 0x0020000E, 0x00200013, 0x00080018,
    }
)  # fmt: skip
"""Required and unique keys of all levels. Source: PS3.4 C.6.1.1, C.6.2.1"""
_BATCH: Final = 100
_LARGER_BATCH: Final = 200
"""The first answers go out soon, and the asker reads some while others are made; but each batch has its price."""
_PATIENT_BATCH_STUDIES: Final = 500


@dataclass(frozen=True)
class Negotiated:
    """What extended negotiation agreed on. Relational queries are answered in any case."""

    relational: bool = False
    combined: bool = False
    fuzzy: bool = False
    empty: bool = False


_negotiated: WeakKeyDictionary[Association, dict[str, Negotiated]] = WeakKeyDictionary()


def on_extended(event: evt.Event) -> dict[str, bytes]:
    """Answer SOP Class Extended Negotiation of the FIND classes: byte by byte what is asked for and supported.

    Bytes: relational queries, combined date-time matching, fuzzy names, time zone, enhanced multi-frame image
    conversion (not supported), empty value matching, multiple value matching.
    Source: PS3.4 C.5.1.1
    """
    supported = bytes((1, 1, 1, 1, 0, 1, 1))
    accepted: dict[str, bytes] = {}
    for uid, asked in event.app_info.items():
        if str(uid) in STUDY_FINDS and asked:
            given = bytes(min(one, ours) for one, ours in zip(asked, supported, strict=False))
            accepted[str(uid)] = given
            padded = given.ljust(len(supported), b"\0")
            known = _negotiated.setdefault(event.assoc, {})
            known[str(uid)] = Negotiated(bool(padded[0]), bool(padded[1]), bool(padded[2]), bool(padded[5]))
    return accepted


def on_find(event: evt.Event) -> Iterator[tuple[int | Dataset, Dataset | None]]:
    """Answer a worklist query; what goes wrong is a status with its reason, never a broken association."""
    healthy_connection()
    try:
        peer = peer_of(event.assoc)
        is_worklist = event.request.AffectedSOPClassUID == ModalityWorklistInformationFind
        peer.require("worklist" if is_worklist else "query")
        encoded = event.request.Identifier
        if encoded is None or not is_worklist:
            raise PermanentError("invalid-key", "the request has no identifier")
        query = read_identifier(
            encoded.getvalue(), str(event.context.transfer_syntax), default_charset=peer.character_set
        )
        character_set = _answer_character_set(query, peer)
        for answer in answers(query, ClinicSchedule().items(query), character_set=character_set):
            if event.is_cancelled:
                yield CANCELLED, None
                return
            yield PENDING, answer
    except RegisError as error:
        log.warning("query-refused", code=error.code, detail=error.detail)
        yield refusal(error), None


def serve_find(association: Association, request: Any, context_id: int) -> None:
    """Serve a C-FIND of the Query/Retrieve classes on an association of pynetdicom's."""
    with borrowed(association) as channel:
        try:
            _Find(association, channel, request, context_id).serve()
        except TransientError as error:
            log.warning("query-ended-early", code=error.code, detail=error.detail)


class _Find:
    """One C-FIND request on its way to its final response."""

    def __init__(self, association: Association, channel: Channel, request: Any, context_id: int) -> None:
        self.association, self.channel, self.context_id = association, channel, context_id
        self.message_id = int(request.MessageID)
        self.sop_class = str(request.AffectedSOPClassUID)
        self.identifier = request.Identifier.getvalue() if request.Identifier is not None else b""
        self.transfer_syntax = next(
            (context.transfer_syntax for context in channel.contexts if context.context_id == context_id), ""
        )

    def serve(self) -> None:
        """Answer, whatever happens. Raises TransientError when the asker's association is over."""
        try:
            healthy_connection()
            cancelled = self._send_answers()
        except TransientError as error:
            if self.channel.ended:
                raise
            self._refuse(error)
        except PermanentError as error:
            self._refuse(error)
        except DatabaseError as error:
            log.exception("query-refused", code="database-busy")
            self._final(OUT_OF_RESOURCES, f"database-busy: {type(error).__name__}")
        else:
            self._final(CANCELLED if cancelled else SUCCESS)

    def _refuse(self, error: RegisError) -> None:
        log.warning("query-refused", code=error.code, detail=error.detail)
        self._final(status_of(error), str(error))

    def _send_answers(self) -> bool:
        """Whether it was cancelled."""
        peer = peer_of(self.association)
        peer.require("query")
        if not self.identifier:
            raise PermanentError("invalid-key", "the request has no identifier")
        query = read_identifier(self.identifier, self.transfer_syntax, default_charset=peer.character_set)
        level = level_of(query, self.sop_class)
        agreed = _negotiated.get(self.association, {}).get(self.sop_class, Negotiated())
        asked = search(level, tree_of(query), fuzzy=agreed.fuzzy, combined=agreed.combined, empty=agreed.empty)
        if ApplicationEntity.Quirk.REQUIRED_KEYS_ONLY in peer.quirks:
            _drop_optional_keys(query)
        writer = Answers(query, asked, _answer_character_set(query, peer), self.transfer_syntax)
        status = PENDING_WITH_WARNING if asked.ignored else PENDING
        head = upper_layer.message(self.context_id, self._response(status, upper_layer.DATASET_FOLLOWS), self._pdu)

        @cache
        def before(length: int) -> bytes:
            """The response, and the header of an identifier that long."""
            return head + upper_layer.pdv_header(self.context_id, length, is_command=False, is_last=True)

        found = _patients(asked, writer) if level == "PATIENT" else _entities(asked, writer)
        most = upper_layer.fragment_bytes(self._pdu)
        size = _BATCH
        while batch := list(islice(found, size)):
            size = _LARGER_BATCH
            if self.channel.is_cancelled(self.message_id):
                return True
            pieces: list[bytes] = []
            for data in batch:
                if len(data) <= most:
                    pieces += (before(len(data)), data)
                else:
                    pieces += (head, *upper_layer.fragments(self.context_id, data, self._pdu, is_command=False))
            self.channel.send_bytes([b"".join(pieces)])
        return self.channel.is_cancelled(self.message_id)

    @property
    def _pdu(self) -> int:
        return self.channel.largest_pdu

    def _response(self, status: int, kind: int) -> dict[str, Any]:
        return {
            "CommandField": upper_layer.C_FIND_RQ | upper_layer.RESPONSE,
            "MessageIDBeingRespondedTo": self.message_id,
            "AffectedSOPClassUID": self.sop_class,
            "CommandDataSetType": kind,
            "Status": status,
        }

    def _final(self, status: int, comment: str = "") -> None:
        response = self._response(status, upper_layer.NO_DATASET)
        self.channel.send(self.context_id, {**response, "ErrorComment": comment_text(comment) or None})


def _drop_optional_keys(query: Dataset) -> None:
    """For a device that is confused by them; they have been matched on already."""
    for tag in list(query.keys()):
        if int(tag) not in _REQUIRED_KEYS:
            del query[tag]


def _entities(asked: Search, writer: Answers) -> Iterator[bytes]:
    found = every(asked, writer.wanted)
    none = Counts()
    size = _BATCH
    while batch := list(islice(found, size)):
        size = _LARGER_BATCH
        counts = counts_of({row.study_key for row in batch}, sop_classes=writer.sop_classes) if writer.counts else {}
        for row in batch:
            yield writer.encoded(row, counts.get(row.study_key, none))


def _patients(asked: Search, writer: Answers) -> Iterator[bytes]:
    """Studies come sorted by patient; each patient is told of once, as the study that came last describes him."""
    waiting: list[tuple[Row, list[int]]] = []

    def flushed() -> Iterator[bytes]:
        keys = [key for _, studies in waiting for key in studies]
        counts = counts_of(keys) if writer.counts else {}
        for row, studies in waiting:
            yield writer.encoded(row, total({key: counts[key] for key in studies if key in counts}), len(studies))
        waiting.clear()

    held = 0
    patient: tuple[str, str] | None = None
    for row in every(asked, writer.wanted):
        if writer.patient_of(row) == patient:
            studies = waiting[-1][1]
            studies.append(row.key)
            waiting[-1] = (row, studies)
        else:
            if held >= _PATIENT_BATCH_STUDIES:
                yield from flushed()
                held = 0
            waiting.append((row, [row.key]))
            patient = writer.patient_of(row)
        held += 1
    yield from flushed()


def _answer_character_set(query: Dataset, peer: Peer) -> str:
    """The set that the asker reads: the one it asked in, else the one the registry has for it."""
    asked = text(query, "SpecificCharacterSet")
    return asked if asked and charsets.is_known(asked) else peer.character_set


def level_of(query: Dataset, sop_class: str) -> Level:
    """The Query/Retrieve Level. Raises: PermanentError("invalid-key")."""
    level = text(query, "QueryRetrieveLevel").upper()
    of_patient_root = sop_class == PatientRootQueryRetrieveInformationModelFind
    if level not in get_args(Level) or (level == "PATIENT" and not of_patient_root):
        raise PermanentError("invalid-key", f"no Query/Retrieve Level {level[:16]!r} in this information model")
    return cast(Level, level)


def tree_of(query: Dataset) -> Tree:
    """Tag → key text, or for a sequence the keys of its item; what the dictionary does not know is left out."""
    tree: Tree = {}
    for number in query.keys():  # noqa: SIM118  iterating a Dataset gives elements, decoded
        tag = f"{int(number):08X}"
        if not dictionary_has_tag(number) or not number.element or tag in _NOT_KEYS:
            continue
        element = query[number]
        if element.VR == "SQ":
            items = list(element.value or [])
            tree[tag] = tree_of(items[0]) if items else {}
        else:
            tree[tag] = _key_text(element.value)
    return tree


def _key_text(value: Any) -> str:
    if value is None:
        return ""
    values = list(value) if isinstance(value, MultiValue | list | tuple) else [value]
    return "\\".join(str(one) for one in values if not isinstance(one, bytes)).replace("\0", "").strip()

"""C-MOVE and C-GET as SCP: what an identifier names is sent to a registered AE, or back over the same association.

Source: PS3.4 C.4.2, C.4.3; PS3.7 9.1.3, 9.1.4
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from django.db import Error as DatabaseError
from django.db.models import QuerySet
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_GET, C_MOVE
from pynetdicom.dsutils import encode

from pacs_node.clinic import audit
from pacs_node.clinic.models import ApplicationEntity
from pacs_node.dimse.admission import Peer, peer_of
from pacs_node.dimse.channel import Channel, borrowed
from pacs_node.dimse.connections import healthy_connection
from pacs_node.dimse.destination import Destination
from pacs_node.dimse.sender import Cancelled, Manner, Opened, Sent, Stored, send_opened
from pacs_node.dimse.statuses import (
    CANCELLED,
    PENDING,
    SUBOPERATIONS_FAILED,
    SUBOPERATIONS_IMPERFECT,
    SUCCESS,
    UNABLE_TO_MATCH,
    comment_text,
    retrieve_status_of,
)
from pacs_node.study_index.models import Instance
from standards import upper_layer
from standards.errors import PermanentError, RegisError, TransientError
from standards.part10 import read_identifier, text
from standards.transfer_syntaxes import IMPLICIT_VR_LITTLE_ENDIAN
from standards.uids import validated_uid

log = structlog.get_logger(__name__)

PATIENT_ROOT: Final = frozenset({"1.2.840.10008.5.1.4.1.2.1.2", "1.2.840.10008.5.1.4.1.2.1.3"})

_BATCH: Final = 500
_FILES_AHEAD: Final = 16
_ALL_TOLD: Final = 10
_TELL_EVERY_SECONDS: Final = 0.1
_LONGEST_SHORT_VALUE: Final = 0xFFFE
_COLUMNS: Final = {
    "StudyInstanceUID": "series__study__study_instance_uid",
    "SeriesInstanceUID": "series__series_instance_uid",
    "SOPInstanceUID": "sop_instance_uid",
}
_UNIQUE_KEY: Final = {
    "PATIENT": "PatientID",
    "STUDY": "StudyInstanceUID",
    "SERIES": "SeriesInstanceUID",
    "IMAGE": "SOPInstanceUID",
}


@dataclass
class Progress:
    """The sub-operations of one retrieve so far."""

    remaining: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failed_uids: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    conversions: Counter[str] = field(default_factory=Counter)
    studies: Counter[str] = field(default_factory=Counter)

    def count(self, uid: str, study: str, sent: Sent) -> None:
        """Take in how one sub-operation ended."""
        self.remaining -= 1
        self.outcomes[sent.outcome] += 1
        if sent.outcome == "failed":
            self.failed_uids.append(uid)
            self.reasons[sent.comment or f"the peer answered {sent.status:04X}"] += 1
        else:
            self.studies[study] += 1
            if sent.conversion:
                self.conversions[sent.conversion] += 1

    def final_status(self) -> int:
        """Success, warning, or refusal when nothing went over. Source: PS3.4 C.4.2.1.5, C.4.3.1.4"""
        if not self.outcomes["failed"] and not self.outcomes["warning"]:
            return SUCCESS
        if not self.outcomes["completed"] and not self.outcomes["warning"]:
            return SUBOPERATIONS_FAILED
        return SUBOPERATIONS_IMPERFECT

    def comment(self) -> str:
        """What went wrong most, else what was done to the objects."""
        for kind, counted in (("not sent", self.reasons), ("sent", self.conversions)):
            if counted:
                ((what, number),) = counted.most_common(1)
                return f"{number} {kind}: {what}"
        return ""


class Retrieve:
    """One C-MOVE or C-GET request on its way to its final response."""

    def __init__(self, association: Association, channel: Channel, request: C_MOVE | C_GET, context_id: int) -> None:
        self.channel = channel
        self.context_id = context_id
        self.message_id = int(request.MessageID)
        self.sop_class = str(request.AffectedSOPClassUID)
        self.field = upper_layer.C_MOVE_RQ if isinstance(request, C_MOVE) else upper_layer.C_GET_RQ
        self.transfer_syntax = next(
            (context.transfer_syntax for context in channel.contexts if context.context_id == context_id), ""
        )
        self.identifier = request.Identifier.getvalue() if request.Identifier is not None else b""
        self.move_destination = str(getattr(request, "MoveDestination", "") or "").strip()
        self.association = association
        self.progress = Progress()
        self._coming: Iterator[tuple[str, str, Stored]] = iter(())
        self._ahead: deque[tuple[str, str, Opened]] = deque()
        self._tell_after = 0.0
        self._trouble: TransientError | None = None

    def serve(self) -> None:
        """Do it, and answer whatever happens. Raises TransientError when the asker's association is over."""
        try:
            healthy_connection()
            peer = peer_of(self.association)
            peer.require("retrieve")
            chosen = named_instances(self.identifier, self.sop_class, self.transfer_syntax, peer.character_set)
            keys = list(chosen.values_list("pk", flat=True))
            destination = self._destination(peer, chosen) if self.field == upper_layer.C_MOVE_RQ else None
        except RegisError as error:
            log.warning("retrieve-refused", code=error.code, detail=error.detail)
            self._answer(retrieve_status_of(error), comment=str(error))
            return
        except DatabaseError as error:
            log.exception("retrieve-refused", code="database-busy")
            self._answer(UNABLE_TO_MATCH, comment=f"database-busy: {type(error).__name__}")
            return
        self.progress.remaining = len(keys)
        send = destination.send if destination is not None else self._send_back
        try:
            cancelled = self._sub_operations(keys, send)
        finally:
            if destination is not None:
                destination.close()
            self._write_down(peer)
        status = CANCELLED if cancelled else self.progress.final_status()
        self._answer(status, comment=self.progress.comment())

    def _destination(self, peer: Peer, chosen: QuerySet[Instance]) -> Destination:
        entity = ApplicationEntity.objects.filter(ae_title=self.move_destination, port__gt=0).exclude(host="").first()
        if entity is None:
            raise PermanentError(
                "move-destination-unknown", f"{self.move_destination} is not registered with host and port"
            )
        pairs = chosen.order_by().values_list("sop_class_uid", "transfer_syntax_uid").distinct()
        manner = Manner((peer.ae_title, self.message_id), self._must_stop, self._look_ahead)
        return Destination(entity, set(pairs), manner)

    def _sub_operations(self, keys: list[int], send: Callable[[Opened], Sent]) -> bool:
        """Whether it was cancelled."""
        self._coming = _stored(keys)
        try:
            while True:
                self._look_ahead()
                if not self._ahead:
                    return False
                if self.channel.is_cancelled(self.message_id):
                    return True
                uid, study, opened = self._ahead.popleft()
                try:
                    sent = send(opened)
                except Cancelled:
                    self._raise_trouble()
                    return True
                self.progress.count(uid, study, sent)
                self._raise_trouble()
                self._tell()
        finally:
            for _, _, opened in self._ahead:
                opened.close()

    def _look_ahead(self) -> None:
        """Have the next files open, and read by the kernel while the peer is busy with this one."""
        while len(self._ahead) < _FILES_AHEAD:
            following = next(self._coming, None)
            if following is None:
                return
            uid, study, stored = following
            self._ahead.append((uid, study, Opened(stored)))

    def _tell(self) -> None:
        """A pending response: after each of the first, then ten a second, as each costs the asker time too."""
        done = self.progress.outcomes.total()
        now = time.monotonic()
        if self.progress.remaining and (done <= _ALL_TOLD or now >= self._tell_after):
            self._answer(PENDING)
            self._tell_after = now + _TELL_EVERY_SECONDS

    def _must_stop(self) -> bool:
        try:
            return self._trouble is not None or self.channel.is_cancelled(self.message_id)
        except TransientError as error:
            self._trouble = error
            return True

    def _raise_trouble(self) -> None:
        if self._trouble is not None:
            raise self._trouble

    def _send_back(self, opened: Opened) -> Sent:
        wanted = opened.stored.sop_class_uid
        if not any(context.as_scu and context.abstract_syntax == wanted for context in self.channel.contexts):
            opened.close()
            return Sent(0x0122, "class-not-negotiated: the asker is no Storage SCP for this class here")
        return send_opened(self.channel, opened, Manner(meanwhile=self._look_ahead))

    def _answer(self, status: int, *, comment: str = "") -> None:
        """A pending or the final response, with counts and, at the end, what failed. Source: PS3.4 C.4.2.1.4.2"""
        progress = self.progress
        counted = {
            "NumberOfCompletedSuboperations": min(progress.outcomes["completed"], 0xFFFF),
            "NumberOfFailedSuboperations": min(progress.outcomes["failed"], 0xFFFF),
            "NumberOfWarningSuboperations": min(progress.outcomes["warning"], 0xFFFF),
        }
        if status in (PENDING, CANCELLED):
            counted["NumberOfRemainingSuboperations"] = min(progress.remaining, 0xFFFF)
        data = None
        if status not in (PENDING, SUCCESS) and progress.failed_uids:
            data = self._failed_list()
        self.channel.send(
            self.context_id,
            {
                "CommandField": self.field | upper_layer.RESPONSE,
                "MessageIDBeingRespondedTo": self.message_id,
                "AffectedSOPClassUID": self.sop_class,
                "Status": status,
                "ErrorComment": comment_text(comment) or None,
                **counted,
            },
            data,
        )

    def _failed_list(self) -> bytes:
        """Failed SOP Instance UID List; where its length has 16 bits, as many UIDs as fit."""
        uids, length = [], 0
        for uid in self.progress.failed_uids:
            length += len(uid) + 1
            if length > _LONGEST_SHORT_VALUE and self.transfer_syntax != IMPLICIT_VR_LITTLE_ENDIAN:
                break
            uids.append(uid)
        answer = Dataset()
        answer.FailedSOPInstanceUIDList = uids
        syntax = UID(self.transfer_syntax)
        return encode(answer, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated) or b""

    def _write_down(self, peer: Peer) -> None:
        progress, outcomes = self.progress, self.progress.outcomes
        target = self.move_destination or peer.ae_title
        log.info(
            "retrieve-ended",
            calling_ae_title=peer.ae_title,
            destination=target,
            completed=outcomes["completed"],
            warning=outcomes["warning"],
            failed=outcomes["failed"],
            remaining=progress.remaining,
            conversions=dict(progress.conversions),
            reasons=dict(progress.reasons),
        )
        for study, number in progress.studies.items():
            audit.record(
                "study.sent",
                actor=peer.ae_title,
                entity=study,
                address=peer.address,
                detail={"to": target, "instances": number, "conversions": dict(progress.conversions)},
            )


def named_instances(identifier: bytes, sop_class: str, transfer_syntax: str, character_set: str) -> QuerySet[Instance]:
    """What a retrieve identifier names, those included whose files this node has let go of: they fail by name.

    Keys of the levels above may be left out, as in relational retrieval; those given narrow.

    Raises: PermanentError "invalid-key", "invalid-uid", or why the identifier cannot be read.
    """
    if not identifier:
        raise PermanentError("invalid-key", "the request has no identifier")
    query = read_identifier(identifier, transfer_syntax, default_charset=character_set)
    level = text(query, "QueryRetrieveLevel").upper()
    if level not in _UNIQUE_KEY or (level == "PATIENT" and sop_class not in PATIENT_ROOT):
        raise PermanentError("invalid-key", f"no Query/Retrieve Level {level[:16]!r} in this information model")
    chosen = Instance.objects.filter(is_variant=False)
    patient = text(query, "PatientID")
    if sop_class in PATIENT_ROOT and patient:
        chosen = chosen.filter(series__study__patient_id=patient)
        if issuer := text(query, "IssuerOfPatientID"):
            chosen = chosen.filter(series__study__issuer_of_patient_id=issuer)
    if not text(query, _UNIQUE_KEY[level]).strip("*?\\ "):
        raise PermanentError("invalid-key", f"{_UNIQUE_KEY[level]} is missing in a retrieve at {level} level")
    for keyword, column in _COLUMNS.items():
        uids = [validated_uid(uid) for uid in text(query, keyword).split("\\") if uid.strip()]
        if uids:
            chosen = chosen.filter(**{f"{column}__in": uids})
    return chosen.order_by("series__study_id", "series__series_number", "series_id", "instance_number", "pk")


def _stored(keys: list[int]) -> Iterator[tuple[str, str, Stored]]:
    """UID, study and place of these instances in this order; a batch at a time, with no cursor open while they go."""
    for start in range(0, len(keys), _BATCH):
        batch = keys[start : start + _BATCH]
        rows = {
            row[0]: row
            for row in Instance.objects.filter(pk__in=batch).values_list(
                "pk",
                "sop_class_uid",
                "sop_instance_uid",
                "transfer_syntax_uid",
                "path",
                "released_at",
                "series__study__study_instance_uid",
            )
        }
        for key in batch:
            if key in rows:
                _, sop_class, uid, syntax, path, released_at, study = rows[key]
                yield uid, study, Stored(sop_class, uid, syntax, path, released_at is not None)


def serve_retrieve(association: Association, request: Any, context_id: int) -> None:
    """Serve a C-MOVE or C-GET on an association of pynetdicom's."""
    with borrowed(association) as channel:
        try:
            Retrieve(association, channel, request, context_id).serve()
        except TransientError as error:
            log.warning("retrieve-ended-early", code=error.code, detail=error.detail)

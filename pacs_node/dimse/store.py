"""C-STORE: what was answered with success is durable and findable."""

import contextlib
import io
import struct
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.association import Association

from pacs_node.config import storage_sop_classes
from pacs_node.dimse.admission import peer_of
from pacs_node.dimse.connections import healthy_connection
from pacs_node.dimse.statuses import OUT_OF_RESOURCES, PROCESSING_FAILURE, SUCCESS, refusal, status_dataset
from pacs_node.storage.incoming import Incoming
from pacs_node.storage.stores import storage
from pacs_node.study_index.actions import Described, Source, foresee, ingest, receive, take_in
from standards.errors import PermanentError, RegisError
from standards.uids import named

log = structlog.get_logger(__name__)

_DISCARDED: Final = 1 << 16
_FIRST_LOOK: Final = 1 << 15
"""Most headers are shorter."""


class Arriving:
    """A data set on its way in. It is read to its end whatever happens: the answer belongs after it.

    ``status``: already decided; the data set is only read away. ``checked``: the database connection is known to hold.
    Close it at the end, whatever came of it: after the answer, because the peer waits for that alone.
    """

    def __init__(
        self,
        association: Association,
        request: dict[str, Any],
        abstract_syntax: str,
        transfer_syntax: str,
        status: int | None = None,
        *,
        checked: bool = False,
    ) -> None:
        self.request = request
        self._association = association
        self._incoming: Incoming | None = None
        self._foreseen: Described | None = None
        self._look_at = _FIRST_LOOK
        self._outcome: dict[str, Any] = {} if status is None else {"Status": status}
        if status is None:
            self._guarded(lambda: self._open(abstract_syntax, transfer_syntax, checked=checked))

    def _open(self, abstract_syntax: str, transfer_syntax: str, *, checked: bool) -> None:
        if not checked:
            healthy_connection()
        peer = peer_of(self._association)
        peer.require("store")
        self._source = Source(peer.ae_title, peer.address, peer.writes, peer.issuer_of_patient_id)
        self._sop_class = str(self.request.get("AffectedSOPClassUID") or "")
        self._sop_instance = str(self.request.get("AffectedSOPInstanceUID") or "")
        if self._sop_class not in storage_sop_classes():
            raise PermanentError("sop-class-not-supported", f"{self._sop_class} is not a storage SOP class")
        if self._sop_class != abstract_syntax:
            raise PermanentError(
                "sop-class-mismatch", f"{self._sop_class} in a presentation context of {abstract_syntax}"
            )
        self._incoming = receive(self._sop_class, self._sop_instance, transfer_syntax, self._source)

    def receive(self, length: int, fill: Callable[[memoryview], None], *, is_last: bool) -> None:
        """Have ``fill`` bring the next ``length`` bytes. What it raises passes through."""
        while length:
            piece = self._room()[:length]
            fill(piece)
            length -= len(piece)
            if self._incoming is not None:
                self._guarded(partial(self._incoming.filled, len(piece)))
        if not is_last and self._incoming is not None and self._incoming.size >= self._look_at:
            # The peer fills the socket's buffer meanwhile, so this costs no time.
            self._guarded(partial(self._foresee, self._incoming))
            self._look_at = sys.maxsize if self._foreseen else self._look_at * 4

    def _foresee(self, incoming: Incoming) -> None:
        self._foreseen = foresee(incoming, self._source)

    def _room(self) -> memoryview:
        room: list[memoryview] = []
        if (incoming := self._incoming) is not None:
            self._guarded(lambda: room.append(incoming.room()))
        return room[0] if room else memoryview(bytearray(_DISCARDED))

    def finish(self) -> dict[str, Any]:
        """Take the instance in; the elements of the answer that say how it went."""
        self._guarded(self._take_in)
        return self._outcome

    def prepare_next(self) -> None:
        """Use the time that the peer needs for its next instance. What fails here fails then, by name."""
        with contextlib.suppress(RegisError, OSError):
            storage().prepare()

    def _take_in(self) -> None:
        if self._incoming is None:
            return
        taken = take_in(
            self._incoming,
            self._source,
            expected_sop_class=self._sop_class,
            expected_sop_instance=self._sop_instance,
            foreseen=self._foreseen,
        )
        self._outcome["Status"] = SUCCESS
        if taken.outcome != "stored":
            log.info(f"instance-{taken.outcome}", sop_instance_uid=self._sop_instance)

    def _guarded(self, step: Callable[[], None]) -> None:
        """A failure decides the status, is logged once, and ends the storing, not the reading."""
        try:
            step()
        except Exception as error:  # the boundary of the association: it is told, and it goes on
            answer = _refused(error, self._association, str(self.request.get("AffectedSOPInstanceUID") or ""))
            self._outcome = {"Status": answer.Status}
            if "ErrorComment" in answer:
                self._outcome["ErrorComment"] = str(answer.ErrorComment)
            self.close()

    def close(self) -> None:
        """Let go of what was received and is not stored."""
        if self._incoming is not None:
            self._incoming.close()
            self._incoming = None


def _refused(error: Exception, association: Association, sop_instance_uid: str) -> Dataset:
    """The answer to an instance that is not stored. One line is logged, which quotes nothing of the data set."""
    if isinstance(error, RegisError):
        answer, code, detail = refusal(error), error.code, error.detail
    elif isinstance(error, OSError):
        code, detail = "storage-failed", error.strerror or type(error).__name__
        answer = status_dataset(OUT_OF_RESOURCES, f"the storage failed: {detail}")
    else:
        place = traceback.extract_tb(error.__traceback__)[-1]
        code, detail = "unexpected", f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}"
        answer = status_dataset(PROCESSING_FAILURE)
    log.warning(
        "instance-refused",
        code=code,
        detail=detail,
        calling_ae_title=association.requestor.ae_title,
        sop_instance_uid=named(sop_instance_uid),
    )
    return answer


def on_store(event: evt.Event) -> Dataset:
    """C-STORE on an association that pynetdicom serves, because it is not for storing alone."""
    request = {
        "AffectedSOPClassUID": str(event.request.AffectedSOPClassUID),
        "AffectedSOPInstanceUID": str(event.request.AffectedSOPInstanceUID),
    }
    healthy_connection()
    try:
        peer = peer_of(event.assoc)
        peer.require("store")
        with event.dataset_path.open("rb") as file:
            # Behind the meta group that pynetdicom wrote: what was negotiated counts, whatever the data set says.
            (length,) = struct.unpack("<L", file.read(144)[140:])
            file.seek(length, io.SEEK_CUR)
            taken = ingest(
                file,
                source_ae_title=peer.ae_title,
                address=peer.address,
                expected_sop_class=request["AffectedSOPClassUID"],
                expected_sop_instance=request["AffectedSOPInstanceUID"],
                transfer_syntax=str(event.context.transfer_syntax),
                default_character_set=peer.writes,
                default_issuer=peer.issuer_of_patient_id,
            )
    except Exception as error:  # the boundary of the association: it is told, and it goes on
        return _refused(error, event.assoc, request["AffectedSOPInstanceUID"])
    if taken.outcome != "stored":
        log.info(f"instance-{taken.outcome}", sop_instance_uid=request["AffectedSOPInstanceUID"])
    return status_dataset(SUCCESS)

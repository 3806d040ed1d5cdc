"""Store and forward: while the old PACS is away, images are kept here durably, and brought to it later."""

import io
import mmap
import os
import socket
import time
from pathlib import Path
from typing import Any, Final

import structlog

from gateway.proxy import rewriting
from gateway.proxy.conditions import Sender
from gateway.proxy.inline import failure, readable
from gateway.proxy.journal import Journal
from gateway.proxy.messages import Command, Follower
from gateway.proxy.rules import OLD_PACS, Rules
from gateway.proxy.spool import Spool, sync_folder
from gateway.proxy.tap import Tap
from standards import association, part10, upper_layer
from standards.association import Request
from standards.errors import PermanentError, RegisError, TransientError
from standards.part10 import Provenance, write_file_meta
from standards.sop_classes import STORAGE_SOP_CLASSES, VERIFICATION
from standards.transfer_syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from standards.upper_layer import C_ECHO_RQ, C_STORE_RQ, RESPONSE

log = structlog.get_logger(__name__)

_LARGEST_PDU: Final = 1 << 20
_IDLE_SECONDS: Final = 120.0
_OUT_OF_RESOURCES: Final = 0xA700
_NOT_UNDERSTOOD: Final = 0xC000
_UNRECOGNIZED_OPERATION: Final = 0x0211
_KEPT: Final = frozenset(STORAGE_SOP_CLASSES)


class Keeping:
    """Answers devices in place of an old PACS that is away: verification and storage, nothing else."""

    def __init__(self, spool: Spool, tap: Tap, journal: Journal, secret: bytes, least_free_bytes: int) -> None:
        self._spool = spool
        self._tap = tap
        self._journal = journal
        self._secret = secret
        self._least_free = least_free_bytes

    def serve(self, device: socket.socket, request: bytes, sender: Sender, rules: Rules) -> bool:
        """Serve an association to its end; False when nothing of what it proposes can be kept."""
        try:
            asked = association.read_request(memoryview(request)[upper_layer.PDU_HEADER_BYTES :])
        except PermanentError:
            return False
        accepted = _accepted(asked)
        if not any(asked.contexts[number].abstract_syntax in _KEPT for number in accepted):
            return False
        device.sendall(association.encode_acceptance(asked, accepted, _LARGEST_PDU // 2))
        try:
            self._serve(device, asked, accepted, sender, rules)
        except (PermanentError, TransientError) as error:
            log.warning("keeping-ended", error=str(error))
            device.sendall(upper_layer.abort(2, upper_layer.INVALID_PARAMETER_VALUE))
        return True

    def _serve(
        self, device: socket.socket, asked: Request, accepted: dict[int, str], sender: Sender, rules: Rules
    ) -> None:
        follower = Follower()
        arriving: _Arriving | None = None
        while True:
            read = upper_layer.read_pdu(device, _LARGEST_PDU, time.monotonic() + _IDLE_SECONDS)
            if read is None or read[0] == upper_layer.ABORT:
                break
            kind, payload = read
            if kind == upper_layer.RELEASE_RQ:
                device.sendall(upper_layer.RELEASE_RP_PDU)
                break
            if kind != upper_layer.P_DATA_TF:
                raise PermanentError("invalid-pdu", f"a PDU of type {kind:02X} out of turn")
            for part in follower.follow(memoryview(payload)):
                if isinstance(part, Command):
                    if part.context_id not in accepted:
                        raise PermanentError("invalid-pdu", "a presentation context that was not accepted")
                    arriving = _Arriving(part, self._spool, self._least_free, sender, accepted[part.context_id])
                    if part.fields["CommandDataSetType"] != upper_layer.NO_DATASET:
                        continue
                elif arriving is not None:
                    arriving.add(part.data)
                    if not part.is_last:
                        continue
                if arriving is not None:
                    self._answer(device, asked, arriving, rules)
                    arriving = None
        if arriving is not None:
            arriving.discard()

    def _answer(self, device: socket.socket, asked: Request, arriving: "_Arriving", rules: Rules) -> None:
        fields = arriving.command.fields
        status = 0x0000
        if fields["CommandField"] == C_STORE_RQ:
            status = self._keep(arriving, rules)
        elif fields["CommandField"] != C_ECHO_RQ:
            status = _UNRECOGNIZED_OPERATION
        answer: dict[str, Any] = {
            "AffectedSOPClassUID": fields.get("AffectedSOPClassUID"),
            "CommandField": fields["CommandField"] | RESPONSE,
            "MessageIDBeingRespondedTo": fields.get("MessageID", 0),
            "CommandDataSetType": upper_layer.NO_DATASET,
            "Status": status,
            "AffectedSOPInstanceUID": fields.get("AffectedSOPInstanceUID"),
        }
        device.sendall(upper_layer.message(arriving.command.context_id, answer, asked.largest_pdu))

    def _keep(self, arriving: "_Arriving", rules: Rules) -> int:
        """Durable here, and on its way to the old PACS; the status that says so."""
        try:
            path = arriving.finish()
            self._hand_on(path, arriving, rules)
            self._tap.take(path, arriving.size)
        except OSError as error:
            log.warning("not-kept", error=error.strerror or str(error))
            arriving.discard()
            return _OUT_OF_RESOURCES
        except RegisError as error:
            log.warning("not-kept", error=str(error))
            arriving.discard()
            return _NOT_UNDERSTOOD
        self._journal.count("kept-for-old-pacs")
        return 0x0000

    def _hand_on(self, path: Path, arriving: "_Arriving", rules: Rules) -> None:
        """Raises: OSError; PermanentError for a data set that cannot be read."""
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[arriving.offset :]
        header = part10.read_header(readable(data), arriving.syntax, required=())
        verdict = rules.verdict(arriving.sender, arriving.sop_class, header.dataset)
        if verdict.drop is not None:
            return
        destination = verdict.route or OLD_PACS
        if verdict.changes:
            try:
                new = rewriting.rewritten(data, arriving.syntax, verdict.changes, self._secret)
            except RegisError as error:
                self._journal.event("passed-unchanged", error=failure(error), sop_instance_uid=arriving.sop_instance)
            else:
                self._spool.hand_changed(path.name, destination, (arriving.meta, *new.pieces))
                return
        self._spool.hand(path, destination)


def _accepted(asked: Request) -> dict[int, str]:
    """Uncompressed where it is offered: what every PACS will take later."""
    accepted: dict[int, str] = {}
    for number, context in asked.contexts.items():
        if context.abstract_syntax not in _KEPT and context.abstract_syntax != VERIFICATION:
            continue
        offered = context.transfer_syntaxes
        plain: list[str] = [one for one in (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN) if one in offered]
        if offered:
            accepted[number] = [*plain, *offered][0]
    return accepted


class _Arriving:
    """A message that comes. Of an image the file grows; what fails is remembered until it is answered."""

    def __init__(self, command: Command, spool: Spool, least_free: int, sender: Sender, syntax: str) -> None:
        self.command = command
        self.sender = sender
        self.syntax = syntax
        self.sop_class = str(command.fields.get("AffectedSOPClassUID", ""))
        self.sop_instance = str(command.fields.get("AffectedSOPInstanceUID", ""))
        self.meta = b""
        self.size = 0
        self._error: OSError | RegisError | None = None
        self._file: io.BufferedWriter | None = None
        self._path: Path | None = None
        if command.fields["CommandField"] != C_STORE_RQ:
            return
        try:
            if spool.free_bytes() < least_free:
                raise OSError(0, "too little free space is left")
            provenance = Provenance(sender.calling_ae, sender.called_ae)
            self.meta = write_file_meta(self.sop_class, self.sop_instance, syntax, provenance)
            self._path = spool.new(sender.address)
            self._file = self._path.open("xb")
            self.add(memoryview(self.meta))
        except (OSError, RegisError) as error:
            self._error = error

    @property
    def offset(self) -> int:
        """Where the data set begins in the file."""
        return len(self.meta)

    def add(self, data: memoryview) -> None:
        """More of it."""
        if self._file is None or self._error is not None:
            return
        try:
            self._file.write(data)
            self.size += len(data)
        except OSError as error:
            self._error = error

    def finish(self) -> Path:
        """The file, durable. Raises: OSError, RegisError."""
        if self._error is not None:
            raise self._error
        assert self._file is not None
        assert self._path is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        sync_folder(self._path.parent)
        return self._path

    def discard(self) -> None:
        """Remove what there is."""
        if self._file is not None:
            self._file.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

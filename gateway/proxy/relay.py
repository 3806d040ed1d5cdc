"""One association between a device and the old PACS: every byte passes, and is followed on its way.

Whatever fails in following ends the following of this association, never its passing.
"""

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from gateway.proxy.blind import Ends, both_ways
from gateway.proxy.conditions import Sender
from gateway.proxy.inline import Inline, Instance
from gateway.proxy.journal import Journal
from gateway.proxy.messages import Command, Follower, Piece, Splitter
from gateway.proxy.rules import Rules
from gateway.proxy.tap import Tap, Tapped
from standards import association, upper_layer
from standards.association import Acceptance
from standards.errors import PermanentError, RegisError
from standards.upper_layer import C_STORE_RQ, RESPONSE

log = structlog.get_logger(__name__)

_OUTCOMES: Final = {
    upper_layer.ASSOCIATE_RJ: "rejected",
    upper_layer.RELEASE_RP: "released",
    upper_layer.ABORT: "aborted",
}
"""How an association ended, by the PDU that ended it."""


@dataclass(frozen=True)
class Services:
    """What associations share."""

    rules: Callable[[], Rules]
    tap: Tap
    journal: Journal
    inline: Inline


class Relay:
    """``device`` has asked for an association (``request``: its A-ASSOCIATE-RQ), ``pacs`` is to answer."""

    def __init__(
        self, device: socket.socket, pacs: socket.socket, request: bytes, sender: Sender, services: Services
    ) -> None:
        self.device, self.pacs = device, pacs
        self.sender = sender
        self.services = services
        self.rules = services.rules()
        self.acceptance: Acceptance | None = None
        self._following = True
        self.there, self.back = Follower(), Follower()
        self.there_pdus, self.back_pdus = Splitter(), Splitter()
        self.instance: Instance | None = None
        """The image whose data set is passing."""
        self._request = request
        self._ends = Ends(device, pacs)
        self._outcome = ""
        self._tapped: dict[int, Tapped] = {}
        self._current: Tapped | None = None
        self._lock = threading.Lock()

    def run(self) -> None:
        """Pass until both ends are done. Never raises."""
        both_ways(self._ends, self._run_there, self._run_back)
        for tapped in self._take_all():
            self.services.tap.end(tapped, None)
        self.services.journal.count(f"associations:{self._outcome or 'broken-off'}")

    def noted(self, kind: int) -> None:
        """A PDU has passed, which may say how the association ends."""
        self._outcome = _OUTCOMES.get(kind, self._outcome)

    def _run_there(self) -> None:
        try:
            self.pacs.sendall(self._request)
            self.services.journal.count("bytes:old_pacs", len(self._request))
            while chunk := self._ends.receive(self.device):
                self.services.journal.count("bytes:old_pacs", len(chunk))
                self.pass_there(chunk)
            self.end_there()
        except (OSError, ValueError):
            self._ends.break_off()
        else:
            self._ends.finish(self.pacs)

    def _run_back(self) -> None:
        try:
            while chunk := self._ends.receive(self.pacs):
                self.services.journal.count("bytes:device", len(chunk))
                self.pass_back(chunk)
            self.end_back()
        except (OSError, ValueError):
            self._ends.break_off()
        else:
            self._ends.finish(self.device)

    # Passing. What is sent is followed before it goes, so that an answer always finds noted what it answers.

    def pass_there(self, chunk: bytes) -> None:
        """From the device to the old PACS."""
        self.guarded(self._follow_there, chunk)
        self.pacs.sendall(chunk)

    def pass_back(self, chunk: bytes) -> None:
        """From the old PACS to the device."""
        self.guarded(self._follow_back, chunk)
        self.device.sendall(chunk)

    def end_there(self) -> None:
        """The device sends no more."""

    def end_back(self) -> None:
        """The old PACS sends no more."""

    # Following

    def guarded(self, follow: Callable[[bytes], None], chunk: bytes) -> None:
        """Call ``follow``; whatever it stumbles over ends the following."""
        if not self.follows():
            return
        try:
            follow(chunk)
        except Exception as error:  # the boundary between what is clever and what must go on
            self.lose(error)

    def follows(self) -> bool:
        """Whether what passes is still understood."""
        return self._following

    def lose(self, error: Exception) -> None:
        """No longer follow this association; what was being copied of it is named as missing."""
        self._following = False
        self._outcome = "not-followed"
        if isinstance(error, RegisError):
            reason = str(error)
        else:
            reason = f"{type(error).__name__} in the proxy"
            log.error("following-failed", exc_info=error)
        for tapped in self._take_all():
            tapped.trouble = tapped.trouble or f"not-followed: {reason}"
            self.services.tap.end(tapped, 0)  # the old PACS may take it all the same
        self._current = None
        if self.rules.copies(self.sender):
            self.services.journal.missing(
                f"association-not-followed: {reason}",
                calling_ae_title=self.sender.calling_ae,
                called_ae_title=self.sender.called_ae,
                address=self.sender.address,
            )

    def _take_all(self) -> list[Tapped]:
        with self._lock:
            found = list(self._tapped.values())
            self._tapped.clear()
        return found

    def _follow_there(self, chunk: bytes) -> None:
        for pdu in self.there_pdus.feed(chunk):
            self.noted(pdu.kind)
            if pdu.kind == upper_layer.P_DATA_TF:
                for part in self.there.follow(pdu.payload):
                    if isinstance(part, Command):
                        self.begin(part)
                    else:
                        self.tap(part)
        if self.there_pdus.broken is not None:
            raise self.there_pdus.broken

    def begin(self, command: Command) -> None:
        """A command of the device. Raises: PermanentError("invalid-pdu")."""
        self._current = self.instance = None
        fields = command.fields
        if fields["CommandField"] != C_STORE_RQ:
            return
        syntax = self.acceptance.contexts.get(command.context_id) if self.acceptance else None
        if syntax is None:
            raise PermanentError("invalid-pdu", f"presentation context {command.context_id} was not accepted")
        sop_class = str(fields.get("AffectedSOPClassUID", ""))
        sop_instance = str(fields.get("AffectedSOPInstanceUID", ""))
        message_id = int(fields.get("MessageID", 0))
        self.services.journal.count("instances")
        self.instance = Instance(command, self.sender, sop_class, sop_instance, syntax, message_id)
        if self.rules.copies(self.sender, sop_class):
            self._current = self.services.tap.begin(self.sender, sop_class, sop_instance, syntax)
            with self._lock:
                before = self._tapped.pop(message_id, None)
                self._tapped[message_id] = self._current
            if before is not None:  # its answer never came
                self.services.tap.end(before, None)

    def tap(self, piece: Piece) -> None:
        """A piece of a data set."""
        if self._current is not None:
            self.services.tap.piece(self._current, piece.data)

    def _follow_back(self, chunk: bytes) -> None:
        for pdu in self.back_pdus.feed(chunk):
            self.follow_answer(pdu.kind, pdu.payload)
        if self.back_pdus.broken is not None:
            raise self.back_pdus.broken

    def follow_answer(self, kind: int, payload: memoryview) -> None:
        """A PDU of the old PACS."""
        self.noted(kind)
        if kind == upper_layer.ASSOCIATE_AC:
            self.acceptance = association.read_acceptance(payload)
        elif kind == upper_layer.P_DATA_TF:
            for part in self.back.follow(payload):
                if isinstance(part, Command) and part.fields["CommandField"] == C_STORE_RQ | RESPONSE:
                    self.answered(
                        int(part.fields.get("MessageIDBeingRespondedTo", 0)), int(part.fields.get("Status", 0x0110))
                    )

    def answered(self, message_id: int, status: int) -> None:
        """The answer to an image of the device."""
        with self._lock:
            tapped = self._tapped.pop(message_id, None)
        if tapped is not None:
            self.services.tap.end(tapped, status)

"""An association whose images rules may change: each is held until it is whole, then decided on.

Where anything fails the bytes that the device sent go on, in the PDUs that it made.
"""

import threading
from typing import Any, Final

import structlog

from gateway.proxy.inline import PASS, Decision, Holding, failure
from gateway.proxy.messages import Command, Pdu
from gateway.proxy.relay import Relay
from gateway.proxy.sending import data_fragments
from standards import upper_layer
from standards.dataset_editing import chunks
from standards.errors import PermanentError, RegisError
from standards.upper_layer import C_STORE_RQ, RESPONSE

log = structlog.get_logger(__name__)

_INJECT_SECONDS: Final = 30.0
_SEND_AT_ONCE: Final = 1 << 18


class HoldingRelay(Relay):
    """A relay that can hold back what the device sends."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._pdus = Holding(self.services.inline.folder)
        self._data_set = Holding(self.services.inline.folder)
        self._holds = False
        self._device_turn = threading.Condition()

    def run(self) -> None:
        """Pass until both ends are done. Never raises."""
        super().run()
        self._pdus.clear()
        self._data_set.clear()

    # There

    def pass_there(self, chunk: bytes) -> None:
        """Piece by piece, as soon as it is clear that nothing is to be changed in it."""
        if not self.follows():
            self.pacs.sendall(chunk)
            return
        for pdu in self.there_pdus.feed(chunk):
            if self.follows():
                self._pass_pdu(pdu)
            else:
                self.pacs.sendall(pdu.whole)
        if self.follows() and self.there_pdus.broken is not None:
            self.lose(self.there_pdus.broken)
        if not self.follows():
            self._let_go()
            self.pacs.sendall(self.there_pdus.take_rest())

    def end_there(self) -> None:
        """What is held goes on, whole or not."""
        self._let_go()
        self.pacs.sendall(self.there_pdus.take_rest())

    def _pass_pdu(self, pdu: Pdu) -> None:
        if pdu.kind != upper_layer.P_DATA_TF:
            self.noted(pdu.kind)
            self._let_go()
            self.pacs.sendall(pdu.whole)
            return
        try:
            complete = self._understand(pdu)
        except Exception as error:  # the boundary between what is clever and what must go on
            self.lose(error)
            self._let_go()
            self.pacs.sendall(pdu.whole)
            return
        if self._holds or self.there.in_command:
            try:
                self._pdus.add(pdu.whole)
            except OSError as error:
                self._trouble("not-held", error)
                self._holds = False
                self._let_go()
                self.pacs.sendall(pdu.whole)
                return
        else:
            self._let_go()
            self.pacs.sendall(pdu.whole)
        if complete:
            self._decide()

    def _understand(self, pdu: Pdu) -> bool:
        """Follow a P-DATA-TF; whether with it a held data set is whole. Raises: PermanentError, OSError."""
        whole = False
        for part in self.there.follow(pdu.payload):
            if isinstance(part, Command):
                if whole:
                    raise PermanentError("not-followed", "two messages in one PDU")
                self.begin(part)
                self._data_set.clear()
                instance = self.instance
                self._holds = instance is not None and self.rules.inline(self.sender, instance.sop_class)
                continue
            self.tap(part)
            if self._holds:
                self._data_set.add(part.data)
            whole = whole or part.is_last
        return whole and self._holds

    def _decide(self) -> None:
        instance = self.instance
        assert instance is not None
        self._holds = False
        try:
            decision = self.services.inline.decide(self.rules, instance, self._data_set.view())
        except Exception as error:  # fail-open: what we cannot do must not keep the image from the old PACS
            self._trouble("passed-unchanged", error)
            decision = PASS
        if decision.action == "pass":
            self._let_go()
            return
        if decision.action == "rewrite":
            self._send(decision)
        else:
            self._answer(decision.status)
        self._pdus.clear()
        self._data_set.clear()

    def _trouble(self, event: str, error: Exception) -> None:
        instance = self.instance
        if not isinstance(error, RegisError | OSError):
            log.error("proxy-failed", exc_info=error)
        self.services.journal.event(
            event,
            error=failure(error),
            calling_ae_title=self.sender.calling_ae,
            sop_instance_uid=instance.sop_instance if instance else "",
        )

    def _let_go(self) -> None:
        """What is held goes on as it came."""
        self._holds = False
        for chunk in chunks(self._pdus.view(), _SEND_AT_ONCE):
            self.pacs.sendall(chunk)
        self._pdus.clear()
        self._data_set.clear()

    def _send(self, decision: Decision) -> None:
        """A new data set under the command of the device."""
        assert self.instance is not None
        assert self.acceptance is not None
        context_id, largest = self.instance.command.context_id, self.acceptance.largest_pdu
        command = self.instance.command.raw
        self.pacs.sendall(b"".join(upper_layer.fragments(context_id, command, largest, is_command=True)))
        for wire in data_fragments(context_id, decision.pieces, largest):
            self.pacs.sendall(wire)

    def _answer(self, status: int) -> None:
        """Answer the device in place of the old PACS."""
        instance = self.instance
        assert instance is not None
        assert self.acceptance is not None
        wire = upper_layer.message(
            instance.command.context_id,
            {
                "AffectedSOPClassUID": instance.sop_class,
                "CommandField": C_STORE_RQ | RESPONSE,
                "MessageIDBeingRespondedTo": instance.message_id,
                "CommandDataSetType": upper_layer.NO_DATASET,
                "Status": status,
                "AffectedSOPInstanceUID": instance.sop_instance,
            },
        )
        self.answered(instance.message_id, status)
        with self._device_turn:
            # Between two messages of the old PACS, which may report a storage commitment at this moment.
            self._device_turn.wait_for(lambda: self.back.between_messages, _INJECT_SECONDS)
            self.device.sendall(wire)

    # Back

    def pass_back(self, chunk: bytes) -> None:
        """Whole PDUs, so that an answer of our own never falls into one."""
        if not self.follows():
            with self._device_turn:
                self.device.sendall(self.back_pdus.take_rest() + chunk)
            return
        for pdu in self.back_pdus.feed(chunk):
            with self._device_turn:
                if self.follows():
                    self.guarded(lambda _: self.follow_answer(pdu.kind, pdu.payload), b"")  # noqa: B023  called at once
                self.device.sendall(pdu.whole)
                self._device_turn.notify_all()
        if self.back_pdus.broken is not None:
            self.lose(self.back_pdus.broken)
        if not self.follows():
            self.end_back()

    def end_back(self) -> None:
        """What is no whole PDU goes on too."""
        with self._device_turn:
            self.device.sendall(self.back_pdus.take_rest())

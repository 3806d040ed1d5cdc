"""Associations that only store: once pynetdicom has negotiated, one blocking loop takes the socket over.

pynetdicom polls, copies and queues; for thousands of images that costs more than storing them. Here a fragment goes
from the socket into the memory that is written to the disk, and nothing else happens on its way but the digest.
"""

import contextlib
import socket
import struct
import time
from functools import partial
from ssl import SSLSocket
from typing import Any, Final

import structlog
from django.db import connection
from pynetdicom.association import Association

from pacs_node.config import storage_sop_classes
from pacs_node.dimse import commitment_service
from pacs_node.dimse.admission import peer_of
from pacs_node.dimse.channel import LARGEST_MESSAGE_BYTES, Channel, Context, Message
from pacs_node.dimse.connections import drain, healthy_connection
from pacs_node.dimse.store import Arriving
from pacs_node.dimse.wire import Wire
from standards import upper_layer
from standards.errors import PermanentError, TransientError
from standards.sop_classes import STORAGE_COMMITMENT_PUSH_MODEL, VERIFICATION

log = structlog.get_logger(__name__)

LARGEST_PDU_BYTES: Final = 4 << 20
"""More than any sane peer sends whatever was negotiated; a PDU can announce 4 GiB."""

_COMMITMENT: Final = frozenset({upper_layer.N_ACTION_RQ, upper_layer.N_EVENT_REPORT_RQ})
_PDU: Final = struct.Struct(">BxL")
_SUCCESS: Final = 0x0000
_CHECKED_SECONDS: Final = 1.0
"""How long a database connection that serves counts as sound: to ask costs as much as a statement."""
_UNRECOGNISED_OPERATION: Final = 0x0211


def take_over_when_only_storing(association: Association) -> None:
    """Have ``association``, not yet negotiated, served by a :class:`Receiver` if that is all it comes to."""
    dul, poll, serve = association.dul, association.dul._is_transport_event, association._run_reactor

    def is_transport_event() -> bool:
        # From the moment it is established pynetdicom must not read a byte that is the receiver's.
        if dul.state_machine.current_state == "Sta6" and _only_stores(association):
            return False
        return bool(poll())

    def run() -> None:
        if _only_stores(association):
            _run_receiver(association)
        else:
            serve()

    dul._is_transport_event = is_transport_event
    association._run_reactor = run


def _only_stores(association: Association) -> bool:
    accepted = association.accepted_contexts
    quick = {VERIFICATION, STORAGE_COMMITMENT_PUSH_MODEL} | storage_sop_classes()
    return bool(accepted) and all(str(context.abstract_syntax) in quick for context in accepted)


def _run_receiver(association: Association) -> None:
    dul = association.dul
    # pynetdicom gives the request to this thread before its own goes from Sta2 to Sta3, and accepts in Sta3 only.
    while dul.is_alive() and dul.state_machine.current_state in {"Sta2", "Sta3"}:
        time.sleep(0.001)
    dul.kill_dul()
    dul.join()
    wrapper = dul.socket
    if wrapper is None or wrapper.socket is None:
        return
    association.abort = partial(_hang_up, wrapper.socket)
    try:
        Receiver(association, wrapper.socket).run()
    finally:
        association.is_established = False
        association._kill = True
        connection.close()


def _hang_up(peer: socket.socket, *_: Any, **__: Any) -> None:
    """End the association from another thread."""
    with contextlib.suppress(OSError):
        peer.send(upper_layer.abort())
    with contextlib.suppress(OSError):
        peer.shutdown(socket.SHUT_RDWR)


class Receiver:
    """Serves C-STORE and C-ECHO on an established association until the peer is done, silent or wrong."""

    def __init__(self, association: Association, peer: socket.socket) -> None:
        self._association = association
        self._socket = peer
        self._largest_answer = association.requestor.maximum_length or 0
        self._timeout = association.network_timeout or 60.0
        self._contexts = {
            context.context_id: (str(context.abstract_syntax), str(context.transfer_syntax[0]))
            for context in association.accepted_contexts
        }
        self._command = bytearray()
        self._context_id = 0
        self._empty = 0
        self._arriving: Arriving | None = None
        self._awaiting: dict[str, Any] | None = None
        """The command of storage commitment whose data set is on its way into ``_information``."""
        self._information = bytearray()
        self._requested: Message | None = None
        self._wire = Wire(peer, self._timeout)
        self._checked_until = 0.0

    def run(self) -> None:
        """Return when the association is over; whatever ends it is logged, unless the peer released it."""
        try:
            while self._serve_pdu():
                pass
        except PermanentError as error:
            self._end(error.code, error.detail)
            self._abort(upper_layer.reason_of(error))
        except TransientError as error:
            self._end(error.code, error.detail)
            if error.code == "timed-out":
                self._abort(upper_layer.REASON_NOT_SPECIFIED)
        except OSError as error:
            self._end("connection-lost", error.strerror or str(error))
        finally:
            if self._arriving is not None:
                self._arriving.close()

    def _end(self, code: str, detail: str) -> None:
        log.warning(
            "association-ended", code=code, detail=detail, calling_ae_title=self._association.requestor.ae_title
        )

    def _abort(self, reason: int) -> None:
        with contextlib.suppress(OSError, TransientError):
            self._wire.send(upper_layer.abort(reason=reason))
        drain(self._socket)

    # Reading

    def _serve_pdu(self) -> bool:
        """Read one PDU and do what it says; False when the association is over.

        Raises: PermanentError "unrecognised-pdu", "unexpected-pdu", "invalid-pdu", "invalid-command",
            TransientError "timed-out", "connection-lost", "aborted".
        """
        self._wire.begin()
        try:
            kind, length = _PDU.unpack(self._wire.exactly(_PDU.size))
        except TransientError as error:
            between = self._arriving is None and self._awaiting is None and not self._command
            if error.code == "connection-lost" and between and not self._wire.has_begun:
                return False  # the peer hung up between messages: impolite, but nothing is lost
            raise
        upper_layer.check_header(kind, length, LARGEST_PDU_BYTES)
        item = int.from_bytes(self._wire.exactly(4), "big")
        if kind == upper_layer.RELEASE_RQ:
            self._wire.send(upper_layer.RELEASE_RP_PDU)
            self._await_close()
            return False
        if kind == upper_layer.ABORT:
            raise TransientError("aborted", "the peer aborted the association")
        left = length - 4
        while True:
            if not 2 <= item <= left:
                raise PermanentError("invalid-pdu", f"a fragment of {item} bytes where {left} are left")
            left -= item
            self._serve_fragment(item - 2)
            if not left:
                return self._requested is None or self._serve_commitment(self._requested)
            if left < upper_layer.PDV_HEADER_BYTES:
                raise PermanentError("invalid-pdu", "a fragment breaks off in its header")
            item = int.from_bytes(self._wire.exactly(4), "big")
            left -= 4

    def _read(self, count: int) -> bytearray:
        data = bytearray(count)
        self._wire.fill(memoryview(data))
        return data

    def _await_close(self) -> None:
        with contextlib.suppress(OSError):
            self._wire.await_close(min(self._timeout, 5))

    # Messages

    def _serve_fragment(self, length: int) -> None:
        context_id, control = self._wire.exactly(2)
        is_command, is_last = control & 1, control & 2
        if context_id not in self._contexts:
            raise PermanentError("invalid-pdu", f"presentation context {context_id} was not accepted")
        expects_data = self._arriving is not None or self._awaiting is not None
        if bool(is_command) == expects_data:
            raise PermanentError("invalid-pdu", "a command and a data set in each other's place")
        if (self._command or expects_data) and context_id != self._context_id:
            raise PermanentError("invalid-pdu", "a message changes its presentation context")
        self._context_id = context_id
        self._empty = upper_layer.empty_in_a_row(self._empty, length, bool(is_last))
        if self._arriving is not None:
            self._arriving.receive(length, self._wire.fill, is_last=bool(is_last))
            if is_last:
                arriving, self._arriving = self._arriving, None
                try:
                    outcome = arriving.finish()
                    self._answer(arriving.request, **outcome)
                finally:
                    arriving.close()
                if outcome["Status"] != _SUCCESS:
                    self._checked_until = 0.0
                arriving.prepare_next()
            return
        if self._awaiting is not None:
            if len(self._information) + length > LARGEST_MESSAGE_BYTES:
                raise PermanentError("invalid-pdu", "a message that is too long")
            self._information += self._read(length)
            if is_last:
                self._requested = Message(context_id, self._awaiting, bytes(self._information))
                self._awaiting = None
                self._information.clear()
            return
        if len(self._command) + length > upper_layer.LARGEST_COMMAND_BYTES:
            raise PermanentError("invalid-pdu", "a command set that is too long")
        self._command += self._read(length)
        if is_last:
            command = upper_layer.decode_command(self._command)
            self._command.clear()
            self._begin(command)

    def _begin(self, command: dict[str, Any]) -> None:
        kind = command["CommandField"]
        if "MessageID" not in command and kind != upper_layer.C_CANCEL_RQ:
            raise PermanentError("invalid-command", "MessageID is missing")
        has_data = command["CommandDataSetType"] != upper_layer.NO_DATASET
        abstract_syntax, transfer_syntax = self._contexts[self._context_id]
        if kind in _COMMITMENT and abstract_syntax == STORAGE_COMMITMENT_PUSH_MODEL:
            if has_data:
                self._awaiting = command
            else:
                self._requested = Message(self._context_id, command)
        elif has_data:
            status = None if kind == upper_layer.C_STORE_RQ else _UNRECOGNISED_OPERATION
            now = time.monotonic()
            checked = now < self._checked_until
            self._arriving = Arriving(
                self._association, command, abstract_syntax, transfer_syntax, status, checked=checked
            )
            if not checked:
                self._checked_until = now + _CHECKED_SECONDS
        elif kind == upper_layer.C_ECHO_RQ:
            self._answer(command, Status=_SUCCESS)
        elif kind != upper_layer.C_CANCEL_RQ and not kind & upper_layer.RESPONSE:
            self._answer(command, Status=_UNRECOGNISED_OPERATION)

    def _serve_commitment(self, message: Message) -> bool:
        """Serve a storage commitment message, which may report over this socket; False when the peer released it."""
        self._requested = None
        channel = Channel(
            self._socket,
            largest_pdu=self._largest_answer,
            contexts=tuple(Context(number, *syntaxes) for number, syntaxes in self._contexts.items()),
            timeout=self._timeout,
        )
        try:
            healthy_connection()
            commitment_service.serve(channel, peer_of(self._association), message)
        except TransientError as error:
            if error.code != "released":
                raise
            self._await_close()
            return False
        finally:
            if not isinstance(self._socket, SSLSocket):
                self._socket.settimeout(None)  # its own timeouts of receiving and sending hold again
        return True

    def _answer(self, request: dict[str, Any], **outcome: Any) -> None:
        answer = {
            "AffectedSOPClassUID": request.get("AffectedSOPClassUID"),
            "CommandField": request["CommandField"] | upper_layer.RESPONSE,
            "MessageIDBeingRespondedTo": request["MessageID"],
            "CommandDataSetType": upper_layer.NO_DATASET,
            "AffectedSOPInstanceUID": request.get("AffectedSOPInstanceUID"),
            **outcome,
        }
        self._wire.send(upper_layer.message(self._context_id, answer, self._largest_answer))

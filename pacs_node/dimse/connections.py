"""Sockets and database connections of associations: nothing a peer does may hold either for ever."""

import contextlib
import socket
import struct
import time
from typing import Any, Final

import structlog
from django.db import connection
from pynetdicom.transport import AssociationSocket

from pacs_node.dimse import association_requests
from standards import upper_layer
from standards.errors import PermanentError
from standards.uids import MAX_LENGTH

log = structlog.get_logger(__name__)

LARGEST_PDU_BYTES: Final = 4 << 20
"""More than any sane peer sends whatever was negotiated; a PDU can announce 4 GiB."""

_DRAIN_SECONDS: Final = 1.0
_ANY: Final = frozenset(range(upper_layer.ASSOCIATE_RQ, upper_layer.ABORT + 1))
_REQUESTING: Final = frozenset({upper_layer.ASSOCIATE_RQ, upper_layer.ABORT})
_EXPECTED: Final = {"Sta1": _REQUESTING, "Sta2": _REQUESTING, "Sta6": upper_layer.ESTABLISHED}
"""What may come in a state of PS3.8 9.2; in the short-lived others pynetdicom judges."""
_IDENTIFIED: Final = ("MessageID", "AffectedSOPClassUID")
_REQUIRED: Final = {
    upper_layer.C_STORE_RQ: (*_IDENTIFIED, "AffectedSOPInstanceUID"),
    upper_layer.C_FIND_RQ: _IDENTIFIED,
    upper_layer.C_GET_RQ: _IDENTIFIED,
    upper_layer.C_MOVE_RQ: (*_IDENTIFIED, "MoveDestination"),
    upper_layer.C_ECHO_RQ: _IDENTIFIED,
    upper_layer.C_CANCEL_RQ: ("MessageIDBeingRespondedTo",),
    upper_layer.N_ACTION_RQ: ("MessageID", "RequestedSOPClassUID", "RequestedSOPInstanceUID", "ActionTypeID"),
    upper_layer.N_EVENT_REPORT_RQ: (*_IDENTIFIED, "AffectedSOPInstanceUID", "EventTypeID"),
    upper_layer.C_STORE_RQ | upper_layer.RESPONSE: ("MessageIDBeingRespondedTo", "Status"),
    upper_layer.N_EVENT_REPORT_RQ | upper_layer.RESPONSE: ("MessageIDBeingRespondedTo", "Status"),
}
"""What peers may ask and answer where pynetdicom serves, and what it takes for granted in it. PS3.7 9.3, 10.3"""


def healthy_connection() -> None:
    """Drop this thread's database connection when it broke or is too old; Django opens the next by itself."""
    connection.close_if_unusable_or_obsolete()


def drain(peer: socket.socket) -> None:
    """Read away what still comes, for a moment: a socket closed before that takes back what it said last."""
    deadline = time.monotonic() + _DRAIN_SECONDS
    with contextlib.suppress(OSError):
        peer.shutdown(socket.SHUT_WR)
        while (left := deadline - time.monotonic()) > 0:
            peer.settimeout(left)
            if not peer.recv(1 << 16):
                return


class Messages:
    """Follows the messages of an association, and says what is out of turn in them."""

    def __init__(self, context_ids: frozenset[int]) -> None:
        self._context_ids = context_ids
        self._context_id = 0
        self._command = bytearray()
        self._has_data_set = False
        self._empty = 0

    def check(self, payload: bytes | bytearray | memoryview) -> None:
        """Judge a P-DATA-TF. Raises: PermanentError "invalid-pdu", "invalid-command"."""
        for piece in upper_layer.pdvs(payload):
            if piece.context_id not in self._context_ids:
                raise PermanentError("invalid-pdu", f"presentation context {piece.context_id} was not accepted")
            if piece.is_command == self._has_data_set:
                raise PermanentError("invalid-pdu", "a command and a data set in each other's place")
            if (self._command or self._has_data_set) and piece.context_id != self._context_id:
                raise PermanentError("invalid-pdu", "a message changes its presentation context")
            self._context_id = piece.context_id
            self._empty = upper_layer.empty_in_a_row(self._empty, len(piece.data), piece.is_last)
            if not piece.is_command:
                self._has_data_set = not piece.is_last
                continue
            self._command += piece.data
            if len(self._command) > upper_layer.LARGEST_COMMAND_BYTES:
                raise PermanentError("invalid-pdu", "a command set that is too long")
            if piece.is_last:
                self._begin(upper_layer.decode_command(self._command))
                self._command.clear()

    def _begin(self, command: dict[str, Any]) -> None:
        kind = command["CommandField"]
        if kind not in _REQUIRED:
            raise PermanentError("invalid-command", f"no operation {kind:04X} is known here")
        for keyword in _REQUIRED[kind]:
            if command.get(keyword, "") == "":
                raise PermanentError("invalid-command", f"{keyword} is missing")
            if len(str(command[keyword])) > MAX_LENGTH:
                raise PermanentError("invalid-command", f"{keyword} is longer than any UID")
        self._has_data_set = command["CommandDataSetType"] != upper_layer.NO_DATASET


class PeerSocket(AssociationSocket):
    """Reads whole PDUs in large pieces, each of bounded size and within a deadline, against peers that dribble.

    pynetdicom asks for the header of a PDU and for the rest of it in turns. What it would stumble over is not given to
    it: that peer gets an A-ABORT, the log a line, and pynetdicom the end of the connection.
    """

    def recv(self, nr_bytes: int) -> bytearray:
        """``nr_bytes`` bytes, or fewer when the peer closed. Raises OSError, which ends the association."""
        if self.socket is None:
            raise OSError("the connection is closed")
        request: bytearray | None = self.__dict__.pop("_request", None)
        if request is not None:
            return request
        data = self._read(nr_bytes)
        if len(data) == nr_bytes:
            try:
                self._check(data)
                if self.__dict__.get("_announced") == upper_layer.ASSOCIATE_RQ:
                    return self._read_request(data)
            except PermanentError as error:
                self._refuse(error)
                raise OSError(str(error)) from error
        return data

    def _read(self, nr_bytes: int) -> bytearray:
        assert self.socket is not None
        buffer = bytearray(nr_bytes)
        view = memoryview(buffer)
        limit = self.assoc.network_timeout
        deadline = time.monotonic() + limit if limit else None
        received = 0
        while received < nr_bytes:
            if deadline is not None:
                self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
            count = self.socket.recv_into(view[received:])
            if not count:
                view.release()
                del buffer[received:]
                return buffer
            received += count
        self.socket.settimeout(limit)
        return buffer

    @property
    def _state(self) -> str:
        return str(self.assoc.dul.state_machine.current_state)

    def _check(self, data: bytearray) -> None:
        kind = self.__dict__.pop("_announced", None)
        if kind is None:
            kind, length = struct.unpack(">BxL", data)
            upper_layer.check_header(kind, length, LARGEST_PDU_BYTES, _EXPECTED.get(self._state, _ANY))
            self._announced = kind
        elif kind == upper_layer.P_DATA_TF and self._state == "Sta6":
            if "_messages" not in self.__dict__:
                self._messages = Messages(frozenset(context.context_id for context in self.assoc.accepted_contexts))
            self._messages.check(data)

    def _read_request(self, header: bytearray) -> bytearray:
        """Read the rest of an A-ASSOCIATE-RQ too: what pynetdicom is given next may be shorter than what came."""
        del self._announced
        (length,) = struct.unpack(">2xL", header)
        self._request = self._read(length)
        if len(self._request) < length:
            return header
        self._request = association_requests.readable(self._request)
        return bytearray(upper_layer.pdu_header(upper_layer.ASSOCIATE_RQ, len(self._request)))

    def _refuse(self, error: PermanentError) -> None:
        log.warning(
            "association-ended",
            code=error.code,
            detail=error.detail,
            calling_ae_title=self.assoc.requestor.ae_title,
            address=self.assoc.requestor.address,
        )
        # Before an association there is no provider to name a reason (AA-1), later there is (AA-8). PS3.8 9.2.2
        source, reason = (0, 0) if self._state in ("Sta1", "Sta2") else (2, upper_layer.reason_of(error))
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.sendall(upper_layer.abort(source, reason))
            drain(self.socket)

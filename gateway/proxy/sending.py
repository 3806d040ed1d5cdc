"""C-STORE to other application entities: instances as they are, in the transfer syntax they have."""

import contextlib
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Self

from gateway.proxy.blind import dial
from gateway.proxy.messages import Command, Follower
from gateway.proxy.rules import Peer
from standards import association, upper_layer
from standards.association import Proposal
from standards.dataset_editing import Data
from standards.errors import PermanentError, TransientError
from standards.upper_layer import C_STORE_RQ, RESPONSE

_ANSWER_SECONDS: Final = 300.0
_LONGEST_FRAGMENT: Final = 1 << 20
_SEND_AT_ONCE: Final = 1 << 18
_LARGEST_PDU: Final = 1 << 20


class Outgoing:
    """An association that this proxy opens, from ``with`` to its end; one message at a time."""

    def __init__(self, peer: Peer, calling: str, contexts: Mapping[int, Proposal], timeout: float) -> None:
        self._peer = peer
        self._calling = calling
        self._contexts = contexts
        self._timeout = timeout
        self._message_id = 0
        self._socket: socket.socket | None = None
        self._accepted: dict[tuple[str, str], int] = {}
        self._largest_pdu = 0

    def __enter__(self) -> Self:
        """Raises: TransientError "connection-failed", "association-rejected", "connection-lost"; PermanentError
        "association-rejected"."""
        try:
            self._socket = dial(self._peer.host, self._peer.port, self._timeout)
        except OSError as error:
            raise TransientError(
                "connection-failed", f"{self._peer.ae_title}: {error.strerror or type(error).__name__}"
            ) from error
        try:
            self._socket.sendall(association.encode_request(self._peer.ae_title, self._calling, self._contexts))
            self._negotiated(*self._read(self._timeout))
        except (OSError, PermanentError, TransientError) as error:
            self._socket.close()
            if isinstance(error, OSError):
                raise TransientError("connection-lost", f"{self._peer.ae_title}: {error}") from error
            raise
        return self

    def _negotiated(self, kind: int, payload: bytearray) -> None:
        if kind == upper_layer.ASSOCIATE_RJ:
            transient = len(payload) > 1 and payload[1] == association.TRANSIENT
            raise (TransientError if transient else PermanentError)("association-rejected", self._peer.ae_title)
        if kind != upper_layer.ASSOCIATE_AC:
            raise TransientError("connection-lost", f"{self._peer.ae_title} answered with a PDU of type {kind:02X}")
        answer = association.read_acceptance(payload)
        self._largest_pdu = answer.largest_pdu
        self._accepted = {
            (self._contexts[number].abstract_syntax, syntax): number
            for number, syntax in answer.contexts.items()
            if number in self._contexts
        }

    def __exit__(self, *raised: object) -> None:
        assert self._socket is not None
        with contextlib.suppress(OSError, PermanentError, TransientError):
            if raised[0] is None:
                self._socket.sendall(upper_layer.RELEASE_RQ_PDU)
                self._read(5.0)
            else:
                self._socket.sendall(upper_layer.abort(0))
        self._socket.close()

    def store(self, sop_class: str, sop_instance: str, syntax: str, pieces: Sequence[Data]) -> int:
        """Send an instance; the status that answers it.

        Raises: PermanentError("syntax-refused"), TransientError("connection-lost").
        """
        assert self._socket is not None
        context_id = self._accepted.get((sop_class, syntax))
        if context_id is None:
            raise PermanentError("syntax-refused", f"{self._peer.ae_title} does not take {sop_class} as {syntax}")
        self._message_id = self._message_id % 0xFFFF + 1
        command = {
            "AffectedSOPClassUID": sop_class,
            "CommandField": C_STORE_RQ,
            "MessageID": self._message_id,
            "Priority": 0,
            "CommandDataSetType": upper_layer.DATASET_FOLLOWS,
            "AffectedSOPInstanceUID": sop_instance,
        }
        try:
            self._socket.settimeout(self._timeout)
            self._socket.sendall(upper_layer.message(context_id, command, self._largest_pdu))
            for wire in data_fragments(context_id, pieces, self._largest_pdu):
                self._socket.sendall(wire)
            return self._status()
        except OSError as error:
            raise TransientError("connection-lost", f"{self._peer.ae_title}: {error}") from error

    def _status(self) -> int:
        follower = Follower()
        while True:
            kind, payload = self._read(_ANSWER_SECONDS)
            if kind != upper_layer.P_DATA_TF:
                raise TransientError("connection-lost", f"{self._peer.ae_title} ended the association")
            for part in follower.follow(memoryview(payload)):
                if isinstance(part, Command) and part.fields["CommandField"] == C_STORE_RQ | RESPONSE:
                    return _status_of(part.fields)

    def _read(self, seconds: float) -> tuple[int, bytearray]:
        assert self._socket is not None
        found = upper_layer.read_pdu(self._socket, _LARGEST_PDU, time.monotonic() + seconds)
        if found is None:
            raise TransientError("connection-lost", f"{self._peer.ae_title} closed the connection")
        return found


def _status_of(fields: Mapping[str, Any]) -> int:
    return int(fields.get("Status", 0x0110))


def data_fragments(context_id: int, pieces: Iterable[Data], largest_pdu: int) -> Iterator[bytes]:
    """A data set in pieces as P-DATA-TFs of one fragment each, about a quarter of a megabyte at a time."""
    step = upper_layer.fragment_bytes(largest_pdu, _LONGEST_FRAGMENT)
    views = [memoryview(piece) for piece in pieces]
    total, sent = sum(map(len, views)), 0
    wire, waiting = bytearray(), bytearray()
    for whole in views:
        view = whole
        while view:
            taken = view[: step - len(waiting)]
            waiting += taken
            view = view[len(taken) :]
            sent += len(taken)
            if len(waiting) == step or sent == total:
                wire += upper_layer.pdv_header(context_id, len(waiting), is_command=False, is_last=sent == total)
                wire += waiting
                waiting.clear()
            if len(wire) >= _SEND_AT_ONCE or sent == total:
                yield bytes(wire)
                wire.clear()

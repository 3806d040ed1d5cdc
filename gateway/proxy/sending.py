"""C-STORE to other application entities: instances as they are, decoded only where the peer refuses their encoding."""

import contextlib
import itertools
import mmap
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, Self, cast

from gateway.proxy.blind import dial
from gateway.proxy.messages import Command, Follower
from gateway.proxy.rules import Peer
from standards import association, upper_layer
from standards.association import Proposal, proposals
from standards.dataset_editing import Data, chunks
from standards.errors import PermanentError, TransientError
from standards.fallback_encoding import FALLBACKS, transcoded
from standards.part10 import write_file_meta
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

    def deliver(
        self, sop_class: str, sop_instance: str, syntax: str, pieces: Sequence[Data], folder: Path
    ) -> tuple[int, str]:
        """Send an instance as it is, or else uncompressed by way of a file in ``folder``: the status that answers it,
        and in words what was done to it.

        Raises: PermanentError "syntax-refused", "cannot-decode", "cannot-transcode"; TransientError("connection-lost");
        OSError.
        """
        if (sop_class, syntax) in self._accepted:
            return self.store(sop_class, sop_instance, syntax, pieces), ""
        target = next((one for one in FALLBACKS if (sop_class, one) in self._accepted), None)
        if target is None:
            raise PermanentError(
                "syntax-refused", f"{self._peer.ae_title} takes {sop_class} neither as {syntax} nor uncompressed"
            )
        with tempfile.TemporaryFile(dir=folder) as whole:
            whole.write(write_file_meta(sop_class, sop_instance, syntax))
            for chunk in itertools.chain.from_iterable(chunks(piece, _SEND_AT_ONCE) for piece in pieces):
                whole.write(chunk)
            with transcoded(cast(BinaryIO, whole), target, folder=folder) as (plain, start, done):
                plain.flush()
                data = memoryview(mmap.mmap(plain.fileno(), 0, access=mmap.ACCESS_READ))
                return self.store(sop_class, sop_instance, target, (data[start:],)), done

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


def with_fallbacks(wanted: Sequence[tuple[str, str]]) -> dict[int, Proposal]:
    """Contexts for each (SOP class, syntax) and for its uncompressed forms, in case the peer refuses that."""
    return proposals([*wanted, *((sop_class, syntax) for sop_class, _ in wanted for syntax in FALLBACKS)])


def data_fragments(context_id: int, pieces: Iterable[Data], largest_pdu: int) -> Iterator[bytes]:
    """A data set in pieces as P-DATA-TFs of one fragment each, about a quarter of a megabyte at a time."""
    step = upper_layer.fragment_bytes(largest_pdu, _LONGEST_FRAGMENT)
    whole = list(pieces)
    total, sent = sum(map(len, whole)), 0
    wire, waiting = bytearray(), bytearray()
    for chunk in itertools.chain.from_iterable(chunks(piece, _SEND_AT_ONCE) for piece in whole):
        view = chunk
        while view:
            taken = view[: step - len(waiting)]
            waiting += taken
            view = view[len(taken) :]
            sent += len(taken)
            if len(waiting) == step or sent == total:
                waiting += bytes(len(waiting) % 2)  # fragments have an even length
                wire += upper_layer.pdv_header(context_id, len(waiting), is_command=False, is_last=sent == total)
                wire += waiting
                waiting.clear()
            if len(wire) >= _SEND_AT_ONCE or sent == total:
                yield bytes(wire)
                wire.clear()

"""An established association as one blocking socket: whole messages in, whole messages out, no thread of its own."""

import contextlib
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from pynetdicom.association import Association

from standards import upper_layer
from standards.errors import PermanentError, TransientError

LARGEST_PDU_BYTES: Final = 4 << 20
LARGEST_MESSAGE_BYTES: Final = 64 << 20
"""Identifiers, and lists of instances of a storage commitment; never images."""


@dataclass(frozen=True, slots=True)
class Context:
    """An accepted presentation context. ``as_scu``: this node may send requests in it; ``as_scp``: the peer may."""

    context_id: int
    abstract_syntax: str
    transfer_syntax: str
    as_scu: bool = True
    as_scp: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """A DIMSE message: its command set by keywords, its data set as it came (None: none)."""

    context_id: int
    command: dict[str, Any]
    data: bytes | None = None

    @property
    def field(self) -> int:
        """What is asked or answered."""
        return int(self.command["CommandField"])


BeginData = Callable[[int, dict[str, Any]], Callable[[memoryview], None] | None]


class Channel:
    """Messages over a socket. Whatever goes wrong is a TransientError whose code says how the association ended:
    "connection-lost", "aborted", "released", "timed-out", "protocol-error"; the socket is of no more use then."""

    def __init__(self, peer: socket.socket, *, largest_pdu: int, contexts: tuple[Context, ...], timeout: float) -> None:
        self.socket = peer
        self.largest_pdu = largest_pdu
        """The longest PDU that the peer takes; 0: any."""
        self.contexts = contexts
        self.timeout = timeout
        self.ended = ""
        """Why the association is over, "" while it is not."""
        self._message_id = 0
        self._cancelled: set[int] = set()
        self._buffer = bytearray()

    def buffer(self, length: int) -> memoryview:
        """Memory to send from, the same at each call."""
        if len(self._buffer) != length:
            self._buffer = bytearray(length)
        return memoryview(self._buffer)

    def limit_pdu(self, largest: int) -> None:
        """Never send longer PDUs than this to a peer that promises more than it can take; 0: as it said."""
        if largest:
            self.largest_pdu = min(self.largest_pdu or largest, largest)

    def next_message_id(self) -> int:
        """1 to 65535, again and again."""
        self._message_id = self._message_id % 0xFFFF + 1
        return self._message_id

    def accepts(self, abstract_syntax: str, transfer_syntax: str) -> Context | None:
        """The context in which this node can send such an object, None where the peer took none."""
        for context in self.contexts:
            if (
                context.as_scu
                and context.abstract_syntax == abstract_syntax
                and context.transfer_syntax == transfer_syntax
            ):
                return context
        return None

    def send(self, context_id: int, command: Mapping[str, Any], data: bytes | None = None) -> None:
        """Send one message; ``CommandDataSetType`` is set by whether there is ``data``."""
        kind = upper_layer.NO_DATASET if data is None else upper_layer.DATASET_FOLLOWS
        wire = upper_layer.message(context_id, {**command, "CommandDataSetType": kind}, self.largest_pdu)
        if data is not None:
            wire += b"".join(upper_layer.fragments(context_id, data, self.largest_pdu, is_command=False))
        self.send_bytes([wire])

    def send_bytes(self, pieces: list[Any]) -> None:
        """Send these buffers one after the other, in as few system calls as possible."""
        try:
            self.socket.settimeout(self.timeout)
            if isinstance(self.socket, ssl.SSLSocket):
                self.socket.sendall(b"".join(pieces))
                return
            views = [memoryview(piece) for piece in pieces]
            first = 0
            while first < len(views):
                sent = self.socket.sendmsg(views[first : first + 512])
                while first < len(views) and sent >= len(views[first]):
                    sent -= len(views[first])
                    first += 1
                if sent:
                    views[first] = views[first][sent:]
        except TimeoutError as error:
            raise self._over("timed-out", "the peer takes nothing in") from error
        except OSError as error:
            raise self._over("connection-lost", error.strerror or str(error)) from error

    @property
    def can_send_files(self) -> bool:
        """Whether the kernel can copy from a file into this socket."""
        return not isinstance(self.socket, ssl.SSLSocket)

    def send_from_file(self, before: bytes, descriptor: int, offset: int, length: int) -> None:
        """Send ``before`` and then ``length`` bytes of a file from ``offset`` on; no buffer of ours ever holds them."""
        try:
            self.socket.settimeout(self.timeout)
            while before:
                before = before[self.socket.send(before, socket.MSG_MORE) :]
            while length:
                try:
                    sent = os.sendfile(self.socket.fileno(), descriptor, offset, length)
                except BlockingIOError:
                    if not select.select([], [self.socket], [], self.timeout)[1]:
                        raise TimeoutError from None
                    continue
                if not sent:
                    self.abort()
                    raise self._over("storage-damaged", "the file became shorter while it was sent")
                offset, length = offset + sent, length - sent
        except TimeoutError as error:
            raise self._over("timed-out", "the peer takes nothing in") from error
        except ValueError as error:
            raise self._over("connection-lost", "the socket is closed") from error
        except OSError as error:
            raise self._over("connection-lost", error.strerror or str(error)) from error

    def waiting(self, seconds: float = 0.0) -> bool:
        """Whether something of the peer can be read (or its end noticed) within ``seconds``."""
        if isinstance(self.socket, ssl.SSLSocket) and self.socket.pending():
            return True
        try:
            return bool(select.select([self.socket], [], [], seconds)[0])
        except (OSError, ValueError) as error:
            raise self._over("connection-lost", "the socket is closed") from error

    def is_cancelled(self, message_id: int) -> bool:
        """Whether the peer has sent a C-CANCEL for its request ``message_id``; does not wait."""
        while message_id not in self._cancelled and self.waiting():
            message = self._receive(time.monotonic() + self.timeout)
            if not self._is_cancel(message):
                self.abort(upper_layer.UNEXPECTED_PDU)
                raise self._over("protocol-error", f"message {message.field:04X} while a request is outstanding")
        return message_id in self._cancelled

    def _is_cancel(self, message: Message) -> bool:
        if message.field != upper_layer.C_CANCEL_RQ:
            return False
        self._cancelled.add(int(message.command.get("MessageIDBeingRespondedTo", -1)))
        return True

    def receive(self, timeout: float | None = None) -> Message:
        """The next message that is no C-CANCEL, within ``timeout`` seconds (default: those of the association)."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            message = self._receive(deadline)
            if not self._is_cancel(message):
                return message

    def receive_streaming(self, begin: BeginData, timeout: float) -> Message:
        """The next message, its data set piece by piece: ``begin(context id, command)`` gives what takes the pieces, or
        None where the data set is short and to be kept. ``timeout``: for each PDU."""
        while True:
            message = self._receive(time.monotonic() + timeout, begin, timeout)
            if not self._is_cancel(message):
                return message

    def _receive(self, deadline: float, begin: BeginData | None = None, each: float = 0.0) -> Message:
        parts: dict[bool, bytearray] = {True: bytearray(), False: bytearray()}
        command: dict[str, Any] | None = None
        context_id = empty = 0
        take: Callable[[memoryview], None] | None = None
        try:
            while True:
                if each:
                    deadline = time.monotonic() + each
                for piece in upper_layer.pdvs(self._p_data(deadline)):
                    if piece.is_command is (command is not None) or (context_id and piece.context_id != context_id):
                        raise PermanentError("invalid-pdu", "a fragment out of turn")
                    context_id = piece.context_id
                    empty = upper_layer.empty_in_a_row(empty, len(piece.data), piece.is_last)
                    if take is not None:
                        take(piece.data)
                    else:
                        parts[piece.is_command] += piece.data
                    if len(parts[piece.is_command]) > LARGEST_MESSAGE_BYTES:
                        raise PermanentError("invalid-pdu", "a message that is too long")
                    if not piece.is_last:
                        continue
                    if command is not None:
                        return Message(context_id, command, bytes(parts[False]))
                    command = upper_layer.decode_command(parts[True])
                    if command["CommandDataSetType"] == upper_layer.NO_DATASET:
                        return Message(context_id, command)
                    take = begin(context_id, command) if begin is not None else None
        except PermanentError as error:
            self.abort(upper_layer.INVALID_PARAMETER_VALUE)
            raise self._over("protocol-error", str(error)) from error

    def _p_data(self, deadline: float) -> bytearray:
        try:
            read = upper_layer.read_pdu(self.socket, LARGEST_PDU_BYTES, deadline)
        except TimeoutError as error:
            raise self._over("timed-out", "the peer did not answer in time") from error
        except TransientError as error:
            raise self._over(error.code, error.detail) from error
        except OSError as error:
            raise self._over("connection-lost", error.strerror or str(error)) from error
        if read is None:
            raise self._over("connection-lost", "the peer closed the connection")
        kind, payload = read
        if kind == upper_layer.ABORT:
            raise self._over("aborted", "the peer aborted the association")
        if kind == upper_layer.RELEASE_RQ:
            self.send_bytes([upper_layer.RELEASE_RP_PDU])
            raise self._over("released", "the peer released the association")
        if kind != upper_layer.P_DATA_TF:
            self.abort(upper_layer.UNEXPECTED_PDU)
            raise self._over("protocol-error", f"a PDU of type {kind:02X} out of turn")
        return payload

    def _over(self, code: str, detail: str) -> TransientError:
        self.ended = self.ended or code
        return TransientError(code, detail)

    def release(self) -> None:
        """Ask for the release, wait a little for the answer, close. Never raises."""
        with contextlib.suppress(TransientError, PermanentError, OSError):
            self.send_bytes([upper_layer.RELEASE_RQ_PDU])
            upper_layer.read_pdu(self.socket, LARGEST_PDU_BYTES, time.monotonic() + min(self.timeout, 5))
        self.close()

    def abort(self, reason: int = upper_layer.REASON_NOT_SPECIFIED, source: int = 2) -> None:
        """Say that it is over. Never raises; the socket stays to be closed."""
        self.ended = self.ended or "aborted"
        with contextlib.suppress(OSError):
            self.socket.settimeout(1)
            self.socket.sendall(upper_layer.abort(source, reason))

    def close(self) -> None:
        """Close the socket. Never raises."""
        self.ended = self.ended or "closed"
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


@contextmanager
def borrowed(association: Association) -> Iterator[Channel]:
    """The socket of an association that pynetdicom serves, for as long as one request takes.

    pynetdicom's reader keeps its hands off meanwhile, and learns afterwards if the association is over.
    """
    dul = association.dul
    wrapper = dul.socket
    if wrapper is None or wrapper.socket is None:
        raise TransientError("connection-lost", "the connection is closed")
    channel = Channel(
        wrapper.socket,
        largest_pdu=association.requestor.maximum_length or 0,
        contexts=tuple(
            Context(
                context.context_id or 0,
                str(context.abstract_syntax),
                str(context.transfer_syntax[0]),
                bool(context.as_scu),
                bool(context.as_scp),
            )
            for context in association.accepted_contexts
        ),
        timeout=association.network_timeout or 60.0,
    )
    channel._cancelled.update(association.dimse.cancel_req)
    turn = _turn(association)
    with turn:
        try:
            yield channel
        finally:
            if wrapper.socket is not None:  # another thread may have ended the association
                wrapper.socket.settimeout(association.network_timeout)
            dul._idle_timer.restart()
            if channel.ended:
                dul.event_queue.put("Evt17")  # transport connection closed


def _turn(association: Association) -> threading.Lock:
    """The lock that pynetdicom's reader of this association must hold to read."""
    known: threading.Lock | None = getattr(association, "regis_turn", None)
    if known is not None:
        return known
    turn = threading.Lock()
    plain = association.dul._is_transport_event

    def is_transport_event() -> bool:
        if not turn.acquire(blocking=False):
            return False
        try:
            return bool(plain())
        finally:
            turn.release()

    association.regis_turn = turn
    association.dul._is_transport_event = is_transport_event
    return turn

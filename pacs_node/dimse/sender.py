"""C-STORE as SCU: stored files go out byte for byte in flat memory; transcoded only where the peer refuses them."""

import contextlib
import io
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Final

import structlog

from pacs_node.config import config
from pacs_node.dimse.channel import Channel, Context
from pacs_node.storage.stores import storage
from standards import upper_layer
from standards.errors import PermanentError, RegisError, TransientError
from standards.fallback_encoding import FALLBACKS, dataset_extent, transcoded

log = structlog.get_logger(__name__)

_BUFFER_BYTES: Final = 1 << 20
_WORTH_A_CALL_BYTES: Final = 32 << 10
_READ_AHEAD_BYTES: Final = 8 << 20
_LOOK_UP_EVERY_BYTES: Final = 16 << 20
_ANSWER_SECONDS: Final = 300.0
_LOOK_UP_SECONDS: Final = 0.5
_WARNINGS: Final = range(0xB000, 0xC000)
_OTHER_WARNINGS: Final = frozenset({0x0001, 0x0107, 0x0116})
_transcoding = threading.BoundedSemaphore(2)


@dataclass(frozen=True, slots=True)
class Stored:
    """What the index knows of an instance that is to be sent."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    path: str
    is_released: bool = False


@dataclass(frozen=True, slots=True)
class Sent:
    """How a sub-operation ended: the peer's status, what to say of it, and what was done to the object on the way."""

    status: int
    comment: str = ""
    conversion: str = ""

    @property
    def outcome(self) -> str:
        """``completed``, ``warning`` or ``failed``."""
        if self.status == 0:
            return "completed"
        return "warning" if self.status in _WARNINGS or self.status in _OTHER_WARNINGS else "failed"


class Cancelled(Exception):
    """The one who asked wants no more; the association that was sending is aborted, as an object cannot be unsent."""


class Opened:
    """An instance whose file is open, and on its way into the page cache, before its turn to be sent comes."""

    def __init__(self, stored: Stored) -> None:
        self.stored = stored
        self.file: BinaryIO | None = None
        self.refusal: Sent | None = None
        if stored.is_released:
            self.refusal = Sent(_GONE, "instance-gone: this node has let go of the file")
            return
        try:
            self.file = storage().open(stored.path)
        except RegisError as error:
            log.error("instance-gone", sop_instance_uid=stored.sop_instance_uid, detail=error.detail)
            self.refusal = Sent(_GONE, str(error))
            return
        with contextlib.suppress(OSError):  # a stream of another store than files has no descriptor
            os.posix_fadvise(self.file.fileno(), 0, _READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()


@dataclass(frozen=True, slots=True)
class Manner:
    """How sub-operations are sent: ``originator`` is AE title and message id of the C-MOVE that asked, ``is_cancelled``
    is asked within large objects, ``meanwhile`` is called while the peer makes up its answer."""

    originator: tuple[str, int] | None = None
    is_cancelled: Callable[[], bool] | None = None
    meanwhile: Callable[[], None] | None = None


def send_opened(channel: Channel, opened: Opened, manner: Manner) -> Sent:
    """Send one instance, wait for the answer, close the file. What cannot be sent is a ``Sent`` that failed.

    Raises: TransientError when the association is over (``Channel``), Cancelled.
    """
    stored, file = opened.stored, opened.file
    if file is None or opened.refusal is not None:
        return opened.refusal or Sent(_GONE)
    with file:
        try:
            start, syntax = dataset_extent(file)
            context = channel.accepts(stored.sop_class_uid, syntax)
            if context is not None:
                return _send(channel, context, stored, file, start, manner)
            return _send_transcoded(channel, stored, file, syntax, manner)
        except PermanentError as error:
            log.error(
                "instance-not-sent", code=error.code, detail=error.detail, sop_instance_uid=stored.sop_instance_uid
            )
            return Sent(_NOT_POSSIBLE, str(error))


_GONE: Final = 0x0112
_NOT_POSSIBLE: Final = 0x0110


def _send_transcoded(
    channel: Channel,
    stored: Stored,
    file: BinaryIO,
    syntax: str,
    manner: Manner,
) -> Sent:
    contexts = [channel.accepts(stored.sop_class_uid, fallback) for fallback in FALLBACKS]
    context = next((context for context in contexts if context is not None), None)
    if context is None:
        raise PermanentError("syntax-refused", f"the peer takes it neither as {syntax} nor uncompressed")
    with _transcoding, transcoded(file, context.transfer_syntax, folder=config().data_dir) as (plain, start, done):
        sent = _send(channel, context, stored, plain, start, manner)
    log.info("instance-transcoded", sop_instance_uid=stored.sop_instance_uid, conversion=done, status=sent.status)
    return Sent(sent.status, sent.comment, done)


def _send(
    channel: Channel,
    context: Context,
    stored: Stored,
    file: BinaryIO,
    start: int,
    manner: Manner,
) -> Sent:
    message_id = channel.next_message_id()
    command = {
        "CommandField": upper_layer.C_STORE_RQ,
        "MessageID": message_id,
        "Priority": 0,
        "AffectedSOPClassUID": stored.sop_class_uid,
        "AffectedSOPInstanceUID": stored.sop_instance_uid,
        "CommandDataSetType": upper_layer.DATASET_FOLLOWS,
    }
    if manner.originator is not None:
        command["MoveOriginatorApplicationEntityTitle"], command["MoveOriginatorMessageID"] = manner.originator
    request = upper_layer.message(context.context_id, command, channel.largest_pdu)
    _send_dataset(channel, context.context_id, request, file, start, manner.is_cancelled)
    if manner.meanwhile is not None:
        manner.meanwhile()
    _wait_for_answer(channel, manner)
    answer = channel.receive()
    if (
        answer.field != upper_layer.C_STORE_RQ | upper_layer.RESPONSE
        or answer.command.get("MessageIDBeingRespondedTo") != message_id
    ):
        channel.abort(upper_layer.UNEXPECTED_PDU)
        raise TransientError("protocol-error", "the peer answered something else than what it was asked")
    return Sent(int(answer.command.get("Status", _NOT_POSSIBLE)), str(answer.command.get("ErrorComment", "")))


def _wait_for_answer(channel: Channel, manner: Manner) -> None:
    """Peers answer once an object is on their disk, which may take long for a large one; cancelling need not wait."""
    deadline = time.monotonic() + max(channel.timeout, _ANSWER_SECONDS)
    while not channel.waiting(_LOOK_UP_SECONDS) and time.monotonic() < deadline:
        if manner.is_cancelled is not None:
            _stop_if_cancelled(channel, manner.is_cancelled)


def _send_dataset(
    channel: Channel,
    context_id: int,
    request: bytes,
    file: BinaryIO,
    start: int,
    is_cancelled: Callable[[], bool] | None,
) -> None:
    """The command, and the file from ``start`` on. Fragments have an even length, so an odd data set, as deflated ones
    in files may be, is padded by a zero. Source: PS3.5 A.5, PS3.8 9.3.1"""
    end = file.seek(0, io.SEEK_END)
    step = upper_layer.fragment_bytes(channel.largest_pdu, _BUFFER_BYTES)
    if channel.can_send_files and step >= _WORTH_A_CALL_BYTES and end > start:
        _send_file(channel, context_id, request, file.fileno(), (start, end, step), is_cancelled)
    else:
        _send_copied(channel, context_id, request, file, (start, end, step), is_cancelled)


def _send_file(
    channel: Channel,
    context_id: int,
    request: bytes,
    descriptor: int,
    extent: tuple[int, int, int],
    is_cancelled: Callable[[], bool] | None,
) -> None:
    """Fragments of ``step`` bytes from ``start`` to ``end`` straight from the page cache into the socket."""
    start, end, step = extent
    before, looked = request, start
    for position in range(start, end, step):
        length = min(step, end - position)
        is_last = position + length == end
        head = upper_layer.pdv_header(context_id, length + length % 2, is_command=False, is_last=is_last)
        channel.send_from_file(before + head, descriptor, position, length)
        if length % 2:
            channel.send_bytes([b"\0"])
        before = b""
        if is_cancelled is not None and position - looked >= _LOOK_UP_EVERY_BYTES:
            looked = position
            _stop_if_cancelled(channel, is_cancelled)


def _stop_if_cancelled(channel: Channel, is_cancelled: Callable[[], bool]) -> None:
    if is_cancelled():
        channel.abort(source=0)
        raise Cancelled


def _send_copied(
    channel: Channel,
    context_id: int,
    request: bytes,
    file: BinaryIO,
    extent: tuple[int, int, int],
    is_cancelled: Callable[[], bool] | None,
) -> None:
    """The same through a buffer, a megabyte a call: for TLS, for what is no file, and for small fragments."""
    start, end, step = extent
    file.seek(start)
    view = channel.buffer(_BUFFER_BYTES - _BUFFER_BYTES % step)
    position = looked = start
    pieces: list[bytes | memoryview] = [request]
    while True:
        wanted = min(len(view), end - position)
        if file.readinto(view[:wanted]) != wanted:  # type: ignore[attr-defined]
            channel.abort()
            raise TransientError("storage-damaged", "the file became shorter while it was sent")
        for at in range(0, max(wanted, 1), step):
            piece = view[at : min(at + step, wanted)]
            is_last = position + at + len(piece) == end
            padding = bytes(len(piece) % 2)
            length = len(piece) + len(padding)
            pieces += [upper_layer.pdv_header(context_id, length, is_command=False, is_last=is_last), piece, padding]
        channel.send_bytes(pieces)
        pieces = []
        position += wanted
        if position >= end:
            return
        if is_cancelled is not None and position - looked >= _LOOK_UP_EVERY_BYTES:
            looked = position
            _stop_if_cancelled(channel, is_cancelled)

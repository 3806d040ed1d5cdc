"""C-FIND, C-MOVE and C-GET as SCU, over associations that this node opens.

Source: PS3.4 C.4.1, C.4.2, C.4.3
"""

from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.dsutils import encode

from pacs_node.dimse.channel import Channel, Context, Message
from standards import upper_layer
from standards.errors import PermanentError, TransientError
from standards.part10 import read_identifier
from standards.transfer_syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN

VERIFICATION: Final = "1.2.840.10008.1.1"
STUDY_ROOT_FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_ROOT_MOVE: Final = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_ROOT_GET: Final = "1.2.840.10008.5.1.4.1.2.2.3"
PLAIN: Final = (IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN)

OUT_OF_RESOURCES: Final = 0xA700
CANCELLED: Final = 0xFE00
MOVE_DESTINATION_UNKNOWN: Final = 0xA801
SUCCESS: Final = 0x0000
_PENDING: Final = frozenset({0xFF00, 0xFF01})
_REFUSED: Final = frozenset({0xA900, 0x0122, 0x0124, 0x0211})
"""Asking the same again gets the same answer. Any other failure may be of this moment, or of one image."""
_WITH_FAILURES: Final = 0xB000


def context_of(channel: Channel, sop_class: str) -> Context:
    """The context that was accepted for ``sop_class``. Raises: PermanentError("query-refused")."""
    for context in channel.contexts:
        if context.abstract_syntax == sop_class and context.as_scu:
            return context
    raise PermanentError("query-refused", f"the PACS does not accept {UID(sop_class).name}")


def _request(channel: Channel, context: Context, field: int, identifier: Dataset, **more: Any) -> int:
    syntax = UID(context.transfer_syntax)
    encoded = encode(identifier, syntax.is_implicit_VR, syntax.is_little_endian)
    if encoded is None:
        raise PermanentError("query-refused", "the keys cannot be encoded")
    message_id = channel.next_message_id()
    command = {
        "CommandField": field,
        "MessageID": message_id,
        "AffectedSOPClassUID": context.abstract_syntax,
        "Priority": 0,
        **more,
    }
    channel.send(context.context_id, command, encoded)
    return message_id


def _status_of(channel: Channel, message: Message, field: int, message_id: int) -> int:
    if (
        message.field != field | upper_layer.RESPONSE
        or message.command.get("MessageIDBeingRespondedTo") != message_id
        or not isinstance(message.command.get("Status"), int)
    ):
        channel.abort(upper_layer.UNEXPECTED_PDU)
        raise TransientError("protocol-error", "the PACS answered something else than what it was asked")
    return int(message.command["Status"])


def find(
    channel: Channel, identifier: Dataset, *, default_character_set: str, timeout: float, most: int
) -> Iterator[Dataset]:
    """The answers of a C-FIND. Answers that cannot be read are left out; after ``most`` of them it is cancelled, and
    that or what the PACS itself leaves unsaid ends in PermanentError("too-many-answers").

    Raises: TransientError as ``Channel``, PermanentError "query-refused", "too-many-answers".
    """
    context = context_of(channel, STUDY_ROOT_FIND)
    message_id = _request(channel, context, upper_layer.C_FIND_RQ, identifier)
    count, cancelled = 0, False
    while True:
        message = channel.receive(timeout)
        status = _status_of(channel, message, upper_layer.C_FIND_RQ, message_id)
        if status not in _PENDING:
            break
        count += 1
        if cancelled:
            continue
        if message.data is not None:
            try:
                answer = read_identifier(message.data, context.transfer_syntax, default_charset=default_character_set)
            except PermanentError:
                answer = Dataset()  # counted by who asked: an answer without a name
            yield answer
        if count >= most:
            cancelled = True
            channel.send(
                context.context_id,
                {"CommandField": upper_layer.C_CANCEL_RQ, "MessageIDBeingRespondedTo": message_id},
            )
    if cancelled or status in (CANCELLED, OUT_OF_RESOURCES):
        raise PermanentError("too-many-answers", f"{count} came" + ("" if cancelled else f", then {status:04X}"))
    if status != SUCCESS:
        raise PermanentError("query-refused", _complaint(message, status))


def _complaint(message: Message, status: int) -> str:
    comment = str(message.command.get("ErrorComment") or "").strip()
    return f"the PACS answered {status:04X}" + (f": {comment}" if comment else "")


def echo(channel: Channel, *, timeout: float) -> None:
    """C-ECHO. Raises: TransientError as ``Channel``, "echo-refused"; PermanentError "query-refused".

    Source: PS3.7 9.1.5
    """
    context = context_of(channel, VERIFICATION)
    message_id = channel.next_message_id()
    channel.send(
        context.context_id,
        {"CommandField": upper_layer.C_ECHO_RQ, "MessageID": message_id, "AffectedSOPClassUID": VERIFICATION},
    )
    message = channel.receive(timeout)
    status = _status_of(channel, message, upper_layer.C_ECHO_RQ, message_id)
    if status != SUCCESS:
        raise TransientError("echo-refused", _complaint(message, status))


class Progress:
    """The counts of a retrieve as its PACS tells them."""

    def __init__(self) -> None:
        self.completed = self.failed = 0
        self.comment = ""

    def take(self, message: Message) -> None:
        """The counts of one response."""
        said = message.command
        done = [said.get("NumberOfCompletedSuboperations"), said.get("NumberOfWarningSuboperations")]
        if any(isinstance(count, int) for count in done):
            self.completed = sum(count for count in done if isinstance(count, int))
        if isinstance(count := said.get("NumberOfFailedSuboperations"), int):
            self.failed = count

    def finish(self, message: Message, status: int) -> None:
        """Raises: PermanentError "move-destination-unknown", "retrieve-refused"; TransientError "retrieve-failed"."""
        self.take(message)
        if status == SUCCESS:
            return
        self.comment = _complaint(message, status)
        if status == MOVE_DESTINATION_UNKNOWN:
            raise PermanentError("move-destination-unknown", self.comment)
        if status == _WITH_FAILURES or self.completed:
            return
        if status in _REFUSED and not self.failed:
            raise PermanentError("retrieve-refused", self.comment)
        raise TransientError("retrieve-failed", self.comment)


def move(channel: Channel, identifier: Dataset, destination: str, *, timeout: float) -> Progress:
    """Have what ``identifier`` names sent to the AE ``destination``. Raises: as ``Channel`` and ``Progress.finish``.

    ``timeout``: without a word of the PACS; those that tell of nothing until the end need a long one.
    """
    context = context_of(channel, STUDY_ROOT_MOVE)
    message_id = _request(channel, context, upper_layer.C_MOVE_RQ, identifier, MoveDestination=destination)
    progress = Progress()
    while True:
        message = channel.receive(timeout)
        status = _status_of(channel, message, upper_layer.C_MOVE_RQ, message_id)
        if status not in _PENDING:
            progress.finish(message, status)
            return progress
        progress.take(message)


class Taker(Protocol):
    """Takes one instance in as it comes."""

    def take(self, piece: memoryview) -> None:
        """The next bytes of its data set. Never raises: what goes wrong is told by ``finish``."""

    def finish(self) -> int:
        """It is whole; the status to answer."""

    def close(self) -> None:
        """It is over, whole or not."""


def get(
    channel: Channel,
    identifier: Dataset,
    begin: Callable[[dict[str, Any], Context], Taker],
    *,
    timeout: float,
) -> Progress:
    """Have what ``identifier`` names sent over this association; ``begin`` gives what takes each instance.

    Raises: as ``Channel`` and ``Progress.finish``.
    """
    context = context_of(channel, STUDY_ROOT_GET)
    by_id = {one.context_id: one for one in channel.contexts}
    message_id = _request(channel, context, upper_layer.C_GET_RQ, identifier)
    progress = Progress()
    taker: list[Taker] = []

    def begin_data(context_id: int, command: dict[str, Any]) -> Callable[[memoryview], None] | None:
        if command["CommandField"] != upper_layer.C_STORE_RQ or context_id not in by_id:
            return None
        taker.append(begin(command, by_id[context_id]))
        return taker[-1].take

    try:
        while True:
            message = channel.receive_streaming(begin_data, timeout)
            if message.field == upper_layer.C_STORE_RQ:
                status = taker[-1].finish() if taker else _NO_DATA
                taker.clear()
                _answer_store(channel, message, status)
                continue
            status = _status_of(channel, message, upper_layer.C_GET_RQ, message_id)
            if status not in _PENDING:
                progress.finish(message, status)
                return progress
            progress.take(message)
    finally:
        for one in taker:
            one.close()


_NO_DATA: Final = 0xC000


def _answer_store(channel: Channel, message: Message, status: int) -> None:
    channel.send(
        message.context_id,
        {
            "CommandField": upper_layer.C_STORE_RQ | upper_layer.RESPONSE,
            "MessageIDBeingRespondedTo": message.command.get("MessageID", 0),
            "AffectedSOPClassUID": message.command.get("AffectedSOPClassUID"),
            "AffectedSOPInstanceUID": message.command.get("AffectedSOPInstanceUID"),
            "Status": status,
        },
    )

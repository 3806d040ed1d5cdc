"""Following what passes in one direction of an association, piece by piece, without keeping it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from standards import upper_layer
from standards.errors import PermanentError
from standards.upper_layer import PDU_HEADER_BYTES

LONGEST_FOLLOWED_BYTES: Final = 8 << 20
"""A longer PDU passes as it comes, and is not understood."""


@dataclass(frozen=True, slots=True)
class Pdu:
    """A whole PDU, header included."""

    kind: int
    whole: memoryview

    @property
    def payload(self) -> memoryview:
        """What follows its header."""
        return self.whole[PDU_HEADER_BYTES:]


class Splitter:
    """Cuts a stream of bytes into PDUs, until something comes that is none, or too long."""

    def __init__(self) -> None:
        self._rest = b""
        self.broken: PermanentError | None = None
        """Why no more PDUs are found."""

    def feed(self, data: bytes) -> list[Pdu]:
        """The PDUs that are whole now."""
        view = memoryview(self._rest + data if self._rest else data)
        position: int = 0
        found: list[Pdu] = []
        while self.broken is None and len(view) - position >= PDU_HEADER_BYTES:
            kind = view[position]
            length = int.from_bytes(view[position + 2 : position + PDU_HEADER_BYTES], "big")
            if not upper_layer.ASSOCIATE_RQ <= kind <= upper_layer.ABORT or length > LONGEST_FOLLOWED_BYTES:
                self.broken = PermanentError("not-followed", f"a PDU of type {kind:02X} with {length} bytes")
                break
            if len(view) - position < PDU_HEADER_BYTES + length:
                break
            found.append(Pdu(kind, view[position : position + PDU_HEADER_BYTES + length]))
            position += PDU_HEADER_BYTES + length
        self._rest = bytes(view[position:])
        return found

    def take_rest(self) -> bytes:
        """What is not a whole PDU, taken out of here."""
        rest, self._rest = self._rest, b""
        return rest


@dataclass(frozen=True, slots=True)
class Command:
    """A command set has passed. ``raw``: as it was encoded."""

    context_id: int
    fields: dict[str, Any]
    raw: bytes


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of the data set of the command before it."""

    data: memoryview
    is_last: bool


class Follower:
    """Puts the fragments of P-DATA-TFs together to messages."""

    def __init__(self) -> None:
        self._command = bytearray()
        self._in_data = False

    @property
    def between_messages(self) -> bool:
        """Whether nothing of a message has passed of which more must follow."""
        return not self._command and not self._in_data

    @property
    def in_command(self) -> bool:
        """Whether a command has begun and not ended."""
        return bool(self._command)

    def follow(self, payload: memoryview) -> Iterator[Command | Piece]:
        """What a P-DATA-TF brings. Raises: PermanentError "invalid-pdu", "invalid-command"."""
        for fragment in upper_layer.pdvs(payload):
            if not fragment.is_command:
                if not self._in_data:
                    raise PermanentError("invalid-pdu", "a data set without a command")
                self._in_data = not fragment.is_last
                yield Piece(fragment.data, fragment.is_last)
                continue
            if self._in_data:
                raise PermanentError("invalid-pdu", "a command within a data set")
            self._command += fragment.data
            if len(self._command) > upper_layer.LARGEST_COMMAND_BYTES:
                raise PermanentError("invalid-pdu", "a command set that is too long")
            if fragment.is_last:
                raw = bytes(self._command)
                self._command.clear()
                fields = upper_layer.decode_command(raw)
                self._in_data = fields["CommandDataSetType"] != upper_layer.NO_DATASET
                yield Command(fragment.context_id, fields, raw)

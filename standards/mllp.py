"""MLLP: HL7 v2 messages framed on a byte stream.

Source: HL7 Minimal Lower Layer Protocol, release 1
"""

from typing import Final

from standards.errors import PermanentError

START: Final = b"\x0b"
END: Final = b"\x1c\r"
MAX_MESSAGE: Final = 16 << 20


class MllpReader:
    """Takes bytes as they come from a socket and gives whole messages.

    Bytes outside a frame are dropped. A second start byte inside a frame begins the message anew, since the sender gave
    up the first; no supported character set uses that byte in text.
    """

    def __init__(self, max_message: int = MAX_MESSAGE) -> None:
        self._max = max_message
        self._buffer = bytearray()
        self._inside = False
        self._searched = 0
        self.dropped = 0
        """Bytes dropped so far, frames given up included."""

    def feed(self, data: bytes) -> list[bytes]:
        """The messages completed by ``data``, without their framing.

        Raises: PermanentError("message-too-large"): the connection cannot be used on.
        """
        self._buffer += data
        messages: list[bytes] = []
        while self._advance(messages):
            pass
        return messages

    @property
    def is_inside(self) -> bool:
        """Whether a message has begun and not ended, so that closing now cuts it off."""
        return self._inside

    def _advance(self, messages: list[bytes]) -> bool:
        if not self._inside:
            start = self._buffer.find(START)
            self._drop(len(self._buffer) if start < 0 else start)
            if start < 0:
                return False
            del self._buffer[:1]
            self._inside, self._searched = True, 0
            return True
        end = self._buffer.find(END, self._searched)
        restart = self._buffer.find(START, self._searched, end if end >= 0 else len(self._buffer))
        if restart >= 0:
            self._drop(restart)
            self._inside = False
            return True
        if (end if end >= 0 else len(self._buffer)) > self._max:
            raise PermanentError("message-too-large", f"over {self._max} bytes")
        if end < 0:
            # The end may be split between two reads: look at the last byte again next time.
            self._searched = max(0, len(self._buffer) - 1)
            return False
        messages.append(bytes(self._buffer[:end]))
        del self._buffer[: end + len(END)]
        self._inside = False
        return True

    def _drop(self, count: int) -> None:
        self.dropped += count
        del self._buffer[:count]


def frame(message: bytes) -> bytes:
    """The message between its start and end bytes."""
    return START + message + END

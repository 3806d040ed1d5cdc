"""multipart/related messages in both directions, streamed in bounded memory.

Source: PS3.18 8.6, RFC 2046 5.1, RFC 2387
"""

import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from standards.errors import PermanentError
from standards.media_types import parse

MAX_PART_HEADER: Final = 16_384
_CHUNK: Final = 1 << 16
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]", re.ASCII)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class OutgoingPart:
    """A part to send: its headers, and its bytes or pieces of bytes."""

    headers: Mapping[str, str]
    body: bytes | Iterable[bytes]


class Part:
    """A part being received. Read it before the next one is asked for; what is left unread is skipped."""

    def __init__(self, headers: dict[str, str], reader: "_Reader") -> None:
        self.headers = headers
        """Header fields, names in lower case."""
        self._reader = reader
        self._finished = False

    @property
    def content_type(self) -> str:
        """The Content-Type, "" if the part has none."""
        return self.headers.get("content-type", "")

    def __iter__(self) -> Iterator[bytes]:
        """The body in pieces of at most 64 KiB.

        Raises: PermanentError("truncated") if the message ends before the boundary.
        """
        while piece := self.read(_CHUNK):
            yield piece

    def read(self, size: int = _CHUNK) -> bytes:
        """Up to ``size`` bytes of the body; b"" at its end. Raises as iteration does."""
        if self._finished:
            return b""
        piece = self._reader.body(size)
        self._finished = not piece
        return piece


class _Reader:
    """Finds boundaries in a stream while holding little more than one chunk of it."""

    def __init__(self, stream: _Readable, boundary: bytes) -> None:
        self._stream = stream
        self._delimiter = b"\r\n--" + boundary
        # The first boundary may open the message, without a line end before it.
        self._buffer = bytearray(b"\r\n")
        self._ended = False

    def _fill(self) -> bool:
        chunk = b"" if self._ended else self._stream.read(_CHUNK)
        self._ended = not chunk
        self._buffer += chunk
        return bool(chunk)

    def body(self, size: int) -> bytes:
        """The next bytes before the delimiter, or b"" at it; the delimiter itself stays."""
        while True:
            at = self._buffer.find(self._delimiter)
            if at == 0:
                return b""
            # Without a delimiter in sight, what could be the beginning of one is held back.
            ready = at if at > 0 else len(self._buffer) - len(self._delimiter) + 1
            if ready > 0:
                piece = bytes(self._buffer[: min(ready, size)])
                del self._buffer[: len(piece)]
                return piece
            if not self._fill():
                raise PermanentError("truncated", "the multipart message ends before its closing boundary")

    def next_part(self) -> bool:
        """Step over the delimiter; False after the closing one."""
        del self._buffer[: len(self._delimiter)]
        while len(self._buffer) < 2:
            if not self._fill():
                raise PermanentError("truncated", "the multipart message ends inside a boundary")
        if self._buffer[:2] == b"--":
            return False
        line = self._line()
        if line.strip(b" \t"):
            raise PermanentError("invalid-multipart", "a boundary is followed by other text")
        return True

    def _line(self) -> bytes:
        while True:
            at = self._buffer.find(b"\r\n")
            if at >= 0:
                line = bytes(self._buffer[:at])
                del self._buffer[: at + 2]
                return line
            if len(self._buffer) > MAX_PART_HEADER:
                raise PermanentError("invalid-multipart", "a header line is too long")
            if not self._fill():
                raise PermanentError("truncated", "the multipart message ends inside a header")

    def headers(self) -> dict[str, str]:
        fields: dict[str, str] = {}
        total = 0
        while line := self._line():
            total += len(line)
            if total > MAX_PART_HEADER:
                raise PermanentError("invalid-multipart", "the headers of a part are too long")
            name, colon, value = line.decode("latin-1").partition(":")
            if not colon or not name.strip():
                raise PermanentError("invalid-multipart", "a header without a name")
            fields[name.strip().lower()] = value.strip()
        # A part may be empty: its delimiter then uses the line end that closed the headers.
        self._buffer[:0] = b"\r\n" if self._starts_with_bare_delimiter() else b""
        return fields

    def _starts_with_bare_delimiter(self) -> bool:
        bare = self._delimiter[2:]
        while len(self._buffer) < len(bare):
            if not self._fill():
                return False
        return self._buffer.startswith(bare)


def parse_related(stream: _Readable, content_type: str) -> Iterator[Part]:
    """The parts of a multipart/related message, read from ``stream`` as they are asked for.

    ``content_type`` is the header of the message. Memory stays within a few chunks however long the parts are.

    Raises: PermanentError "invalid-multipart", "truncated".
    """
    media = parse(content_type)
    if not media or media[0].type != "multipart/related":
        raise PermanentError("invalid-multipart", "the Content-Type is not multipart/related")
    boundary = media[0].parameter("boundary")
    if not _BOUNDARY.fullmatch(boundary):
        raise PermanentError("invalid-multipart", "no usable boundary")
    reader = _Reader(stream, boundary.encode("ascii"))
    # What stands before the first boundary is a preamble for people.
    while reader.body(_CHUNK):
        pass
    while reader.next_part():
        part = Part(reader.headers(), reader)
        yield part
        while part.read(_CHUNK):
            pass


def new_boundary() -> str:
    """A boundary that does not occur in the parts, by its randomness."""
    return f"regis-{uuid.uuid4().hex}"


def framed(headers: Mapping[str, str], boundary: str, *, first: bool) -> list[bytes]:
    """What goes before the body of a part: the boundary and its headers, as one piece in a list."""
    lines = [f"--{boundary}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return [(b"" if first else b"\r\n") + "\r\n".join(lines).encode("latin-1")]


def encode_related(parts: Iterable[OutgoingPart], boundary: str) -> Iterator[bytes]:
    """The bytes of a multipart/related message in pieces; without parts only the closing boundary."""
    for part in parts:
        yield from framed(part.headers, boundary, first=True)
        if isinstance(part.body, bytes):
            yield part.body
        else:
            yield from part.body
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode("ascii")

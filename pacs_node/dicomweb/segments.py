"""Bodies made of pieces of files, of known length, which the server sends without copying them around in Python."""

import math
import os
import re
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse

from pacs_node.storage.filesystem import FilesystemStorage
from pacs_node.storage.stores import storage

_CHUNK: Final = 1 << 18
_LEAST_ROUND_TRIP: Final = slice(148, 152)
"""Where ``tcp_info`` has ``tcpi_min_rtt``, in microseconds. Source: Linux, include/uapi/linux/tcp.h"""
_NEAR_MICROSECONDS: Final = 2000
_NEAR_BUFFER: Final = 1 << 18
"""The kernel doubles it: enough for two gigabits a second within two milliseconds."""
_TIMEVAL: Final = struct.Struct("@ll")
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


@dataclass(frozen=True)
class FileRange:
    """``length`` bytes from ``offset`` on of ``source``: a key of the storage, or an absolute path of this machine."""

    source: str
    offset: int
    length: int


@dataclass(frozen=True)
class OpenFile:
    """``length`` bytes from ``offset`` on of an open file."""

    descriptor: int
    offset: int
    length: int


Segment = bytes | FileRange


class Segments:
    """A body of known length. Iterating gives chunks; a server that knows it sends the file ranges by itself."""

    def __init__(self, parts: Iterable[Segment]) -> None:
        self.parts = list(parts)
        self.length = sum(part.length if isinstance(part, FileRange) else len(part) for part in self.parts)

    def __iter__(self) -> Iterator[bytes]:
        for part in self.parts:
            if isinstance(part, bytes):
                yield part
            else:
                yield from _read(part)

    def sliced(self, start: int, length: int) -> "Segments":
        """The ``length`` bytes from ``start`` on."""
        chosen: list[Segment] = []
        for part in self.parts:
            size = part.length if isinstance(part, FileRange) else len(part)
            begin, end = max(0, start), min(size, start + length)
            if begin < end:
                if isinstance(part, FileRange):
                    chosen.append(FileRange(part.source, part.offset + begin, end - begin))
                else:
                    chosen.append(part[begin:end])
            start -= size
        return Segments(chosen)


def _read(part: FileRange) -> Iterator[bytes]:
    with open_source(part.source) as file:
        file.seek(part.offset)
        left = part.length
        while left:
            chunk = file.read(min(_CHUNK, left))
            if not chunk:
                raise OSError(f"a stored file ends {left} bytes too early")  # the length is promised: break off
            left -= len(chunk)
            yield chunk


def open_source(source: str) -> BinaryIO:
    """The file of a :class:`FileRange`. Raises: PermanentError("instance-gone"), TransientError("recall-failed")."""
    return open(source, "rb") if source.startswith("/") else storage().open(source)


@contextmanager
def _opened(source: str) -> Iterator[int]:
    """A descriptor of the file: a series has hundreds, and the way through pathlib costs as much as sending one."""
    path = source if source.startswith("/") else plain_file(source)
    if path is None:
        with open_source(source) as file:
            yield file.fileno()
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def plain_file(key: str) -> str | None:
    """The path of a stored file that lies on this machine now; None where the storage must be asked."""
    if type(storage()) is not FilesystemStorage:
        return None
    path = f"{storage().root}/{key}"
    return path if os.path.exists(path) else None


def send_segments(sock: socket.socket, parts: Sequence[Segment | OpenFile]) -> None:
    """Send the parts; the kernel copies from the files. Raises: OSError, also when the client takes nothing for long.

    ``sock`` is a plain one with a timeout; so long may the client take for a piece.
    """
    _keep_in_cache(sock)
    last = len(parts) - 1
    with _waiting_in_the_kernel(sock):
        for number, part in enumerate(parts):
            if isinstance(part, bytes):
                sock.sendall(part, socket.MSG_MORE if number < last else 0)
            elif isinstance(part, OpenFile):
                _send_file(sock, part.descriptor, part.offset, part.length)
            else:
                with _opened(part.source) as descriptor:
                    _send_file(sock, descriptor, part.offset, part.length)


@contextmanager
def _waiting_in_the_kernel(sock: socket.socket) -> Iterator[None]:
    """Have the kernel wait for room, as long as the timeout of ``sock`` allows: coming back to Python for each piece
    that went out costs a wait for the interpreter, which other requests hold."""
    timeout = sock.gettimeout()
    fraction, seconds = math.modf(timeout or 0.0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(int(seconds), int(fraction * 1e6)))
    sock.settimeout(None)
    try:
        yield
    except BlockingIOError as error:
        raise TimeoutError("the client takes nothing in") from error
    finally:
        sock.settimeout(timeout)


def _keep_in_cache(sock: socket.socket) -> None:
    """Have the kernel hold little of what is on its way to a near client: megabytes, which it would take by itself,
    leave the processor's cache before they are read (measured: thrice the processor time). A far client needs them."""
    least = int.from_bytes(
        sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LEAST_ROUND_TRIP.stop)[_LEAST_ROUND_TRIP], sys.byteorder
    )
    if least < _NEAR_MICROSECONDS:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _NEAR_BUFFER)


def _send_file(sock: socket.socket, descriptor: int, offset: int, length: int) -> None:
    while length:
        sent = os.sendfile(sock.fileno(), descriptor, offset, length)
        if not sent:
            raise OSError(f"a stored file ends {length} bytes too early")
        offset += sent
        length -= sent


class SegmentsResponse(StreamingHttpResponse):
    """An answer whose body is :class:`Segments`; ``file_to_stream`` is what Django hands to the server's wrapper."""

    def __init__(self, segments: Segments, **options: Any) -> None:
        super().__init__(segments, **options)
        self.segments = segments
        self.file_to_stream = segments
        self.block_size = _CHUNK
        self["Content-Length"] = str(segments.length)


def ranged(request: HttpRequest, segments: Segments, content_type: str, etag: str) -> HttpResponseBase:
    """The body, or the one range of it that is asked for: 206, or 416 when it lies outside.

    Several ranges at once, other units, and a range of something that has changed get the whole body.
    Source: RFC 9110 14.2
    """
    found = _RANGE.fullmatch(request.headers.get("Range", "").replace(" ", ""))
    unchanged = request.headers.get("If-Range", etag) == etag
    if not found or not unchanged or not (found[1] or found[2]):
        response: HttpResponseBase = SegmentsResponse(segments, content_type=content_type)
        response["Accept-Ranges"] = "bytes"
        return response
    total = segments.length
    if found[1]:
        start, end = int(found[1]), min(int(found[2]) if found[2] else total - 1, total - 1)
    else:
        start, end = max(0, total - int(found[2])), total - 1
    if found[1] and found[2] and int(found[2]) < int(found[1]):  # not a range at all
        response = SegmentsResponse(segments, content_type=content_type)
    elif start > end or start >= total:
        response = HttpResponse(status=416)
        response["Content-Range"] = f"bytes */{total}"
    else:
        response = SegmentsResponse(segments.sliced(start, end - start + 1), content_type=content_type, status=206)
        response["Content-Range"] = f"bytes {start}-{end}/{total}"
    response["Accept-Ranges"] = "bytes"
    return response

"""Frames without Django: what a viewer asks hundreds of times a second, answered in a few microseconds of Python.

Only this is answered here: GET of one frame with an image token, nothing else in the request that could change the
answer. Everything else is None, and Django decides. The right comes from the same check as Django's
(``permissions.bearer_reach``), the look is audited alike, and the frame is found by the functions of ``wado``. What is
remembered of a frame holds as long as the very file it was made of lies on the storage, as each answer opens it again.
"""

import os
import re
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from typing import Final

from django.db import DatabaseError

from pacs_node.clinic import audit
from pacs_node.dicomweb.permissions import Reach, bearer_reach
from pacs_node.dicomweb.qido import root_for
from pacs_node.dicomweb.retrieval import IMMUTABLE, etag_of, existing, header_of, path_of, table_of
from pacs_node.dicomweb.segments import OpenFile, Segment
from pacs_node.dicomweb.wado import offer_for_frames
from pacs_node.storage.filesystem import FilesystemStorage
from pacs_node.storage.stores import storage
from standards import transfer_syntaxes
from standards.errors import RegisError
from standards.media_types import content_type
from standards.multipart import framed, new_boundary

_UID: Final = rb"([0-9](?:[0-9.]{0,62}[0-9])?)"
_FRAME: Final = re.compile(
    rb"/dicom-web/studies/" + _UID + rb"/series/" + _UID + rb"/instances/" + _UID + rb"/frames/([1-9][0-9]{0,6})"
)
# Headers that cannot change the answer. With any other one, Django looks at the request.
_HARMLESS: Final = frozenset(
    {
        "accept", "accept-encoding", "accept-language", "authorization", "cache-control", "connection", "cookie", "dnt",
        "host", "origin", "pragma", "priority", "referer", "user-agent", "sec-fetch-dest", "sec-fetch-mode",
        "sec-fetch-site", "sec-ch-ua", "sec-ch-ua-mobile", "sec-ch-ua-platform", "sec-gpc",
    }
)  # fmt: skip
_MOST_PROFILES: Final = 256
_MOST_FRAMES: Final = 20_000


@dataclass(frozen=True)
class _Profile:
    """What the headers of a client say, the same in each of its requests."""

    token: str
    accept: str | None
    root: str


@dataclass(frozen=True)
class _Frame:
    """An answer made before: the file it comes from and how that looked, and what to send."""

    path: str
    identity: tuple[int, int, int]
    head: bytes
    ranges: tuple[tuple[int, int], ...]
    tail: bytes


@dataclass
class HotAnswer:
    """What to send, from a file that is open until :meth:`close`."""

    parts: list[Segment | OpenFile]
    descriptor: int

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)


_lock = threading.Lock()
_profiles: dict[bytes, _Profile | None] = {}
_frames: OrderedDict[tuple[bytes, _Profile], _Frame] = OrderedDict()


def hot_answer(request: bytes, address: str) -> HotAnswer | None:
    """The answer to ``request``, the bytes of a whole HTTP request; None where Django is to decide."""
    if not request.startswith(b"GET /dicom-web/studies/") or not request.endswith(b"\r\n\r\n"):
        return None
    line, _, block = request.partition(b"\r\n")
    target, _, version = line[4:].partition(b" ")
    found = _FRAME.fullmatch(target)
    if found is None or version != b"HTTP/1.1":
        return None
    profile = _profile(block)
    if profile is None:
        return None
    study = found[1].decode("ascii")
    try:
        reach = bearer_reach(profile.token)
        if "read" not in reach.operations or not reach.covers(study):
            return None
        frame = _frames.get((target, profile)) or _made(target, profile, found, reach)
        answer = _opened(frame) if frame is not None else None
        if answer is None:
            _frames.pop((target, profile), None)
            return None
        try:
            audit.record_once_a_sitting("study.viewed", actor=reach.actor, entity=study, address=address)
        except BaseException:
            answer.close()
            raise
        return answer
    except (RegisError, DatabaseError, OSError):
        return None  # Django meets the same and says it in full


def _profile(block: bytes) -> _Profile | None:
    known = _profiles.get(block, False)
    if known is not False:
        return known  # type: ignore[return-value]  # what is not False is what was put in
    made = _read_profile(block)
    with _lock:
        if len(_profiles) >= _MOST_PROFILES:
            _profiles.clear()
        _profiles[block] = made
    return made


def _read_profile(block: bytes) -> _Profile | None:
    fields: dict[str, str] = {}
    for line in block.decode("latin-1").split("\r\n"):
        if not line:
            break
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or name not in _HARMLESS or name in fields:
            return None
        fields[name] = value.strip()
    scheme, _, token = fields.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or fields.get("connection", "keep-alive").lower() != "keep-alive":
        return None
    return _Profile(token.strip(), fields.get("accept"), root_for(f"http://{fields.get('host', '')}"))


def _made(target: bytes, profile: _Profile, found: re.Match[bytes], reach: Reach) -> _Frame | None:
    if type(storage()) is not FilesystemStorage:
        return None
    study, series, uid, number = (part.decode("ascii") for part in found.groups())
    instance = existing(reach, study, series, uid)[0]
    header = header_of(instance)
    syntax = header.transfer_syntax
    if header.pixel_offset is None or transfer_syntaxes.is_deflated(syntax):
        return None
    offer = offer_for_frames(profile.accept, syntax, single=True)
    table = table_of(instance, header)
    if offer is None or not offer.stored or not table.is_direct:
        return None
    ranges = tuple(table.ranges(int(number) - 1))
    path = str(storage().root / instance.path)
    status = os.stat(path)
    boundary = new_boundary()
    before, tail = b"", b""
    if offer.multipart:
        headers = {
            "Content-Type": f"{offer.type}; transfer-syntax={offer.transfer_syntax}",
            "Content-Location": f"{profile.root}{path_of(instance)}/frames/{int(number)}",
        }
        before = b"".join(framed(headers, boundary, first=True))
        tail = f"\r\n--{boundary}--\r\n".encode("ascii")
    length = len(before) + sum(part for _, part in ranges) + len(tail)
    fields = {
        "Content-Type": content_type(offer, boundary),
        "Content-Length": str(length),
        "ETag": etag_of([instance], "frames", number, offer),
        "Cache-Control": IMMUTABLE,
        "Vary": "Accept",
        "X-Content-Type-Options": "nosniff",
        "Server": "regis",
    }
    lines = [*(f"{name}: {value}" for name, value in fields.items()), "", ""]
    head = "\r\n".join(lines).encode("latin-1") + before
    frame = _Frame(path, (status.st_ino, status.st_size, status.st_mtime_ns), head, ranges, tail)
    with _lock:
        _frames[target, profile] = frame
        if len(_frames) > _MOST_FRAMES:
            _frames.popitem(last=False)
    return frame


def _opened(frame: _Frame) -> HotAnswer | None:
    """The answer, if the file is still the one it was made of."""
    descriptor = os.open(frame.path, os.O_RDONLY | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if (status.st_ino, status.st_size, status.st_mtime_ns) != frame.identity:
        os.close(descriptor)
        return None
    begin = f"HTTP/1.1 200 OK\r\nDate: {_date(int(time.time()))}\r\n".encode("ascii")
    parts: list[Segment | OpenFile] = [begin + frame.head]
    parts += [OpenFile(descriptor, offset, length) for offset, length in frame.ranges]
    if frame.tail:
        parts.append(frame.tail)
    return HotAnswer(parts, descriptor)


@lru_cache(maxsize=2)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)

"""An instance on its way to a peer: small ones in one request, large ones in chunks, encoded where that pays."""

import hashlib
import io
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final
from urllib.parse import urlencode

import httpx
import structlog
from pydantic import TypeAdapter, ValidationError

from gateway import client, encoding, registry
from gateway.envelope import InstanceDescription, Peer, Receipt
from gateway.keys import is_receipt_of
from gateway.models import Delivery, JoinState
from gateway.paying import Setting, Stretch
from gateway.protocols import Proof
from gateway.rates import PIECE, throttle, traffic
from standards.digests import dataset_sha256
from standards.errors import PermanentError, TransientError

log = structlog.get_logger(__name__)

CHUNK: Final = 4 << 20
_HEADERS: Final = 1024
"""What a request costs the link besides its body, about."""
_SERIES_AS_IS: Final = 1000

_missing: Final = TypeAdapter(list[tuple[int, int]])


@dataclass
class Large:
    """An instance that goes in chunks. Its lane's lock guards what changes."""

    delivery: Delivery
    instance: InstanceDescription
    size: int
    pixels: encoding.Pixels
    missing: deque[int]
    in_flight: int = 0
    wire_bytes: int = 0
    told_at: float = field(default=0.0)
    digesting: threading.Lock = field(default_factory=threading.Lock)
    is_checked: bool = False

    @property
    def arrived(self) -> int:
        """Bytes that are there, about."""
        return max(0, self.size - (len(self.missing) + self.in_flight) * CHUNK)


class Line:
    """To one peer: what it understands, and what was found not to pay or not to come back."""

    def __init__(self, state: JoinState, peer: Peer, connection: httpx.Client, *, setting: Setting = "auto") -> None:
        self.state, self.peer, self.connection, self.setting = state, peer, connection, setting
        self._flow = traffic.of(peer.name)
        self._understands: bool | None = None
        self._asking = threading.Lock()
        self._as_is: dict[int, None] = {}

    def understands(self) -> bool:
        """Whether the peer takes encoded bodies and chunks; a node of an older version takes whole files only.

        Raises: as ``client.ask``.
        """
        with self._asking:
            known = self._understands
            if known is None:
                path = f"/gateway/v1/wire?{urlencode({'to': self.peer.name})}"
                try:
                    answer = client.ask(self.connection, self.state, "GET", path)
                except TransientError as error:
                    if error.code != "http-404":
                        raise
                    log.info("peer-takes-whole-files-only", peer=self.peer.name)
                    answer = b""
                known = self._understands = encoding.NAME.encode() in answer
            return known

    def forget(self) -> None:
        """The peer was away: it may be of another version when it is back, and by another line."""
        self._understands = None
        self._flow.paying.forget()

    def whole(self, delivery: Delivery) -> Proof:
        """Push an instance by one request; its proof is the verified receipt. Nothing is written here.

        Raises: PermanentError when this instance can never arrive as it is, TransientError otherwise.
        """
        instance = describe(delivery)
        with registry.store().open(delivery.instance_key) as file:
            size = file.seek(0, io.SEEK_END)
            if size > CHUNK or not self.understands():
                return self._as_file(delivery, instance, file, size)
            file.seek(0)
            raw = file.read()
        _check_source(io.BytesIO(raw), delivery)
        if not self._goes_as_is(delivery.series_key):
            pixels = encoding.pixels_of(io.BytesIO(raw))
            with self._stretch(size, pixels) as stretch:
                body = _body(stretch, raw, 0, pixels)
                try:
                    return self._receipted(instance, self._path(instance, encoding=encoding.NAME), body, size)
                except TransientError as error:
                    self._note_refused(error, delivery.series_key)
        return self._receipted(instance, self._path(instance), raw, size, content_type="application/dicom")

    def _as_file(self, delivery: Delivery, instance: InstanceDescription, file: BinaryIO, size: int) -> Proof:
        _check_source(file, delivery)
        digest = hashlib.sha256()
        file.seek(0)
        while piece := file.read(PIECE):
            digest.update(piece)
        answer = self._send("PUT", self._path(instance), _pieces(file), digest.digest(), size, "application/dicom")
        self._flow.went(size, size)
        return self._proof(instance, answer, size)

    def prepare(self, delivery: Delivery) -> Large:
        """Begin an upload or go on with one that was cut. Raises: as ``whole``.

        Whether the file is still what was received, and its digests, are wanted at the end only: of 20 GB that takes
        minutes, in which chunks can go (``digest``).
        """
        instance = _described(delivery)
        with registry.store().open(delivery.instance_key) as file:
            size = file.seek(0, io.SEEK_END)
            pixels = encoding.pixels_of(file)
        answer = self._send("PUT", self._path(instance, "uploads", size=size, chunk=CHUNK))
        try:
            ranges = _missing.validate_python(httpx.Response(200, content=answer).json()["missing"])
        except (ValueError, KeyError, TypeError) as error:
            raise TransientError("answer-unreadable", type(error).__name__) from error
        missing = deque(index for begin, end in ranges for index in range(begin, end))
        log.info("upload-begun", delivery=delivery.pk, size=size, chunks=-(-size // CHUNK), missing=len(missing))
        return Large(delivery, instance, size, pixels, missing)

    def chunk(self, large: Large, index: int) -> int:
        """Push one chunk; the bytes that went. Raises: as ``whole``."""
        start = index * CHUNK
        with registry.store().open(large.delivery.instance_key) as file:
            file.seek(start)
            raw = _read(file, min(CHUNK, large.size - start))
        series, went = large.delivery.series_key, 0
        path = self._path(
            large.instance,
            "uploads",
            f"/{index}",
            size=large.size,
            chunk=CHUNK,
            raw=hashlib.sha256(raw).hexdigest(),
            encoding=encoding.NAME,
        )
        if not self._goes_as_is(series):
            with self._stretch(len(raw), large.pixels) as stretch:
                body = _body(stretch, raw, start, large.pixels)
                went += len(body)
                try:
                    self._send_body(path, body)
                except TransientError as error:
                    self._note_refused(error, series)
                else:
                    self._flow.went(len(raw), went)
                    return went
        body = encoding.plain(raw)
        self._send_body(path, body)
        self._flow.went(len(raw), went + len(body))
        return went + len(body)

    def finish(self, large: Large) -> Proof:
        """Have the peer take in what it has all chunks of. Raises: as ``whole``; TransientError("still-checking").

        Of a long one that takes minutes, in which a silent connection may be cut by whatever is between: so the answer
        is not waited for longer than any other, but asked for again.
        """
        instance = self.digest(large)
        path = self._path(instance, size=large.size, chunk=CHUNK)
        try:
            answer = self._send("PUT", path)
        except TransientError as error:
            if isinstance(error.__cause__, httpx.ReadTimeout):
                raise TransientError("still-checking", "the receiver has not answered yet") from error
            raise
        return self._proof(instance, answer, large.wire_bytes)

    @staticmethod
    def digest(large: Large) -> InstanceDescription:
        """What ``finish`` needs, once: the file is what was received, and has these digests.

        Raises: PermanentError "source-damaged", "instance-gone".
        """
        with large.digesting:
            if not large.is_checked:
                with registry.store().open(large.delivery.instance_key) as file:
                    _check_source(file, large.delivery)
                large.is_checked = True
            return describe(large.delivery)

    # Parts

    def _path(self, instance: InstanceDescription, what: str = "instances", rest: str = "", **more: Any) -> str:
        """The digests and the receiver stand in the query because the signature covers it."""
        promised = {
            "to": self.peer.name,
            "dataset": instance.dataset_sha256,
            "pixel": instance.pixel_sha256 or "",
            "frames": instance.frames_sha256 or "",
            **more,
        }
        return f"/gateway/v1/{what}/{instance.sop_instance_uid}{rest}?{urlencode(promised)}"

    def _stretch(self, length: int, pixels: encoding.Pixels) -> AbstractContextManager[Stretch]:
        return self._flow.paying.stretch(length, self.setting, counts=not pixels.is_compressed)

    def _goes_as_is(self, series_key: int) -> bool:
        return series_key in self._as_is

    def _note_refused(self, error: TransientError, series_key: int) -> None:
        """Go on if the peer could not restore the bytes: images of one series are alike, so the others go as they are.

        Raises: any other error again.
        """
        if error.code != "not-restored":
            raise error
        log.warning("encoding-not-restored", peer=self.peer.name, series_key=series_key, error=str(error))
        self._as_is[series_key] = None
        while len(self._as_is) > _SERIES_AS_IS:
            self._as_is.pop(next(iter(self._as_is)))

    def _receipted(
        self,
        instance: InstanceDescription,
        path: str,
        body: bytes,
        size: int,
        content_type: str = "application/octet-stream",
    ) -> Proof:
        answer = self._send_body(path, body, content_type)
        self._flow.went(size, len(body))
        return self._proof(instance, answer, len(body))

    def _send_body(self, path: str, body: bytes, content_type: str = "application/octet-stream") -> bytes:
        digest = hashlib.sha256(body).digest()
        return self._send("PUT", path, throttle.pieces(body), digest, len(body), content_type)

    def _send(
        self,
        method: str,
        path: str,
        content: bytes | Iterator[bytes] = b"",
        sha256: bytes = hashlib.sha256(b"").digest(),
        length: int = 0,
        content_type: str = "application/octet-stream",
    ) -> bytes:
        throttle.take(_HEADERS)
        return client.send(self.connection, self.state, method, path, content, sha256, length, content_type)

    def _proof(self, instance: InstanceDescription, answer: bytes, wire_bytes: int) -> Proof:
        try:
            receipt = Receipt.model_validate_json(answer)
        except ValidationError as error:
            raise TransientError("receipt-unreadable", f"{error.error_count()} faults") from error
        verify_receipt(receipt, instance, self.state.name, self.peer)
        return Proof("receipt", receipt.model_dump(mode="json"), wire_bytes)


def describe(delivery: Delivery) -> InstanceDescription:
    """The instance with all its digests. Raises: PermanentError("instance-gone")."""
    frames = registry.store().ensure_frames_digest(delivery.instance_key)
    return _described(delivery).model_copy(update={"frames_sha256": frames})


def _described(delivery: Delivery) -> InstanceDescription:
    described = registry.store().describe_instances([delivery.instance_key])
    if not described:
        raise PermanentError("instance-gone", "the index no longer has it")
    return described[0]


def _body(stretch: Stretch, raw: bytes, offset: int, pixels: encoding.Pixels) -> bytes:
    if not stretch.encode:
        return encoding.plain(raw)
    with encoding.encoders:
        begun = time.thread_time()
        body = encoding.encode(raw, offset, pixels)
        stretch.processor_seconds += time.thread_time() - begun
    stretch.wire += len(body)
    return body


def _check_source(file: BinaryIO, delivery: Delivery) -> None:
    if dataset_sha256(file) != delivery.dataset_sha256:
        raise PermanentError("source-damaged", "the stored file is no longer what was received")


def _read(file: BinaryIO, count: int) -> bytes:
    parts = []
    while count and (part := file.read(count)):
        parts.append(part)
        count -= len(part)
    if count:
        raise PermanentError("source-damaged", f"the stored file ends {count} bytes early")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while piece := file.read(PIECE):
        throttle.take(len(piece))
        yield piece


def verify_receipt(receipt: Receipt, instance: InstanceDescription, sender: str, peer: Peer) -> None:
    """Believe a receipt only if the peer itself signed it, for this node, about exactly these bytes.

    Raises: TransientError("receipt-forged", "receipt-mismatch"): what was delivered is to be proved again.
    """
    if not is_receipt_of(peer, receipt):
        raise TransientError("receipt-forged", f"not signed by {peer.name}")
    promised = (instance.sop_instance_uid, instance.dataset_sha256, instance.pixel_sha256, instance.frames_sha256)
    told = (receipt.sop_instance_uid, receipt.dataset_sha256, receipt.pixel_sha256, receipt.frames_sha256)
    named = [name for name, digest in zip(("dataset", "pixel", "frames"), promised[1:], strict=True) if digest]
    if (receipt.receiver, receipt.sender) != (peer.name, sender) or told != promised or receipt.checked != named:
        raise TransientError("receipt-mismatch", "the receipt is of something else")

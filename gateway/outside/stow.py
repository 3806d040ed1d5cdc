"""STOW-RS to a place outside the region: stored by its own word, or read back and found to be the same.

Source: PS3.18 10.4, 10.5, I.2
"""

import json
import threading
from collections.abc import Iterator
from tempfile import NamedTemporaryFile
from typing import Any, BinaryIO, Final

import httpx
import structlog

from gateway import registry
from gateway.envelope import OutsideDestination
from gateway.models import Delivery
from gateway.outside.web import Service, Stream
from gateway.protocols import Proof
from gateway.rates import PIECE, throttle
from standards.digests import Digests, dataset_sha256, digests
from standards.errors import PermanentError, TransientError
from standards.multipart import OutgoingPart, encode_related, new_boundary, parse_related

log = structlog.get_logger(__name__)

_JSON: Final = "application/dicom+json"
_AS_STORED: Final = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_PLAIN: Final = 'multipart/related; type="application/dicom"'
_FAILED: Final = "00081198"
_REFERENCED: Final = "00081199"
_OUT_OF_RESOURCES: Final = range(0xA700, 0xA800)
_UNREACHABLE: Final = {"unreachable", "busy", "access-refused"}


class StowCarrier:
    """``gateway.protocols.Carrier`` by STOW-RS. The proof is "read-back" where WADO-RS gives the same bytes again, else
    "stored"; ``evidence`` says what was compared."""

    in_flight = 3

    def __init__(self) -> None:
        self._services: dict[tuple[str, str], Service] = {}
        self._lock = threading.Lock()

    def carry(self, delivery: Delivery, destination: OutsideDestination) -> Proof:
        """Store one instance there and have the strongest proof that is to be had.

        Raises: TransientError "unreachable", "storage-full", "stow-failed", "not-found-there"; PermanentError
            "stow-refused", "other-content-there", "source-damaged", "instance-gone", "invalid-setting".
        """
        store = registry.store()
        described = store.describe_instances([delivery.instance_key])
        series = store.describe_series(delivery.series_key)
        if not described or series is None:
            raise PermanentError("instance-gone", "the index no longer has it")
        service = self._service(destination)
        address = (
            f"studies/{delivery.study_instance_uid}/series/{series.series.series_instance_uid}"
            f"/instances/{delivery.sop_instance_uid}"
        )
        with store.open(delivery.instance_key) as file:
            if dataset_sha256(file) != delivery.dataset_sha256:
                raise PermanentError("source-damaged", "the stored file is no longer what was received")
            try:
                sent, warning = self._store(service, delivery, file)
            except (TransientError, PermanentError) as error:
                raise _as_carried(error) from error
        evidence: dict[str, Any] = {"stored_by": "stow-rs", "warning": warning}
        try:
            return self._prove(service, destination, delivery, address, evidence, sent)
        except (TransientError, PermanentError) as error:
            if error.code == "access-refused":
                return Proof("stored", {**evidence, "read_back": "not allowed"}, sent)
            raise _as_carried(error) from error

    def _service(self, destination: OutsideDestination) -> Service:
        key = (destination.name, destination.url)
        with self._lock:
            if key not in self._services:
                timeout = registry.node().network_timeout_seconds
                self._services[key] = Service(destination.name, destination.url, timeout)
            return self._services[key]

    def _store(self, service: Service, delivery: Delivery, file: BinaryIO) -> tuple[int, str]:
        """Bytes that went, and what the other side warns of."""
        boundary = new_boundary()
        kind = f'multipart/related; type="application/dicom"; boundary="{boundary}"'
        part = OutgoingPart({"Content-Type": "application/dicom"}, _pieces(file))
        headers = {"Content-Type": kind, "Accept": _JSON}
        path = f"studies/{delivery.study_instance_uid}"
        with service.ask("POST", path, headers=headers, content=encode_related([part], boundary)) as answer:
            body = answer.read()
        return file.tell(), judged(answer.status_code, body, delivery.sop_instance_uid)

    def _prove(
        self,
        service: Service,
        destination: OutsideDestination,
        delivery: Delivery,
        address: str,
        evidence: dict[str, Any],
        sent: int,
    ) -> Proof:
        if destination.read_back:
            for accept in (_AS_STORED, _PLAIN):
                with service.ask("GET", address, headers={"Accept": accept}) as answer:
                    if answer.status_code == 200:
                        found = self._read(answer)
                        if found.dataset == delivery.dataset_sha256:
                            told = {**evidence, "read_back": "same", "dataset_sha256": found.dataset}
                            return Proof("read-back", told, sent)
                        evidence["read_back"] = _compared(delivery, found)
                        return Proof("stored", evidence, sent)
                    if answer.status_code not in (400, 406, 415):
                        evidence["read_back"] = f"answered {answer.status_code}"
                        break
        if not self._is_listed(service, address, delivery.sop_instance_uid, evidence):
            raise TransientError("not-found-there", "it was taken, and is not listed")
        return Proof("stored", evidence, sent)

    @staticmethod
    def _read(answer: httpx.Response) -> Digests:
        """Digests of what came back."""
        folder = registry.node().data_dir / "spool"
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder) as spool:
            try:
                for part in parse_related(Stream(answer), answer.headers.get("Content-Type", "")):
                    for piece in part:
                        spool.write(piece)
                    break
                spool.flush()
                return digests(spool.name)
            except PermanentError as error:
                raise TransientError("read-back-failed", str(error)) from error

    @staticmethod
    def _is_listed(service: Service, address: str, uid: str, evidence: dict[str, Any]) -> bool:
        """Whether QIDO-RS lists the instance; what does not answer QIDO-RS is believed."""
        path = f"{address.partition('/instances/')[0]}/instances"
        with service.ask("GET", path, parameters={"SOPInstanceUID": uid}, headers={"Accept": _JSON}) as answer:
            body = answer.read()
        if answer.status_code not in (200, 204, 404):
            evidence["listed"] = f"answered {answer.status_code}"
            return True
        rows = _parsed(body) if answer.status_code == 200 else []
        listed = isinstance(rows, list) and any(_value(row, "00080018") == uid for row in rows)
        evidence["listed"] = listed
        return listed


def _compared(delivery: Delivery, found: Digests) -> str:
    """What differs between ours and what came back. Raises: PermanentError("other-content-there")."""
    store = registry.store()
    frames = store.ensure_frames_digest(delivery.instance_key)
    pixels = store.describe_instances([delivery.instance_key])[0].pixel_sha256
    if pixels is None:
        return "other attributes"
    if pixels != found.pixels and (frames is None or frames != found.frames):
        raise PermanentError("other-content-there", "other pixels lie there under this UID")
    return "same pixels, other attributes"


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while piece := file.read(PIECE):
        throttle.take(len(piece))
        yield piece


def judged(status: int, body: bytes, uid: str) -> str:
    """What the answer of a STOW-RS service says of the instance ``uid``: a warning, or "" when it is stored.

    Raises: TransientError "storage-full", "stow-failed"; PermanentError("stow-refused").
    """
    document = _parsed(body)
    answer = document if isinstance(document, dict) else {}
    for item in _items(answer, _FAILED):
        if _value(item, "00081155") in (uid, None):
            reason = int(_value(item, "00081197") or 0)
            if reason in _OUT_OF_RESOURCES:
                raise TransientError("storage-full", f"the other side is out of resources ({reason:04X})")
            raise PermanentError("stow-refused", f"failure reason {reason:04X}")
    for item in _items(answer, _REFERENCED):
        if _value(item, "00081155") == uid:
            warning = _value(item, "00081196")
            return f"warning reason {int(warning):04X}" if warning else ""
    if status == 200 and not answer:
        return "no response module"
    if status in (500, 502, 503, 504, 507, 408, 429):
        raise TransientError("storage-full" if status == 507 else "stow-failed", f"answered {status}")
    raise PermanentError("stow-refused", f"answered {status} and does not name the instance")


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _items(answer: dict[str, Any], tag: str) -> list[dict[str, Any]]:
    value = answer.get(tag)
    items = value.get("Value", []) if isinstance(value, dict) else []
    return [item for item in items if isinstance(item, dict)]


def _value(item: Any, tag: str) -> Any:
    element = item.get(tag) if isinstance(item, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values else None


def _as_carried(error: TransientError | PermanentError) -> TransientError | PermanentError:
    """What keeps all instances from going there pauses the destination, not the instance."""
    return TransientError("unreachable", str(error)) if error.code in _UNREACHABLE else error

"""The receiving end of a delivery: check who sends, check every byte, keep it once, sign what was found."""

import errno
import hashlib
import io
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from tempfile import NamedTemporaryFile
from typing import BinaryIO, cast

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gateway import clock, encoding, queries, registry, uploads
from gateway.envelope import Directory, Receipt
from gateway.keys import keys_of, node_key, sign
from gateway.models import IssuedReceipt, JoinState
from gateway.together import Together
from standards import http_signatures
from standards.digests import Digests, digests
from standards.errors import PermanentError, RegisError, TransientError
from standards.uids import validated_uid

log = structlog.get_logger(__name__)

CHUNK = 1 << 18
SPOOL_KEPT_SECONDS = 86_400
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


def joined() -> JoinState:
    """The join of this node. Raises TransientError("not-joined")."""
    state = JoinState.objects.first()
    if state is None:
        raise TransientError("not-joined", "this node is not joined to a region")
    return state


def sender_of(state: JoinState, method: str, path: str, headers: Mapping[str, str]) -> str:
    """The name of the peer that signed this request.

    Raises: PermanentError "signature-missing", "signature-invalid", "signature-expired", "unknown-key".
    """
    directory = Directory.model_validate(state.directory)
    now = clock.now(state)

    def key_of(name: str) -> list[Ed25519PublicKey] | None:
        return next((keys_of(peer, now) for peer in directory.peers if peer.name == name), None)

    return http_signatures.verify(method, path, headers, key_of, now.timestamp())


def promised(query: Mapping[str, str]) -> Digests:
    """The digests of the sender's ledger. Raises PermanentError("digests-missing")."""
    dataset, pixel, frames = (query.get(name, "") for name in ("dataset", "pixel", "frames"))
    if not _SHA256.fullmatch(dataset) or any(text and not _SHA256.fullmatch(text) for text in (pixel, frames)):
        raise PermanentError("digests-missing", "dataset, pixel and frames are wanted as hexadecimal SHA-256")
    return Digests(dataset, pixel or None, frames or None)


def raw_digest(text: str) -> bytes:
    """The digest of a chunk, as the sender writes it. Raises: PermanentError("bad-upload")."""
    if not _SHA256.fullmatch(text):
        raise PermanentError("bad-upload", "raw is wanted as hexadecimal SHA-256")
    return bytes.fromhex(text)


def receive(
    state: JoinState,
    body: BinaryIO,
    *,
    length: int,
    content_digest: bytes,
    sender: str,
    sop_instance_uid: str,
    ledger: Digests,
    encoded: str = "",
) -> Receipt:
    """Take one instance in; the signed receipt. Nothing is kept unless all digests agree.

    Raises: TransientError "body-cut-short", "body-damaged", "not-restored", "storage-full"; PermanentError
        "digest-mismatch", "body-too-long", "unknown-encoding" and what makes it one that can never be stored.
    """
    sop_instance_uid = validated_uid(sop_instance_uid)
    with _room_for(encoded) as file:
        if encoded:
            file.write(restored(body, length, content_digest, encoded))
        else:
            _take(body, file, length, content_digest)
        found = digests(file)
        if found != ledger:
            raise _mismatch(found, ledger, encoded)
        file.seek(0)
        _, outcome = registry.store().receive(file, source=sender, sop_instance_uid=sop_instance_uid, found=found)
    return issue_receipt(state, sender, sop_instance_uid, found, outcome)


@contextmanager
def _room_for(encoded: str) -> Iterator[BinaryIO]:
    """Memory for what came encoded, which is never long; a file for what came as it is."""
    if encoded:
        yield io.BytesIO()
        return
    spool = registry.node().data_dir / "spool"
    spool.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=spool) as file:
        yield cast(BinaryIO, file)


def _mismatch(found: Digests, ledger: Digests, encoded: str) -> RegisError:
    detail = uploads.differing(found, ledger)
    if encoded and found.dataset != ledger.dataset:
        return TransientError("not-restored", detail)  # the sender sends it as it is then, and that decides
    return PermanentError("digest-mismatch", detail)


def restored(body: BinaryIO, length: int, content_digest: bytes, encoded: str) -> bytes:
    """The stretch of a file that an encoded body stands for. Raises: as ``receive`` does of bodies."""
    if encoded != encoding.NAME:
        raise PermanentError("unknown-encoding", encoded[:32])
    if length > encoding.MOST_RAW + encoding.MOST_RAW // 8:
        raise PermanentError("body-too-long", f"{length} bytes")
    whole = io.BytesIO()
    _take(body, whole, length, content_digest)
    return encoding.decode(whole.getvalue())


def finish(state: JoinState, upload: uploads.Upload, ledger: Digests) -> Receipt:
    """Take in an instance whose chunks are all there; asked again, the same receipt.

    Raises: as ``Upload.whole`` and ``InstanceStore.receive`` do.
    """
    uid, sender = validated_uid(upload.sop_instance_uid), upload.sender
    if (known := known_receipt(sender, uid, ledger.dataset)) is not None:
        upload.remove()
        return known
    with upload.whole(ledger) as data:
        _, outcome = registry.store().receive(data, source=sender, sop_instance_uid=uid, found=ledger)
        receipt = issue_receipt(state, sender, uid, ledger, outcome)
    return receipt


def known_receipt(sender: str, sop_instance_uid: str, dataset_sha256: str) -> Receipt | None:
    """The receipt of an instance that is held here and was receipted to this sender before."""
    known = {"sender": sender, "sop_instance_uid": sop_instance_uid, "dataset_sha256": dataset_sha256}
    issued = IssuedReceipt.objects.filter(**known).first()
    if issued is None or registry.store().find(sop_instance_uid, dataset_sha256) is None:
        return None
    return Receipt.model_validate(issued.receipt)


def _take(body: BinaryIO, spool: BinaryIO, length: int, content_digest: bytes) -> None:
    """Copy the body while hashing it. Raises: TransientError "body-cut-short", "body-damaged", "storage-full"."""
    digest, taken = hashlib.sha256(), 0
    while taken < length and (chunk := _read(body, min(CHUNK, length - taken))):
        digest.update(chunk)
        _spool_write(spool, chunk)
        taken += len(chunk)
    if taken != length:
        raise TransientError("body-cut-short", f"{taken} of {length} bytes came")
    if digest.digest() != content_digest:
        raise TransientError("body-damaged", "the bytes that came are not those that were signed")
    spool.flush()


def _read(body: BinaryIO, count: int) -> bytes:
    try:
        return body.read(count)
    except OSError as error:
        raise TransientError("body-cut-short", str(error)) from error


def _spool_write(spool: BinaryIO, data: bytes) -> None:
    try:
        spool.write(data)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TransientError("storage-full", "no room to take the instance in") from error
        raise


def issue_receipt(state: JoinState, sender: str, sop_instance_uid: str, found: Digests, outcome: str) -> Receipt:
    """The signed receipt for an instance that is kept; asked again, the same one."""
    receipt = Receipt(
        receiver=state.name,
        sender=sender,
        sop_instance_uid=sop_instance_uid,
        dataset_sha256=found.dataset,
        pixel_sha256=found.pixels,
        frames_sha256=found.frames,
        checked=[
            name
            for name, digest in (("dataset", found.dataset), ("pixel", found.pixels), ("frames", found.frames))
            if digest
        ],
        received_at=clock.now(state),
        outcome=outcome,  # type: ignore[arg-type]  # pydantic checks the word
    )
    signature = sign(node_key(registry.node().data_dir), receipt.signed_text())
    return _issue(receipt.model_copy(update={"signature": signature}))


def _write_receipts(receipts: list[Receipt]) -> list[Receipt]:
    """Keep them, and give for each the one that counts: the one that was issued first."""
    issued = []
    for receipt in receipts:
        row, _ = IssuedReceipt.objects.get_or_create(
            sender=receipt.sender,
            sop_instance_uid=receipt.sop_instance_uid,
            dataset_sha256=receipt.dataset_sha256,
            defaults={"receipt": receipt.model_dump(mode="json")},
        )
        issued.append(Receipt.model_validate(row.receipt))
    return issued


_issue = Together(_write_receipts)


def clean_spool() -> int:
    """Remove what a killed process left in the spool a day ago or longer, and uploads that nobody goes on with."""
    limit, removed = time.time() - SPOOL_KEPT_SECONDS, 0
    for path in (registry.node().data_dir / "spool").glob("tmp*"):
        if path.stat().st_mtime < limit:
            path.unlink(missing_ok=True)
            removed += 1
    return removed + uploads.clean(queries.configuration().mirror.upload_hours)

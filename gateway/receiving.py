"""The receiving end of a delivery: check who sends, check every byte, keep it once, sign what was found."""

import errno
import hashlib
import re
import time
from collections.abc import Mapping
from tempfile import NamedTemporaryFile
from typing import BinaryIO, cast

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.db import transaction

from gateway import clock, registry
from gateway.envelope import Directory, Receipt
from gateway.keys import keys_of, node_key, sign
from gateway.models import IssuedReceipt, JoinState
from standards import http_signatures
from standards.digests import Digests, digests
from standards.errors import PermanentError, TransientError
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


def receive(
    state: JoinState,
    body: BinaryIO,
    *,
    length: int,
    content_digest: bytes,
    sender: str,
    sop_instance_uid: str,
    ledger: Digests,
) -> Receipt:
    """Take one instance in; the signed receipt. Nothing is kept unless all digests agree.

    Raises: TransientError "body-cut-short", "body-damaged", "storage-full"; PermanentError "digest-mismatch" and what
        makes an instance one that can never be stored.
    """
    sop_instance_uid = validated_uid(sop_instance_uid)
    spool_dir = registry.node().data_dir / "spool"
    spool_dir.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=spool_dir) as spool:
        _take(body, cast(BinaryIO, spool), length, content_digest)
        found = digests(spool.name)
        if found != ledger:
            differing = [
                name for name in ("dataset", "pixels", "frames") if getattr(found, name) != getattr(ledger, name)
            ]
            raise PermanentError("digest-mismatch", f"of {', '.join(differing)}")
        spool.seek(0)
        _, outcome = registry.store().receive(
            cast(BinaryIO, spool), source=sender, sop_instance_uid=sop_instance_uid, found=found
        )
    return issue_receipt(state, sender, sop_instance_uid, found, outcome)


def _take(body: BinaryIO, spool: BinaryIO, length: int, content_digest: bytes) -> None:
    """Copy the body while hashing it. Raises: TransientError "body-cut-short", "body-damaged", "storage-full"."""
    digest, taken = hashlib.sha256(), 0
    try:
        while taken < length and (chunk := body.read(min(CHUNK, length - taken))):
            digest.update(chunk)
            spool.write(chunk)
            taken += len(chunk)
        spool.flush()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TransientError("storage-full", "no room to take the instance in") from error
        raise TransientError("body-cut-short", str(error)) from error
    if taken != length:
        raise TransientError("body-cut-short", f"{taken} of {length} bytes came")
    if digest.digest() != content_digest:
        raise TransientError("body-damaged", "the bytes that came are not those that were signed")


def issue_receipt(state: JoinState, sender: str, sop_instance_uid: str, found: Digests, outcome: str) -> Receipt:
    """The signed receipt for an instance that is kept; asked again, the same one."""
    known = {"sender": sender, "sop_instance_uid": sop_instance_uid, "dataset_sha256": found.dataset}
    with transaction.atomic():
        issued = IssuedReceipt.objects.filter(**known).first()
        if issued is None:
            receipt = Receipt(
                receiver=state.name,
                pixel_sha256=found.pixels,
                frames_sha256=found.frames,
                checked=[
                    name
                    for name, digest in (("dataset", found.dataset), ("pixel", found.pixels), ("frames", found.frames))
                    if digest
                ],
                received_at=clock.now(state),
                outcome=outcome,  # type: ignore[arg-type]  # pydantic checks the word
                **known,
            )
            signature = sign(node_key(registry.node().data_dir), receipt.signed_text())
            receipt = receipt.model_copy(update={"signature": signature})
            issued, _ = IssuedReceipt.objects.get_or_create(
                **known, defaults={"receipt": receipt.model_dump(mode="json")}
            )
    return Receipt.model_validate(issued.receipt)


def clean_spool() -> int:
    """Remove what a killed process left in the spool a day ago or longer; how many files."""
    limit, removed = time.time() - SPOOL_KEPT_SECONDS, 0
    for path in (registry.node().data_dir / "spool").glob("tmp*"):
        if path.stat().st_mtime < limit:
            path.unlink(missing_ok=True)
            removed += 1
    return removed

"""Ed25519 keys that lie in files, and signatures made and checked with such keys (RFC 8032).

Public keys and signatures travel as text: unpadded base64url for keys (as ``standards.tokens`` has it), base64 for
signatures.
"""

import os
from base64 import b64decode, b64encode
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gateway.envelope import Peer, Receipt
from standards.errors import PermanentError
from standards.tokens import (
    generate_key,
    private_key_from_pem,
    private_key_to_pem,
    public_key_from_text,
    public_key_to_text,
)


def private_key(path: Path) -> Ed25519PrivateKey:
    """The private key in ``path`` (PEM, mode 0600), made at first use; two processes starting at once agree on one.

    A file that is replaced by another is read again: the other process of a node may have changed the key.

    Raises: PermanentError("invalid-key") when the file holds something else.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        _make(path)
        found = path.stat()
    return _read(path, found.st_ino, found.st_mtime_ns)


@lru_cache(maxsize=64)
def _read(path: Path, inode: int, changed_ns: int) -> Ed25519PrivateKey:
    return private_key_from_pem(path.read_bytes())


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(private_key_to_pem(generate_key()))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(fresh, path)
    except FileExistsError:
        pass  # the other process was first; its key counts
    finally:
        fresh.unlink()
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def key_path(data_dir: Path) -> Path:
    """Where the key of the node lies whose data lie in ``data_dir``."""
    return data_dir / "secrets" / "federation.pem"


def node_key(data_dir: Path) -> Ed25519PrivateKey:
    """The key of the node whose data lie in ``data_dir``."""
    return private_key(key_path(data_dir))


def keys_of(peer: Peer, moment: datetime) -> list[Ed25519PublicKey]:
    """The keys that a request of the peer may be signed with at this moment: the present one and those just left."""
    texts = [peer.public_key, *(former.public_key for former in peer.former_keys if moment < former.until)]
    return [public_key_from_text(text) for text in texts]


def is_receipt_of(peer: Peer, receipt: Receipt) -> bool:
    """Whether the peer signed the receipt, with its present key or, at that time, with one that it left since."""
    texts = [peer.public_key, *(old.public_key for old in peer.former_keys if receipt.received_at < old.until)]
    return any(is_signed(text, receipt.signature, receipt.signed_text()) for text in texts)


def public_text(key: Ed25519PrivateKey) -> str:
    """The public half as peers know it."""
    return public_key_to_text(key.public_key())


def sign(key: Ed25519PrivateKey, text: bytes) -> str:
    """The signature of ``text``."""
    return b64encode(key.sign(text)).decode("ascii")


def is_signed(public: str, signature: str, text: bytes) -> bool:
    """Whether ``signature`` is that of ``text`` by the owner of the key ``public``."""
    try:
        public_key_from_text(public).verify(b64decode(signature, validate=True), text)
    except (InvalidSignature, ValueError, PermanentError):
        return False
    return True

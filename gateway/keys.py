"""Ed25519 keys that lie in files, and signatures made and checked with such keys (RFC 8032).

Public keys and signatures travel as text: unpadded base64url for keys (as ``standards.tokens`` has it), base64 for
signatures.
"""

import os
from base64 import b64decode, b64encode
from functools import cache
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from standards.errors import PermanentError
from standards.tokens import (
    generate_key,
    private_key_from_pem,
    private_key_to_pem,
    public_key_from_text,
    public_key_to_text,
)


@cache
def private_key(path: Path) -> Ed25519PrivateKey:
    """The private key in ``path`` (PEM, mode 0600), made at first use; two processes starting at once agree on one.

    Raises: PermanentError("invalid-key") when the file holds something else.
    """
    try:
        return private_key_from_pem(path.read_bytes())
    except FileNotFoundError:
        pass
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
    return private_key_from_pem(path.read_bytes())


def node_key(data_dir: Path) -> Ed25519PrivateKey:
    """The key of the node whose data lie in ``data_dir``."""
    return private_key(data_dir / "secrets" / "federation.pem")


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

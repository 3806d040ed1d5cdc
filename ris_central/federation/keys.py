"""The key of the centre that signs image tokens, and the tokens."""

import hashlib
from collections.abc import Iterable
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.keys import private_key, public_text
from ris_central.config import config
from standards.tokens import issue_image_token


def signing_key() -> Ed25519PrivateKey:
    """The key that signs image tokens; made at first use in the centre's secrets."""
    return private_key(config().data_dir / "secrets" / "image-tokens.pem")


def kid() -> str:
    """The name of the signing key: the start of the hash of its public half."""
    return hashlib.sha256(public_text(signing_key()).encode("ascii")).hexdigest()[:16]


def token_keys() -> dict[str, str]:
    """What nodes verify image tokens with: kid to public key."""
    return {kid(): public_text(signing_key())}


def image_token(subject: str, studies: Iterable[str], operations: Iterable[str], audience: str) -> tuple[str, datetime]:
    """A token with which ``subject`` may do ``operations`` on ``studies`` at the node ``audience``, and its end (UTC).

    Who asks has checked ``visible_to`` before.
    """
    return issue_image_token(
        signing_key(),
        kid(),
        subject=subject,
        audience=audience,
        studies=studies,
        operations=operations,
        ttl=config().image_token_seconds,
    )

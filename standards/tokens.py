"""Keys and the short-lived, study-scoped tokens with which images are fetched (EdDSA JWT).

Source: RFC 7519, RFC 8037
"""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, TypeGuard

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from standards.errors import PermanentError

ALGORITHM: Final = "EdDSA"
TTL_SECONDS: Final = 300
SKEW_SECONDS: Final = 60
ALL_STUDIES: Final = "*"


@dataclass(frozen=True)
class ImageClaims:
    """What a verified token allows: ``operations`` (``read``, …) on ``studies`` (UIDs) for ``subject``."""

    studies: frozenset[str]
    operations: frozenset[str]
    subject: str
    expires: datetime

    def allows(self, operation: str, study_instance_uid: str) -> bool:
        """Whether the operation on that study is covered."""
        return operation in self.operations and (study_instance_uid in self.studies or ALL_STUDIES in self.studies)


def generate_key() -> Ed25519PrivateKey:
    """A new signing key."""
    return Ed25519PrivateKey.generate()


def private_key_to_pem(key: Ed25519PrivateKey) -> str:
    """PKCS #8 PEM, not encrypted: the file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode("ascii")


def private_key_from_pem(pem: str | bytes) -> Ed25519PrivateKey:
    """Raises: PermanentError("invalid-key")."""
    try:
        key = serialization.load_pem_private_key(pem.encode() if isinstance(pem, str) else pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise PermanentError("invalid-key", "not a PEM private key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise PermanentError("invalid-key", "not an Ed25519 key")
    return key


def public_key_to_text(key: Ed25519PublicKey) -> str:
    """The 32 bytes in unpadded base64url, as in a JWK's ``x``."""
    return base64.urlsafe_b64encode(key.public_bytes_raw()).rstrip(b"=").decode("ascii")


def public_key_from_text(text: str) -> Ed25519PublicKey:
    """Raises: PermanentError("invalid-key")."""
    try:
        raw = base64.b64decode(text.strip() + "=" * (-len(text.strip()) % 4), altchars=b"-_", validate=True)
        return Ed25519PublicKey.from_public_bytes(raw)
    except ValueError as error:
        raise PermanentError("invalid-key", "not an Ed25519 public key") from error


def issue_image_token(
    key: Ed25519PrivateKey,
    kid: str,
    *,
    subject: str,
    audience: str,
    studies: Iterable[str],
    operations: Iterable[str],
    ttl: int = TTL_SECONDS,
) -> tuple[str, datetime]:
    """A token for the node ``audience`` and the time it expires (UTC)."""
    now = datetime.now(UTC).replace(microsecond=0)
    expires = now + timedelta(seconds=ttl)
    claims = {
        "sub": subject,
        "aud": audience,
        "iat": now,
        "exp": expires,
        "studies": sorted(set(studies)),
        "operations": sorted(set(operations)),
    }
    return jwt.encode(claims, key, algorithm=ALGORITHM, headers={"kid": kid}), expires


def verify_image_token(token: str, keys: Mapping[str, Ed25519PublicKey], audience: str) -> ImageClaims:
    """The claims of a token that is signed by one of ``keys``, meant for ``audience`` and in its time (± 60 s).

    Raises: PermanentError "token-expired", "token-wrong-audience", "token-invalid".
    """
    try:
        kid = jwt.get_unverified_header(token).get("kid")
        if not isinstance(kid, str) or kid not in keys:
            raise PermanentError("token-invalid", "signed with an unknown key")
        claims = jwt.decode(
            token,
            keys[kid],
            algorithms=[ALGORITHM],
            audience=audience,
            leeway=SKEW_SECONDS,
            options={"require": ["exp", "iat", "aud", "sub"]},
        )
    except jwt.ExpiredSignatureError as error:
        raise PermanentError("token-expired") from error
    except (jwt.InvalidAudienceError, jwt.MissingRequiredClaimError) as error:
        wrong = isinstance(error, jwt.InvalidAudienceError) or error.claim == "aud"
        raise PermanentError("token-wrong-audience" if wrong else "token-invalid") from error
    except jwt.PyJWTError as error:
        raise PermanentError("token-invalid", str(error)) from error
    studies, operations, subject = claims.get("studies"), claims.get("operations"), claims["sub"]
    if not _are_texts(studies) or not _are_texts(operations) or not isinstance(subject, str):
        raise PermanentError("token-invalid", "claims of the wrong type")
    return ImageClaims(
        frozenset(studies), frozenset(operations), subject, datetime.fromtimestamp(float(claims["exp"]), UTC)
    )


def _are_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)

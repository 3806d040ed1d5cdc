"""Signed HTTP requests: Ed25519 over method, path with query, and the digest of the body.

The smallest subset of RFC 9421 that binds those three, with RFC 9530's Content-Digest: one signature, labelled
``regis``, over ``@method``, ``@path``, ``@query`` and ``content-digest`` with ``created``, ``keyid`` and ``alg``.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from standards.errors import PermanentError

SKEW_SECONDS: Final = 300
EMPTY_BODY_SHA256: Final = hashlib.sha256(b"").digest()

_COMPONENTS: Final = '("@method" "@path" "@query" "content-digest")'
_INPUT = re.compile(
    r"regis=(?P<params>"
    + re.escape(_COMPONENTS)
    + r';created=(?P<created>\d{1,12});keyid="(?P<keyid>[A-Za-z0-9._:-]{1,128})";alg="ed25519")',
    re.ASCII,
)
_SIGNATURE = re.compile(r"regis=:([A-Za-z0-9+/]{86}==):", re.ASCII)
_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):", re.ASCII)
_KEYID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)


def sign(
    method: str, path_with_query: str, body_sha256: bytes, key: Ed25519PrivateKey, keyid: str, created: int
) -> dict[str, str]:
    """The headers Content-Digest, Signature-Input and Signature for a request.

    ``body_sha256`` is the raw digest of the body (32 bytes), ``created`` in seconds since 1970. ``path_with_query`` is
    what stands in the request line.

    Raises: ValueError for a digest or key id that cannot be sent.
    """
    if len(body_sha256) != 32 or not _KEYID.fullmatch(keyid):
        raise ValueError("a SHA-256 digest and a plain key id are needed")
    digest = f"sha-256=:{base64.b64encode(body_sha256).decode('ascii')}:"
    params = f'{_COMPONENTS};created={created};keyid="{keyid}";alg="ed25519"'
    signature = key.sign(_base(method, path_with_query, digest, params))
    return {
        "Content-Digest": digest,
        "Signature-Input": f"regis={params}",
        "Signature": f"regis=:{base64.b64encode(signature).decode('ascii')}:",
    }


def verify(
    method: str,
    path_with_query: str,
    headers: Mapping[str, str],
    key_lookup: Callable[[str], Ed25519PublicKey | Iterable[Ed25519PublicKey] | None],
    now: float,
    skew: int = SKEW_SECONDS,
) -> str:
    """The key id whose signature covers this request; the caller still compares :func:`content_digest` to the body.

    Header names are matched whatever their case. ``key_lookup`` gives the key of a key id, or all that count for it;
    they are drawn until one fits.

    Raises: PermanentError "signature-missing", "signature-invalid", "signature-expired", "unknown-key".
    """
    given = _lower(headers)
    if "signature-input" not in given or "signature" not in given:
        raise PermanentError("signature-missing")
    described = _INPUT.fullmatch(given["signature-input"].strip())
    signature = _SIGNATURE.fullmatch(given["signature"].strip())
    if not described or not signature:
        raise PermanentError("signature-invalid", "not the form that is agreed on")
    content_digest(headers)
    if abs(now - int(described["created"])) > skew:
        raise PermanentError("signature-expired", f"made at {described['created']}")
    found = key_lookup(described["keyid"])
    if not found:
        raise PermanentError("unknown-key", described["keyid"])
    publics = [found] if isinstance(found, Ed25519PublicKey) else found
    base = _base(method, path_with_query, given["content-digest"].strip(), described["params"])
    if not any(_fits(public, base64.b64decode(signature[1]), base) for public in publics):
        raise PermanentError("signature-invalid", "does not fit the request")
    return described["keyid"]


def created_at(headers: Mapping[str, str]) -> int | None:
    """When the request says that it was signed, in seconds since 1970; None where it does not say."""
    described = _INPUT.fullmatch(_lower(headers).get("signature-input", "").strip())
    return int(described["created"]) if described else None


def _fits(public: Ed25519PublicKey, signature: bytes, base: bytes) -> bool:
    try:
        public.verify(signature, base)
    except InvalidSignature:
        return False
    return True


def content_digest(headers: Mapping[str, str]) -> bytes:
    """The SHA-256 (32 bytes) the Content-Digest header promises of the body.

    Raises: PermanentError "signature-missing", "signature-invalid".
    """
    value = _lower(headers).get("content-digest")
    if value is None:
        raise PermanentError("signature-missing", "no Content-Digest")
    found = _DIGEST.fullmatch(value.strip())
    if not found:
        raise PermanentError("signature-invalid", "Content-Digest has no sha-256")
    return base64.b64decode(found[1])


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _base(method: str, path_with_query: str, digest: str, params: str) -> bytes:
    path, _, query = path_with_query.partition("?")
    lines = (
        f'"@method": {method.upper()}',
        f'"@path": {path or "/"}',
        f'"@query": ?{query}',
        f'"content-digest": {digest}',
        f'"@signature-params": {params}',
    )
    return "\n".join(lines).encode("utf-8")

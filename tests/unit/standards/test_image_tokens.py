"""Tokens for images and signatures of requests: only the right key, audience, time and content pass."""

import base64
import hashlib
import json
import time
from collections.abc import Mapping

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from standards.errors import PermanentError
from standards.http_signatures import EMPTY_BODY_SHA256, content_digest, sign, verify
from standards.tokens import (
    generate_key,
    issue_image_token,
    private_key_from_pem,
    private_key_to_pem,
    public_key_from_text,
    public_key_to_text,
    verify_image_token,
)

KEY = generate_key()
KEYS: Mapping[str, Ed25519PublicKey] = {"k1": KEY.public_key()}
BODY = hashlib.sha256(b'{"a": 1}').digest()
NOW = 1_795_000_000


def issue(ttl: int = 300, audience: str = "node-a") -> str:
    """A token for study 1.2.3."""
    token, _ = issue_image_token(
        KEY, "k1", subject="user-7", audience=audience, studies=["1.2.3"], operations=["read"], ttl=ttl
    )
    return token


def test_a_token_says_who_may_do_what_on_which_study() -> None:
    claims = verify_image_token(issue(), KEYS, "node-a")
    assert claims.subject == "user-7"
    assert claims.allows("read", "1.2.3")
    assert not claims.allows("read", "1.2.4")
    assert not claims.allows("write", "1.2.3")
    assert 290 < claims.expires.timestamp() - time.time() <= 300


def test_clocks_may_differ_by_a_minute_and_no_more() -> None:
    assert verify_image_token(issue(ttl=-50), KEYS, "node-a").subject == "user-7"
    with pytest.raises(PermanentError, match="token-expired"):
        verify_image_token(issue(ttl=-70), KEYS, "node-a")


def test_a_token_of_another_node_is_refused() -> None:
    with pytest.raises(PermanentError, match="token-wrong-audience"):
        verify_image_token(issue(audience="node-b"), KEYS, "node-a")


def forged(**replaced: object) -> str:
    """A token signed with our key whose claims are not what we issue."""
    now = int(time.time())
    claims = {"sub": "u", "aud": "node-a", "iat": now, "exp": now + 60, "studies": ["1.2"], "operations": ["read"]}
    claims |= replaced
    return jwt.encode({k: v for k, v in claims.items() if v is not None}, KEY, "EdDSA", headers={"kid": "k1"})


@pytest.mark.parametrize("token", ["", "a.b.c", "ü.ü.ü"])
def test_what_is_no_token_is_invalid(token: str) -> None:
    with pytest.raises(PermanentError, match="token-invalid"):
        verify_image_token(token, KEYS, "node-a")


@pytest.mark.parametrize(
    "replaced",
    [{"studies": "1.2"}, {"operations": None}, {"exp": None}, {"sub": None}, {"iat": int(time.time()) + 86_400}],
)
def test_a_token_of_another_form_is_invalid(replaced: dict[str, object]) -> None:
    with pytest.raises(PermanentError, match="token-invalid"):
        verify_image_token(forged(**replaced), KEYS, "node-a")


def test_another_key_another_algorithm_and_changed_claims_are_invalid() -> None:
    header, claims, signature = issue().split(".")
    widened = json.loads(base64.urlsafe_b64decode(claims + "==")) | {"studies": ["*"]}
    changed = base64.urlsafe_b64encode(json.dumps(widened).encode()).rstrip(b"=").decode()
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none","kid":"k1"}').rstrip(b"=").decode()
    symmetric = jwt.encode({"aud": "node-a"}, "x" * 64, "HS256", headers={"kid": "k1"})
    for token in (f"{header}.{changed}.{signature}", f"{unsigned}.{claims}.", symmetric):
        with pytest.raises(PermanentError, match="token-invalid"):
            verify_image_token(token, KEYS, "node-a")
    for keys in ({}, {"k2": KEY.public_key()}, {"k1": generate_key().public_key()}):
        with pytest.raises(PermanentError, match="token-invalid"):
            verify_image_token(issue(), keys, "node-a")


def test_keys_survive_being_written_down() -> None:
    read = private_key_from_pem(private_key_to_pem(KEY))
    public = public_key_from_text(public_key_to_text(read.public_key()))
    assert verify_image_token(issue(), {"k1": public}, "node-a").subject == "user-7"
    for text in ("", "AAAA", "я" * 43):
        with pytest.raises(PermanentError, match="invalid-key"):
            public_key_from_text(text)
    with pytest.raises(PermanentError, match="invalid-key"):
        private_key_from_pem("no key")


def signed(path: str = "/federation/v1/events?after=5") -> dict[str, str]:
    """The headers of a signed request."""
    return sign("POST", path, BODY, KEY, "node-a.1", NOW)


def lookup(keyid: str) -> Ed25519PublicKey | None:
    """The registry of one node."""
    return KEY.public_key() if keyid == "node-a.1" else None


def test_a_signed_request_names_its_sender_and_its_body() -> None:
    headers = {name.lower(): value for name, value in signed().items()}
    assert verify("post", "/federation/v1/events?after=5", headers, lookup, NOW + 10) == "node-a.1"
    assert content_digest(headers) == BODY


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/federation/v1/events?after=5"),
        ("POST", "/federation/v1/events?after=6"),
        ("POST", "/federation/v1/events"),
        ("POST", "/federation/v1/other?after=5"),
    ],
)
def test_a_signature_fits_one_request_only(method: str, path: str) -> None:
    with pytest.raises(PermanentError, match="signature-invalid"):
        verify(method, path, signed(), lookup, NOW)


def test_a_changed_digest_or_signature_is_refused() -> None:
    headers = signed()
    other = sign("POST", "/federation/v1/events?after=5", EMPTY_BODY_SHA256, KEY, "node-a.1", NOW)
    for name in ("Content-Digest", "Signature"):
        with pytest.raises(PermanentError, match="signature-invalid"):
            verify("POST", "/federation/v1/events?after=5", headers | {name: other[name]}, lookup, NOW)
    moved = headers | {"Signature-Input": headers["Signature-Input"].replace(str(NOW), str(NOW + 1))}
    with pytest.raises(PermanentError, match="signature-invalid"):
        verify("POST", "/federation/v1/events?after=5", moved, lookup, NOW)


def test_a_signature_that_leaves_out_a_part_is_refused() -> None:
    headers = signed()
    shorter = headers | {"Signature-Input": headers["Signature-Input"].replace(' "content-digest"', "")}
    with pytest.raises(PermanentError, match="signature-invalid"):
        verify("POST", "/federation/v1/events?after=5", shorter, lookup, NOW)


def test_old_future_missing_and_unknown_signatures_are_named() -> None:
    path = "/federation/v1/events?after=5"
    for now in (NOW + 301, NOW - 301):
        with pytest.raises(PermanentError, match="signature-expired"):
            verify("POST", path, signed(), lookup, now)
    with pytest.raises(PermanentError, match="signature-missing"):
        verify("POST", path, {}, lookup, NOW)
    with pytest.raises(PermanentError, match="unknown-key"):
        verify("POST", path, signed(), lambda _: None, NOW)
    with pytest.raises(PermanentError, match="signature-missing"):
        content_digest({})
    with pytest.raises(ValueError, match="key id"):
        sign("GET", "/", BODY, KEY, 'quote"', NOW)

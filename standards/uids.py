"""DICOM unique identifiers: check them before they become paths, make new ones."""

import re
import uuid

from standards.errors import PermanentError

MAX_LENGTH = 64

# Leading zeros in a component break PS3.5 9.1, yet scanners send them; the characters and the length are never relaxed.
_ACCEPTABLE = re.compile(r"[0-9]+(?:\.[0-9]+)*", re.ASCII)
_STRICT = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))*", re.ASCII)


def is_valid_uid(text: str, *, strict: bool = False) -> bool:
    """Whether ``text`` is digits in components separated by single dots, 1 to 64 characters.

    With ``strict`` components with leading zeros are refused too, as PS3.5 says; without it they pass,
    because scanners in daily use send them. No other character passes in either mode.

    Source: PS3.5 9.1
    """
    pattern = _STRICT if strict else _ACCEPTABLE
    return 0 < len(text) <= MAX_LENGTH and pattern.fullmatch(text) is not None


def validated_uid(text: str) -> str:
    """The UID without its padding, safe as one path segment (digits and dots, no empty component).

    Raises: PermanentError("invalid-uid").
    """
    uid = text.rstrip("\0 ")
    if not is_valid_uid(uid):
        raise PermanentError("invalid-uid", f"'{named(uid)}' is not a DICOM UID")
    return uid


def named(text: str) -> str:
    """What stands in place of a UID, for a log: in a shifted data set that may be a name, so letters are not shown."""
    return re.sub("[^0-9.]", "?", text[:80])


def new_uid() -> str:
    """A new UID from a random UUID under the root 2.25, at most 44 characters.

    Source: PS3.5 B.2
    """
    return f"2.25.{uuid.uuid4().int}"

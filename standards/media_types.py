"""Accept headers of DICOMweb and the choice among what a server can give.

Source: RFC 9110 12.5.1
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from standards import transfer_syntaxes

DICOM: Final = "application/dicom"
DICOM_JSON: Final = "application/dicom+json"
OCTET_STREAM: Final = "application/octet-stream"
MULTIPART_RELATED: Final = "multipart/related"
_NATIVE_LITTLE: Final = (
    transfer_syntaxes.IMPLICIT_VR_LITTLE_ENDIAN,
    transfer_syntaxes.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    transfer_syntaxes.ENCAPSULATED_UNCOMPRESSED,
)

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_MEDIA = re.compile(rf"\s*({_NAME})/({_NAME})\s*")
_PARAMETER = re.compile(rf";\s*({_NAME})\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^;,\"\s]*))\s*")
MAX_HEADER: Final = 16_384


@dataclass(frozen=True)
class MediaType:
    """A media type or range; parameter names are lower-case, ``q`` is not among them."""

    type: str
    parameters: tuple[tuple[str, str], ...] = field(default=())
    q: float = 1.0

    def parameter(self, name: str) -> str:
        """The parameter's value, "" if absent."""
        return dict(self.parameters).get(name, "")

    @property
    def inner(self) -> str:
        """The type of the parts for multipart/related, else the type itself."""
        return self.parameter("type").lower() if self.type == MULTIPART_RELATED else self.type


@dataclass(frozen=True)
class Offer:
    """Something the server can give: a media type (of the parts, with ``multipart``) in a transfer syntax.

    ``transfer_syntax`` is "" where none applies (JSON, JPEG). ``stored`` marks what needs no transcoding.
    """

    type: str
    transfer_syntax: str = ""
    multipart: bool = False
    stored: bool = False


def parse(text: str) -> list[MediaType]:
    """The media ranges of an Accept header (or one Content-Type) in their order; unreadable entries are left out."""
    found: list[MediaType] = []
    position = 0
    text = text[:MAX_HEADER]
    while position < len(text):
        media = _MEDIA.match(text, position)
        if not media:
            position = _next_comma(text, position)
            continue
        position = media.end()
        parameters: list[tuple[str, str]] = []
        while parameter := _PARAMETER.match(text, position):
            name, quoted, plain = parameter.groups()
            parameters.append((name.lower(), re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain))
            position = parameter.end()
        if position < len(text) and text[position] != ",":
            position = _next_comma(text, position)
            continue
        position += 1
        kept = tuple((name, value) for name, value in parameters if name != "q")
        found.append(MediaType(f"{media[1]}/{media[2]}".lower(), kept, _quality(dict(parameters).get("q"))))
    return found


def _next_comma(text: str, position: int) -> int:
    comma = text.find(",", position)
    return len(text) if comma < 0 else comma + 1


def _quality(text: str | None) -> float:
    if text is None:
        return 1.0
    return min(1.0, float(text)) if re.fullmatch(r"\d(\.\d{0,3})?", text, re.ASCII) else 0.0


def negotiate(accept: str | None, offers: Sequence[Offer], *, default_transfer_syntax: str = "") -> Offer | None:
    """The best offer for an Accept header, or None, which is 406; no header takes the first offer.

    A range that names no transfer syntax means ``default_transfer_syntax`` if one is given, else any; ``*`` takes the
    stored one if offered. Equal quality is decided by the client's order, then by the server's.
    """
    if accept is None or not accept.strip():
        return offers[0] if offers else None
    best: tuple[float, int, int, int] | None = None
    chosen: Offer | None = None
    for order, wanted in enumerate(parse(accept)):
        if wanted.q <= 0:
            continue
        for rank, offer in enumerate(offers):
            if not _fits(wanted, offer, default_transfer_syntax) or _excluded(accept, offer):
                continue
            preference = 1 if offer.stored else 0
            key = (wanted.q, -order, preference, -rank)
            if best is None or key > best:
                best, chosen = key, offer
    return chosen


def _fits(wanted: MediaType, offer: Offer, default_transfer_syntax: str) -> bool:
    if wanted.type == "*/*":
        return True
    multipart = wanted.type == MULTIPART_RELATED
    if multipart != offer.multipart:
        return False
    if not _type_fits(wanted.inner or "*/*", offer.type):
        return False
    asked = wanted.parameter("transfer-syntax")
    if asked == "*" or not offer.transfer_syntax:
        return True
    if not asked:
        return not default_transfer_syntax or offer.transfer_syntax == default_transfer_syntax
    return asked == offer.transfer_syntax


def _type_fits(wanted: str, offered: str) -> bool:
    if wanted in ("*/*", offered):
        return True
    return wanted.endswith("/*") and offered.startswith(wanted[:-1])


def _excluded(accept: str, offer: Offer) -> bool:
    return any(
        wanted.q == 0 and wanted.type == offer.type and not wanted.parameters and not offer.multipart
        for wanted in parse(accept)
    )


def frame_offers(stored_syntax: str, decodable: bool) -> list[Offer]:
    """How a frame can be given: as stored, and where it can be decoded also as native little-endian bytes.

    What is native little-endian already is called Explicit VR Little Endian: no other is used in web services.
    Source: PS3.18 8.7.3
    """
    if stored_syntax in _NATIVE_LITTLE:
        stored_syntax = transfer_syntaxes.EXPLICIT_VR_LITTLE_ENDIAN
    stored = Offer(transfer_syntaxes.frame_media_type(stored_syntax), stored_syntax, multipart=True, stored=True)
    offers = [stored]
    if stored.type != OCTET_STREAM:
        # Viewers ask for octet-stream with transfer-syntax=* and mean the stored bytes whatever they are.
        offers.append(Offer(OCTET_STREAM, stored_syntax, multipart=True, stored=True))
    if decodable and stored_syntax != transfer_syntaxes.EXPLICIT_VR_LITTLE_ENDIAN:
        offers.append(Offer(OCTET_STREAM, transfer_syntaxes.EXPLICIT_VR_LITTLE_ENDIAN, multipart=True))
    return offers


@dataclass(frozen=True)
class InstanceChoice:
    """How Part 10 files are given: as parts or one by itself, and for each stored transfer syntax the one to send.

    Stored syntaxes that have no acceptable form are not in ``syntaxes``. ``strict``: the client named what it wants, so
    an object that cannot be brought into that form is not to be sent in another one.
    """

    multipart: bool
    syntaxes: Mapping[str, str]
    strict: bool


def instance_choice(
    accept: str | None, stored: Iterable[str], *, single: bool, transcodable: Callable[[str], bool]
) -> InstanceChoice | None:
    """How to answer a request for ``application/dicom``; None is 406.

    A range without a transfer syntax means Explicit VR Little Endian, or what is stored where that is lossy already or
    has no uncompressed form here. ``*`` means as stored. ``single`` says that one instance can come by itself.
    Source: PS3.18 8.7.3.5.2
    """
    syntaxes = sorted(set(stored))
    ranges = parse(accept) if accept and accept.strip() else [MediaType("*/*")]
    wanted = sorted((item for item in ranges if item.q > 0), key=lambda item: -item.q)
    for multipart in _forms(wanted, single):
        fitting = [item for item in wanted if _is_dicom(item, multipart)]
        chosen = {}
        for syntax in syntaxes:
            for item in fitting:
                given = _given(item.parameter("transfer-syntax"), syntax, transcodable)
                if given:
                    chosen[syntax] = given
                    break
        if chosen:
            named = all(item.parameter("transfer-syntax") not in ("", "*") for item in fitting)
            return InstanceChoice(multipart, chosen, named)
    return None


def _forms(wanted: Sequence[MediaType], single: bool) -> list[bool]:
    forms: list[bool] = []
    for item in wanted:
        by_itself = item.type in (DICOM, "application/*")
        if by_itself and single and False not in forms:
            forms.append(False)
        if not by_itself and True not in forms:
            forms.append(True)
    return forms


def _is_dicom(item: MediaType, multipart: bool) -> bool:
    if item.type == "*/*":
        return multipart
    return (item.type == MULTIPART_RELATED) == multipart and _type_fits(item.inner or "*/*", DICOM)


def _given(asked: str, stored: str, transcodable: Callable[[str], bool]) -> str:
    explicit = transfer_syntaxes.EXPLICIT_VR_LITTLE_ENDIAN
    if asked in ("*", stored):
        return stored
    if asked == explicit:
        return explicit if transcodable(stored) else ""
    if asked:
        return ""
    return stored if transfer_syntaxes.is_lossy(stored) or not transcodable(stored) else explicit


def content_type(offer: Offer, boundary: str = "") -> str:
    """The Content-Type header for a response that gives ``offer``."""
    syntax = f"; transfer-syntax={offer.transfer_syntax}" if offer.transfer_syntax else ""
    if offer.multipart:
        return f'multipart/related; type="{offer.type}"{syntax}; boundary={boundary}'
    return f"{offer.type}{syntax}"


def types_of(accept: str | None) -> Iterable[str]:
    """The inner types an Accept header names, for an error message."""
    return (media.inner or media.type for media in parse(accept or ""))

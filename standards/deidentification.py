"""De-identification by the Basic Application Level Confidentiality Profile, stricter where its table says nothing.

What Table E.1-1 names is done as it says, at every depth; of what it does not name, texts are kept by a short list and
replaced otherwise, dates and times are replaced, private elements, overlays and curves go. Identifiers and UIDs become
pseudonyms that are the same for the same secret. Source: PS3.15 E.1, E.2, PS3.3 C.12.1.1.7
"""

import hashlib
import hmac
import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Final

from standards.charsets import TEXT_VRS
from standards.data_dictionary import dictionary_vr
from standards.dataset_editing import REMOVE, Element, edit, elements
from standards.errors import PermanentError
from standards.sop_classes import STORAGE_SOP_CLASSES

_PROFILE: Final = tomllib.loads(Path(__file__).with_name("confidentiality_profile.toml").read_text(encoding="utf-8"))
EDITION: Final[str] = _PROFILE["edition"]
ACTIONS: Final[dict[int, str]] = {int(tag, 16): action for tag, action in _PROFILE["actions"].items()}
"""Tag → action of the profile: X remove, Z empty, D dummy, U another UID, or several of which the IOD decides."""
_REQUIRED: Final[dict[int, dict[str, str]]] = {int(tag, 16): kinds for tag, kinds in _PROFILE["required"].items()}

_METHOD: Final = f"Regis, PS3.15 {EDITION} Basic Profile"
_CODED: Final = ("113100", "DCM", "Basic Application Confidentiality Profile")

_SOP_CLASS: Final = 0x00080016
_IMAGE_TYPE: Final = 0x00080008
_STUDY: Final = 0x0020000D
_PATIENT_NAME: Final = 0x00100010
_PATIENT_ID: Final = 0x00100020
_BURNED_IN: Final = 0x00280301
_ICC_PROFILE: Final = 0x00282000
_ROOT: Final = "1.2.840.10008.5.1.4.1.1"
_TEXT_BURNED_IN: Final = (f"{_ROOT}.7.", f"{_ROOT}.6.", f"{_ROOT}.3.")
"""Secondary capture, ultrasound and multi-frame ultrasound: names are drawn into their pixels as a rule."""
_NOT_CLEANED: Final = (
    f"{_ROOT}.88.",  # structured reports
    f"{_ROOT}.104.",  # encapsulated PDF, CDA, STL
    f"{_ROOT}.77.1.",  # visible light: faces
    f"{_ROOT}.9.",  # waveforms
    f"{_ROOT}.11.",  # presentation states: texts and drawings
)

_KEPT_TEXTS: Final = frozenset(
    {
        0x00080070, 0x00081090, 0x00080100, 0x00080102, 0x00080103, 0x00080104, 0x00181020, 0x00181210, 0x00180024,
        0x00189005, 0x00181250, 0x00181251, 0x00281054, 0x00281055, 0x00283003,
    }
)  # fmt: skip
"""Maker, model, codes, software, kernel, sequence, coils, explanations of windows and tables."""
_DUMMIES: Final = {
    "DA": b"19000101", "TM": b"000000", "DT": b"19000101000000", "AS": b"000D", "DS": b"0 ", "IS": b"0 ",
    "OB": b"\0\0", "UR": b"urn:anon",
}  # fmt: skip
_DUMMY_TEXT: Final = b"ANON"
_REPLACED_VRS: Final = frozenset({*TEXT_VRS, "AE", "AS", "UR", "DA", "TM", "DT"})
"""What the table does not name and may yet tell who or when."""
_WELL_KNOWN: Final = "1.2.840.10008."


def pseudonym_uid(uid: str, secret: bytes) -> str:
    """The UID that always stands for ``uid`` under this secret. Source: PS3.5 B.2"""
    digest = hmac.new(secret, b"uid:" + uid.encode(), hashlib.sha256).digest()
    number = int.from_bytes(digest[:16], "big")
    number = number & ~(0xF << 76) | (0x8 << 76)  # version 8, of one's own making
    number = number & ~(0x3 << 62) | (0x2 << 62)
    return f"2.25.{number}"


def pseudonym(kind: str, value: str, secret: bytes) -> str:
    """Twelve characters that always stand for ``value`` under this secret."""
    return hmac.new(secret, f"{kind}:{value}".encode(), hashlib.sha256).hexdigest()[:12].upper()


def action(tag: int, parent: int | None, sop_class: str) -> str:
    """What the profile does to an element (X, Z, D, U), "" where its table has none. ``parent``: the sequence it is in.

    Of several actions the first holds unless the IOD requires the element: then the value may be empty (type 2), or not
    (type 1). Source: PS3.15 E.1.1
    """
    actions = ACTIONS.get(tag, "").rstrip("*").split("/")
    if len(actions) == 1 or actions[0] != "X":
        return actions[-1]
    kind = _required(tag, parent, sop_class)
    if not kind:
        return "X"
    return "Z" if kind == "2" and "Z" in actions else actions[-1]


@cache
def _required(tag: int, parent: int | None, sop_class: str) -> str:
    """Its type, 1 or 2, in the IOD; "" where it is optional or not there."""
    kinds = _REQUIRED.get(tag, {})
    if parent is not None:
        return kinds.get(f"{parent:08X}", "")
    named = sop_class.removeprefix(_ROOT)
    return next((kind for kind in "12" if named in kinds.get(f"type_{kind}", "").split()), "")


def deidentified(head: bytes, syntax: str, secret: bytes) -> bytes:
    """The part of a data set before its pixels, without what tells who the patient is.

    Raises: PermanentError("not-deidentifiable") where pixels or documents may name the patient, and as ``edit`` does.
    """
    found = elements(head, syntax)
    top = {element.tag: element for element in found if not element.parents}
    _refuse_what_pixels_may_tell(top)
    patient = _plain(top.get(_PATIENT_ID)) or _plain(top.get(_PATIENT_NAME)) or _plain(top.get(_STUDY))
    known = pseudonym("patient", patient, secret)
    sop_class = _plain(top.get(_SOP_CLASS))

    def change(element: Element) -> Any:
        return _changed(element, sop_class, secret)

    return edit(
        head,
        syntax,
        change,
        {
            _PATIENT_NAME: ("PN", _even(f"ANON^{known}")),
            _PATIENT_ID: ("LO", _even(known)),
            0x00120062: ("CS", _even("YES")),
            0x00120063: ("LO", _even(_METHOD)),
            0x00120064: ("SQ", _code_item(syntax)),
            0x00280303: ("CS", _even("REMOVED")),  # Longitudinal Temporal Information Modified
        },
    )


def _refuse_what_pixels_may_tell(top: dict[int, Element]) -> None:
    sop_class = _plain(top.get(_SOP_CLASS))
    burned_in = _plain(top.get(_BURNED_IN)).upper()
    if burned_in == "YES":
        raise PermanentError("not-deidentifiable", "Burned In Annotation says that text is drawn into the pixels")
    if sop_class not in STORAGE_SOP_CLASSES or sop_class.startswith(_NOT_CLEANED):
        raise PermanentError("not-deidentifiable", "objects of this class may name the patient in what they hold")
    screen = "SCREEN SAVE" in _plain(top.get(_IMAGE_TYPE)).upper()
    if (screen or f"{sop_class}.".startswith(_TEXT_BURNED_IN)) and burned_in != "NO":
        raise PermanentError("not-deidentifiable", "text may be drawn into pixels of this kind")
    for tag, element in top.items():
        if tag >> 16 & 0xFF00 == 0x6000 and tag & 0xFFFF == 0x0102 and any(element.value or b""):
            raise PermanentError("not-deidentifiable", "an overlay is drawn into the unused bits of the pixels")


def _changed(element: Element, sop_class: str, secret: bytes) -> Any:
    group = element.tag >> 16
    if group % 2 or group < 0x0008 or 0x5000 <= group <= 0x50FF or 0x6000 <= group <= 0x60FF:
        return REMOVE
    wanted = action(element.tag, element.parents[-1] if element.parents else None, sop_class)
    if wanted == "X":
        return REMOVE
    if element.value is None:
        return b"" if wanted == "Z" else None if element.vr == "SQ" else REMOVE
    vr = element.vr if element.vr != "UN" else dictionary_vr(element.tag) or "UN"
    if wanted == "Z":
        return b""
    if wanted == "D":
        return _dummy(element, vr, secret)
    if not len(element.value):
        return None
    if vr == "UI":
        return _uids(element, secret)
    if vr in _REPLACED_VRS:
        is_kept = element.tag in _KEPT_TEXTS and not _within_dummy(element.parents, sop_class)
        return None if is_kept else _dummy(element, vr, secret)
    if vr == "UN" or (vr == "OB" and element.tag != _ICC_PROFILE):
        return REMOVE
    return None


def _within_dummy(parents: tuple[int, ...], sop_class: str) -> bool:
    """Whether a sequence around it is one of which nothing may stay."""
    return any(action(tag, up, sop_class) == "D" for up, tag in zip((None, *parents), parents, strict=False))


def _dummy(element: Element, vr: str, secret: bytes) -> bytes:
    if vr == "UI":
        return _uids(element, secret)
    if element.tag == _PATIENT_ID:
        return _even(pseudonym("patient", _plain(element), secret))
    return _DUMMIES.get(vr, _DUMMY_TEXT)


def _uids(element: Element, secret: bytes) -> bytes:
    uids = _plain(element).split("\\")
    new = [uid if uid.startswith(_WELL_KNOWN) or not uid else pseudonym_uid(uid, secret) for uid in uids]
    encoded = "\\".join(new).encode()
    return encoded + b"\0" * (len(encoded) % 2)


def _plain(element: Element | None) -> str:
    if element is None or element.value is None:
        return ""
    return bytes(element.value).decode("latin-1").strip(" \0")


def _code_item(syntax: str) -> bytes:
    """The value of (0012,0064): one item that names the profile."""
    value, scheme, meaning = _CODED
    inside = edit(
        b"",
        syntax,
        lambda _: None,
        {
            0x00080100: ("SH", _even(value)),
            0x00080102: ("SH", _even(scheme)),
            0x00080104: ("LO", _even(meaning)),
        },
    )
    order = "big" if syntax == "1.2.840.10008.1.2.2" else "little"
    group, number = (0xFFFE).to_bytes(2, order), (0xE000).to_bytes(2, order)  # type: ignore[arg-type]
    return group + number + len(inside).to_bytes(4, order) + inside  # type: ignore[arg-type]


def _even(text: str) -> bytes:
    return text.encode() + b" " * (len(text) % 2)

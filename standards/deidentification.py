"""De-identification after the Basic Application Level Confidentiality Profile, stricter where that costs little.

Texts are kept by a short list and emptied otherwise; identifiers and UIDs become pseudonyms that are the same for the
same secret; dates, times, private elements, overlays and curves go. Source: PS3.15 E.1, E.2, PS3.3 C.12.1.1.7
"""

import hashlib
import hmac
from typing import Any, Final

from standards.charsets import TEXT_VRS
from standards.dataset_editing import REMOVE, Element, edit, elements
from standards.errors import PermanentError

_METHOD: Final = "Regis, PS3.15 Basic Profile"
_CODED: Final = ("113100", "DCM", "Basic Application Confidentiality Profile")

_SOP_CLASS: Final = 0x00080016
_SOP_INSTANCE: Final = 0x00080018
_PATIENT_NAME: Final = 0x00100010
_PATIENT_ID: Final = 0x00100020
_BURNED_IN: Final = 0x00280301
_TEXT_BURNED_IN: Final = ("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.3.1")
"""Secondary capture, ultrasound and multi-frame ultrasound: names are drawn into their pixels as a rule."""
_NOT_CLEANED: Final = (
    "1.2.840.10008.5.1.4.1.1.88.",  # structured reports
    "1.2.840.10008.5.1.4.1.1.104.",  # encapsulated PDF, CDA, STL
    "1.2.840.10008.5.1.4.1.1.77.1.",  # visible light: faces
    "1.2.840.10008.5.1.4.1.1.9.",  # waveforms
)

_KEPT_TEXTS: Final = frozenset(
    {
        0x00080070, 0x00081090, 0x00080100, 0x00080102, 0x00080104, 0x00180010, 0x00181020, 0x00181210, 0x00180024,
        0x00189005, 0x00181250, 0x00181251, 0x00281054, 0x00281055, 0x00283003,
    }
)  # fmt: skip
"""Maker, model, codes, contrast agent, software, kernel, sequence, coils, explanations of windows and tables."""
_REMOVED: Final = frozenset(
    {
        0x00080082, 0x00080096, 0x00080201, 0x00081032, 0x00081049, 0x00081052, 0x00081062, 0x00081072, 0x00081084,
        0x00081110, 0x00081111, 0x00081120, 0x00100050, 0x00100101, 0x00101002, 0x00101010, 0x00101020, 0x00101030,
        0x00101050, 0x00101100, 0x00321064, 0x00380004, 0x00380500, 0x00400275, 0x00400555, 0x00401101, 0x0040A730,
        0x04000500, 0x04000561, 0x00880200,
    }
)  # fmt: skip
"""Sequences that name people, places or admissions, what a patient weighs and measures, signatures, icons."""
_DUMMY_DATES: Final = {"DA": b"19000101", "TM": b"000000", "DT": b"19000101000000"}
_TYPE_ONE_DATES: Final = frozenset({0x00080023, 0x00080033, 0x0008002A, 0x00189074, 0x00189151})
"""Content date and time, acquisition and reference date time: where they are, they must have a value."""
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


def deidentified(head: bytes, syntax: str, secret: bytes) -> bytes:
    """The part of a data set before its pixels, without what tells who the patient is.

    Raises: PermanentError("not-deidentifiable") where pixels or documents may name the patient, and as ``edit`` does.
    """
    top = {element.tag: element for element in elements(head, syntax) if not element.parents}
    _refuse_what_pixels_may_tell(top)
    patient = _plain(top.get(_PATIENT_ID)) or _plain(top.get(_PATIENT_NAME))
    known = pseudonym("patient", patient, secret)

    def change(element: Element) -> Any:
        return _changed(element, secret)

    return edit(
        head,
        syntax,
        change,
        {
            _PATIENT_NAME: ("PN", f"ANON^{known} "[: len(known) + 5 + (len(known) + 5) % 2].encode()),
            _PATIENT_ID: ("LO", known.encode()),
            0x00120062: ("CS", b"YES "),
            0x00120063: ("LO", _METHOD.encode() + b" " * (len(_METHOD) % 2)),
            0x00120064: ("SQ", _code_item(syntax)),
        },
    )


def _refuse_what_pixels_may_tell(top: dict[int, Element]) -> None:
    sop_class = _plain(top.get(_SOP_CLASS))
    burned_in = _plain(top.get(_BURNED_IN)).upper()
    if burned_in == "YES":
        raise PermanentError("not-deidentifiable", "Burned In Annotation says that text is drawn into the pixels")
    if sop_class.startswith(_TEXT_BURNED_IN) and burned_in != "NO":
        raise PermanentError("not-deidentifiable", "text may be drawn into pixels of this kind")
    if not sop_class or sop_class.startswith(_NOT_CLEANED):
        raise PermanentError("not-deidentifiable", "objects of this class may name the patient in what they hold")


def _changed(element: Element, secret: bytes) -> Any:
    group = element.tag >> 16
    if element.tag in _REMOVED or group % 2 or 0x5000 <= group <= 0x50FF or 0x6000 <= group <= 0x60FF:
        return REMOVE
    if element.value is None or not len(element.value):
        return None
    if element.vr == "UI":
        return _uids(element, secret)
    if element.vr in TEXT_VRS:
        return None if element.tag in _KEPT_TEXTS else b""
    if element.vr in _DUMMY_DATES:
        return _DUMMY_DATES[element.vr] if element.tag in _TYPE_ONE_DATES else b""
    if element.vr in ("AE", "AS", "UR", "UN", "OB"):
        return REMOVE if element.vr in ("UN", "OB") else b""
    return None


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

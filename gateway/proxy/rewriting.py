"""Change a data set as rules say: charset, remove, copy, map, set, then de-identify; every other byte stays.

Errors are for the caller to weigh: towards the old PACS the original passes, towards third parties nothing does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway.proxy.rules import REPAIR, Changes
from standards import charset_detection, charsets, deidentification
from standards.charset_detection import Detection
from standards.dataset_editing import REMOVE, Data, Element, edit, elements, parted
from standards.errors import PermanentError
from standards.uids import named

_CHARACTER_SET = 0x00080005
_SOP_INSTANCE_UID = 0x00080018


@dataclass(frozen=True, slots=True)
class Difference:
    """An element before and after; None: not there."""

    tag: int
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A data set in pieces, and what is different in it."""

    pieces: tuple[Data, ...]
    sop_instance_uid: str
    differences: tuple[Difference, ...]


def detected(data: Data, syntax: str) -> Detection | None:
    """Whether its texts are written in what they declare, judged on all of them.

    Raises: PermanentError as ``dataset_editing.parted`` does.
    """
    return _judge(elements(parted(data, syntax).head, syntax))


def _judge(found: Sequence[Element]) -> Detection | None:
    texts = [element for element in found if element.vr in charsets.TEXT_VRS and element.value is not None]
    texts.sort(key=lambda element: element.vr != "PN")  # a name tells a person best whether the guess is right
    return charset_detection.detect([bytes(element.value or b"") for element in texts], _declared(found))


def _declared(found: Sequence[Element]) -> str:
    for element in found:
        if element.tag == _CHARACTER_SET and not element.parents and element.value is not None:
            return bytes(element.value).decode("latin-1").strip(" \0")
    return ""


def rewritten(data: Data, syntax: str, changes: Sequence[Changes], secret: bytes) -> Rewritten:
    """Apply ``changes`` one after the other.

    Raises: PermanentError as ``dataset_editing`` does, "charset-unsure", "not-deidentifiable".
    """
    parts = parted(data, syntax)
    head = parts.head
    before = elements(head, syntax)
    with_rest = True
    for change in changes:
        head = _charset(head, syntax, change)
        head = _values(head, syntax, change)
        if change.deidentify:
            head = deidentification.deidentified(head, syntax, secret)
            with_rest = False  # what follows the pixels is signatures and padding
    after = elements(head, syntax)
    return Rewritten(
        tuple(parts.joined(head, with_rest=with_rest)),
        named(_text_of(after, _SOP_INSTANCE_UID)),
        tuple(_differences(before, after)),
    )


def _charset(head: bytes, syntax: str, change: Changes) -> bytes:
    if not change.charset:
        return head
    found = elements(head, syntax)
    codec = change.charset
    if codec == REPAIR:
        detection = _judge(found)
        if detection is None:
            return head
        if not detection.is_sure:
            raise PermanentError("charset-unsure", f"it may be {detection.name}, but that is not certain")
        codec = detection.codec

    def mend(element: Element) -> Any:
        if element.tag == _CHARACTER_SET:
            return REMOVE if element.parents else None
        if element.vr not in charsets.TEXT_VRS or element.value is None or bytes(element.value).isascii():
            return None
        raw = bytes(element.value)
        try:
            text = raw.decode(codec)
        except UnicodeDecodeError:
            text = charsets.decode(raw, "", person_name=element.vr == "PN")
        return _padded(charsets.encode(text, change.charset_to), element.vr)

    return edit(head, syntax, mend, {_CHARACTER_SET: ("CS", _padded(change.charset_to.encode(), "CS"))})


def _values(head: bytes, syntax: str, change: Changes) -> bytes:
    if not (change.removed or change.copied or change.mapped or change.values):
        return head
    top = {element.tag: element for element in elements(head, syntax) if not element.parents}
    declared = _declared(list(top.values()))
    removed = {tag.number for tag in change.removed}
    new: dict[int, tuple[str, bytes]] = {}

    def text(tag: int) -> str | None:
        element = top.get(tag)
        if element is None or element.value is None:
            return None
        return charsets.decode(bytes(element.value), declared, person_name=element.vr == "PN").strip(" \0")

    def put(tag: int, vr: str, value: str) -> None:
        kind = top[tag].vr if tag in top and top[tag].vr != "UN" else vr
        encoded = charsets.encode(value, declared) if kind in charsets.TEXT_VRS else value.encode("ascii", "replace")
        new[tag] = (kind, _padded(encoded, kind))

    for target, source in change.copied:
        if (value := text(source.number)) is not None:
            put(target.number, target.vr, value)
    for tag, mapping in change.mapped:
        if (value := text(tag.number)) is not None and value in mapping:
            put(tag.number, tag.vr, mapping[value])
    for tag, value in change.values:
        put(tag.number, tag.vr, value)
    return edit(head, syntax, lambda element: _unless(element, removed), new)


def _unless(element: Element, removed: set[int]) -> Any:
    return REMOVE if element.tag in removed else None


def _padded(value: bytes, vr: str) -> bytes:
    return value if len(value) % 2 == 0 else value + (b"\0" if vr == "UI" else b" ")


def _text_of(found: Sequence[Element], tag: int) -> str:
    for element in found:
        if element.tag == tag and not element.parents and element.value is not None:
            return bytes(element.value).decode("latin-1").strip(" \0")
    return ""


def _differences(before: Sequence[Element], after: Sequence[Element]) -> list[Difference]:
    """By tag, those at the top by themselves, those inside sequences together with the sequence's tag."""
    old, new = _shown(before), _shown(after)
    return [Difference(tag, old.get(tag), new.get(tag)) for tag in sorted({*old, *new}) if old.get(tag) != new.get(tag)]


def _shown(found: Sequence[Element]) -> dict[int, str]:
    declared = _declared(found)
    shown: dict[int, str] = {}
    for element in found:
        top = element.parents[0] if element.parents else element.tag
        if element.value is None:
            shown.setdefault(top, "")
            continue
        value = bytes(element.value[:1024])
        text = charsets.decode(value, declared) if element.vr in charsets.TEXT_VRS else value.decode("latin-1")
        text = text.strip(" \0")
        shown[top] = f"{shown[top]} / {text}".strip(" /") if element.parents and top in shown else text
    return shown

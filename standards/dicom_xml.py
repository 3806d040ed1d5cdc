"""The Native DICOM Model in XML, to and from the DICOM JSON Model.

Source: PS3.19 A.1, PS3.18 F.2
"""

import re
from collections.abc import Mapping
from typing import Any, Final
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from pydicom.datadict import keyword_for_tag

from standards.errors import PermanentError

MEDIA_TYPE: Final = "application/dicom+xml"
NAMESPACE: Final = "http://dicom.nema.org/PS3.19/models/NativeDICOM"
MAX_DEPTH: Final = 64

_DECLARATION: Final = '<?xml version="1.0" encoding="UTF-8"?>\n'
_GROUPS: Final = ("Alphabetic", "Ideographic", "Phonetic")
_COMPONENTS: Final = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
_NUMBERS: Final = frozenset({"DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"})
# XML 1.0 has no form at all for these characters, not even escaped.
_NOT_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Json = dict[str, Any]


def to_xml(model: Mapping[str, Any]) -> bytes:
    """One data set of the DICOM JSON Model as an XML document in UTF-8.

    Characters that XML cannot hold become U+FFFD.
    """
    head = f'{_DECLARATION}<NativeDicomModel xmlns="{NAMESPACE}" xml:space="preserve">'
    return f"{head}{_attributes(model)}</NativeDicomModel>".encode()


def _attributes(model: Mapping[str, Any]) -> str:
    creators = {
        f"{tag[:4]}{tag[6:]}": str((entry.get("Value") or [""])[0])
        for tag, entry in model.items()
        if _is_private(tag) and tag.startswith("00", 4) and tag[6:] >= "10"
    }
    return "".join(_attribute(tag, entry, creators) for tag, entry in sorted(model.items()))


def _is_private(tag: str) -> bool:
    return int(tag[3], 16) % 2 == 1


def _attribute(tag: str, entry: Mapping[str, Any], creators: Mapping[str, str]) -> str:
    vr = str(entry["vr"])
    head = f'<DicomAttribute tag="{tag}" vr="{vr}"'
    if keyword := keyword_for_tag(int(tag, 16)):
        head += f' keyword="{keyword}"'
    if _is_private(tag) and (creator := creators.get(f"{tag[:4]}{tag[4:6]}")):
        head += f" privateCreator={_quoted(creator)}"
    if "BulkDataURI" in entry:
        return f"{head}><BulkData uri={_quoted(str(entry['BulkDataURI']))}/></DicomAttribute>"
    if "InlineBinary" in entry:
        return f"{head}><InlineBinary>{entry['InlineBinary']}</InlineBinary></DicomAttribute>"
    values = entry.get("Value") or []
    if not values:
        return f"{head}/>"
    return f"{head}>{''.join(_value(vr, value, number) for number, value in enumerate(values, 1))}</DicomAttribute>"


def _value(vr: str, value: Any, number: int) -> str:
    if vr == "SQ":
        return f'<Item number="{number}">{_attributes(value or {})}</Item>'
    if value is None or value == "":
        return ""  # the numbers of the others say which value is empty
    if vr == "PN":
        groups = "".join(_group(name, str(value[name])) for name in _GROUPS if value.get(name))
        return f'<PersonName number="{number}">{groups}</PersonName>'
    shown = f"{value:.17g}" if isinstance(value, float) and not value.is_integer() else str(value)
    if isinstance(value, float) and value.is_integer() and vr in ("DS", "IS"):
        shown = str(int(value))
    return f'<Value number="{number}">{_escaped(shown)}</Value>'


def _group(name: str, text: str) -> str:
    parts = zip(_COMPONENTS, text.split("^", 4), strict=False)
    return f"<{name}>{''.join(f'<{tag}>{_escaped(part)}</{tag}>' for tag, part in parts if part)}</{name}>"


def _escaped(text: str) -> str:
    return escape(_NOT_XML.sub("\ufffd", text), {"\r": "&#13;"})


def _quoted(text: str) -> str:
    return quoteattr(_NOT_XML.sub("\ufffd", text))


def from_xml(document: bytes) -> Json:
    """The data set of a Native DICOM Model document in the DICOM JSON Model.

    Document types and entities are refused, so a small document stays small.

    Raises: PermanentError("invalid-dicom-xml").
    """
    reader = _Reader()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    parser.StartDoctypeDeclHandler = reader.doctype
    try:
        parser.Parse(document, True)
    except (expat.ExpatError, ValueError, KeyError, LookupError, TypeError) as error:
        raise PermanentError("invalid-dicom-xml", str(error)[:200]) from error
    if reader.model is None:
        raise PermanentError("invalid-dicom-xml", "no NativeDicomModel")
    return reader.model


class _Reader:
    """Builds the JSON model while the document is parsed."""

    def __init__(self) -> None:
        self.model: Json | None = None
        self._sets: list[Json] = []
        self._entries: list[Json] = []
        self._texts: list[str] = []
        self._name: dict[str, list[str]] = {}
        self._number = 0

    def doctype(self, *_arguments: Any) -> None:
        raise ValueError("a document type is not accepted")

    def text(self, data: str) -> None:
        self._texts.append(data)

    def start(self, name: str, attributes: dict[str, str]) -> None:
        name = name.rpartition(" ")[2]
        self._texts = []
        if name == "NativeDicomModel":
            self.model = {}
            self._sets.append(self.model)
        elif name == "DicomAttribute":
            tag = attributes["tag"].upper()
            if not re.fullmatch(r"[0-9A-F]{8}", tag):
                raise ValueError(f"{tag[:20]!r} is not a tag")
            entry: Json = {"vr": attributes["vr"]}
            self._sets[-1][tag] = entry
            self._entries.append(entry)
        elif name == "Item":
            if len(self._sets) > MAX_DEPTH:
                raise ValueError("nested too deep")
            item: Json = {}
            self._put(int(attributes.get("number", "0")), item)
            self._sets.append(item)
        elif name == "BulkData":
            self._entries[-1]["BulkDataURI"] = attributes.get("uri") or attributes["uuid"]
        elif name in ("Value", "PersonName"):
            self._number = int(attributes.get("number", "0"))
            self._name = {}
        elif name in _GROUPS:
            self._name[name] = [""] * 5

    def end(self, name: str) -> None:
        name = name.rpartition(" ")[2]
        text = "".join(self._texts)
        if name == "DicomAttribute":
            self._entries.pop()
        elif name in ("Item", "NativeDicomModel"):
            self._sets.pop()
        elif name == "Value":
            self._put(self._number, _typed(str(self._entries[-1]["vr"]), text))
        elif name == "InlineBinary":
            self._entries[-1]["InlineBinary"] = "".join(text.split())
        elif name in _COMPONENTS:
            group = next(reversed(self._name))
            self._name[group][_COMPONENTS.index(name)] = text
        elif name == "PersonName":
            self._put(
                self._number, {group: "^".join(parts).rstrip("^") for group, parts in self._name.items() if any(parts)}
            )
        self._texts = []

    def _put(self, number: int, value: Any) -> None:
        values = self._entries[-1].setdefault("Value", [])
        if not 0 <= number <= len(values) + 100_000:
            raise ValueError(f"value number {number}")
        while number and len(values) < number - 1:
            values.append(None)
        values.append(value)


def _typed(vr: str, text: str) -> Any:
    if vr in _NUMBERS and text.strip():
        return float(text) if vr in ("DS", "FD", "FL") else int(text)
    return text

"""Answers of C-FIND: what was asked, filled in and encoded in the asker's transfer syntax and character set.

Source: PS3.4 C.4.1.1.3.2
"""

import struct
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, Final

from pydicom.datadict import dictionary_has_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.dsutils import encode

from pacs_node.config import config
from pacs_node.study_index import keys as k
from pacs_node.study_index.conditions import zone_offset
from pacs_node.study_index.keys import KEPT, PERIODS, Level
from pacs_node.study_index.queries import Counts, Row, columns, zone_of_the_node
from pacs_node.study_index.searches import Search
from standards import charsets
from standards.periods import offset_text, shifted

_CHARACTER_SET, _LEVEL, _RETRIEVE_AE_TITLE, _AVAILABILITY = "00080005", "00080052", "00080054", "00080056"
_PATIENT_COLUMNS: Final = frozenset(
    k.BY_KEYWORD[keyword].tag
    for keyword in ("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex")
)
_UNIQUE_KEYS: Final[dict[Level, tuple[str, ...]]] = {
    "PATIENT": ("00100020",),
    "STUDY": ("0020000D",),
    "SERIES": ("0020000D", "0020000E"),
    "IMAGE": ("0020000D", "0020000E", "00080018"),
}
_LONG_LENGTH: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
_REMEMBERED: Final = 1024
"""Encoded elements a key: many answers say the same."""
_NUMBERS: Final = {"US": "H", "UL": "L", "SS": "h", "SL": "l"}


class Answers:
    """Writes the answers to one query. Attributes that are not kept come back empty, private ones not at all."""

    def __init__(self, query: Dataset, asked: Search, character_set: str, transfer_syntax: str) -> None:
        self.level, self._zone = asked.level, asked.zone
        self._character_set = character_set
        self._syntax = UID(transfer_syntax)
        asked_tags = {f"{int(tag):08X}" for tag in query.keys() if dictionary_has_tag(tag) and tag.element}  # noqa: SIM118
        self._tags = sorted(
            (asked_tags - {_CHARACTER_SET})
            | {_LEVEL, _RETRIEVE_AE_TITLE, _AVAILABILITY, *_UNIQUE_KEYS[asked.level]}
            | ({k.TIMEZONE} if self._zone is not None else set())
        )
        self.wanted = list(self._tags)
        if asked.level == "PATIENT":
            self.wanted = [tag for tag in self._tags if tag in _PATIENT_COLUMNS or tag in KEPT]
            self.wanted += [tag for tag in ("00100020", "00100021") if tag not in self.wanted]
        elif self._zone is not None:
            self.wanted += [tag for pair in PERIODS for tag in (pair[0].tag, pair[1].tag)]
        self._at = {tag: position for position, tag in enumerate(columns(asked.level, self.wanted))}
        self._kept = [tag for tag in self._tags if tag in KEPT and tag not in self._at]
        self._default_offset = zone_of_the_node() if self._zone is not None else 0
        self._fixed = {
            _LEVEL: asked.level,
            _RETRIEVE_AE_TITLE: config().ae_title,
            _AVAILABILITY: "ONLINE",
            **({k.TIMEZONE: offset_text(self._zone)} if self._zone is not None else {}),
        }
        terms = charsets.terms(character_set)
        self._is_plain = len(terms) == 1 and not self._kept and "2022" not in terms[0]
        self._head = self._element(_CHARACTER_SET, "CS", terms[0].encode()) if terms[0] else b""
        self._writers = [self._writer(tag) for tag in self._tags]

    @property
    def counts(self) -> bool:
        """Whether numbers, modalities or SOP classes are asked for."""
        return any(tag in k.OF_STUDY | k.OF_PATIENT for tag in self._tags)

    @property
    def sop_classes(self) -> bool:
        """Whether SOP classes are."""
        return k.SOP_CLASSES_IN_STUDY in self._tags

    def patient_of(self, row: Row) -> tuple[str, str]:
        """Patient ID and its issuer."""
        return str(row.values[self._at["00100020"]]), str(row.values[self._at["00100021"]])

    def encoded(self, row: Row, counts: Counts, studies: int = 1) -> bytes:
        """The identifier of one answer; ``counts`` are those of its study, or of all ``studies`` of the patient."""
        if self._is_plain:
            return self._head + b"".join([write(row, counts, studies) for write in self._writers])
        answer = Dataset()
        for tag in self._tags:
            number = int(tag, 16)
            kept = next((level[tag] for level in row.kept if tag in level), None) if tag in self._kept else None
            vr = k.vr_of(tag)
            if kept is not None:
                with_value = "Value" in kept
                answer[number] = DataElement.from_json(
                    Dataset, tag, kept["vr"], kept.get("Value", [""]), "Value" if with_value else None
                )
            else:
                source = self._value(tag)
                value = row.values[source] if isinstance(source, int) else source(row, counts, studies)
                answer[number] = DataElement(number, vr, [] if vr == "SQ" else _as_pydicom(vr, value))
        shown = charsets.encode_dataset(answer, self._character_set)
        return (
            encode(shown, self._syntax.is_implicit_VR, self._syntax.is_little_endian, self._syntax.is_deflated) or b""
        )

    def _value(self, tag: str) -> Callable[[Row, Counts, int], Any] | int:
        """What an answer says in an element: the place in ``Row.values``, or what is called once an answer."""
        if tag in self._fixed:
            fixed = self._fixed[tag]
            return lambda row, counts, studies: fixed
        position = self._at.get(tag)
        if position is None or (self.level == "PATIENT" and tag not in _PATIENT_COLUMNS):
            return (_OF_PATIENT if self.level == "PATIENT" else _OF_STUDY).get(tag, _nothing)
        for date, time in PERIODS:
            if (
                self._zone is not None
                and self.level != "PATIENT"
                and tag in (date.tag, time.tag)
                and date.tag in self._at
            ):
                return partial(self._shifted, date.tag, time.tag, int(tag == time.tag))
        return position

    def _shifted(self, date: str, time: str, which: int, row: Row, _counts: Counts, _studies: int) -> str:
        offset = zone_offset(row.values[self._at[k.TIMEZONE]], self._default_offset)
        pair = row.values[self._at[date]], row.values[self._at[time]]
        return shifted(*pair, (self._zone or 0) - offset)[which]

    def _writer(self, tag: str) -> Callable[[Row, Counts, int], bytes]:
        vr = k.vr_of(tag)
        value_of = self._value(tag)
        empty = self._element(tag, vr, b"")
        if value_of is _nothing:
            return lambda row, counts, studies: empty
        if tag in self._fixed:
            fixed = self._element(tag, vr, str(self._fixed[tag]).encode())
            return lambda row, counts, studies: fixed
        little, pad = self._syntax.is_little_endian, b"\0" if vr == "UI" else b" "
        if vr in _NUMBERS:
            number = struct.Struct(("<" if little else ">") + _NUMBERS[vr]).pack
            encoded: Callable[[Any], bytes] = number
        elif vr in charsets.TEXT_VRS:
            encoded = partial(self._text, vr)
        else:
            encoded = _ascii
        is_long = self._syntax.is_implicit_VR or vr in _LONG_LENGTH
        length = struct.Struct(("<" if little else ">") + ("L" if is_long else "H")).pack
        head = empty[: -4 if is_long else -2]

        @lru_cache(_REMEMBERED)
        def element(value: Any) -> bytes:
            if value is None or value == "":
                return empty
            data = encoded(value)
            if len(data) % 2:
                data += pad
            return head + length(len(data)) + data

        if isinstance(value_of, int):
            return lambda row, counts, studies: element(row.values[value_of])
        return lambda row, counts, studies: element(value_of(row, counts, studies))

    def _text(self, vr: str, text: str) -> bytes:
        """A value in the asker's character set; what that cannot show is transliterated."""
        if self._character_set == "ISO_IR 192" or text.isascii():
            return text.encode()
        return charsets.encode(
            charsets.name_for(text, self._character_set) if vr == "PN" else text, self._character_set
        )

    def _element(self, tag: str, vr: str, value: bytes) -> bytes:
        if len(value) % 2:
            value += b"\0" if vr == "UI" else b" "
        group, element = int(tag[:4], 16), int(tag[4:], 16)
        order = "<" if self._syntax.is_little_endian else ">"
        if self._syntax.is_implicit_VR:
            return struct.pack("<HHL", group, element, len(value)) + value
        if vr in _LONG_LENGTH:
            return struct.pack(f"{order}HH2s2xL", group, element, vr.encode(), len(value)) + value
        return struct.pack(f"{order}HH2sH", group, element, vr.encode(), len(value)) + value


def _nothing(_row: Row, _counts: Counts, _studies: int) -> None:
    return None


_OF_STUDY: Final[dict[str, Callable[[Row, Counts, int], Any]]] = {
    k.MODALITIES_IN_STUDY: lambda row, counts, studies: "\\".join(counts.modalities),
    k.SOP_CLASSES_IN_STUDY: lambda row, counts, studies: "\\".join(counts.sop_classes),
    k.SERIES_OF_STUDY: lambda row, counts, studies: counts.series,
    k.INSTANCES_OF_STUDY: lambda row, counts, studies: counts.instances,
}
_OF_PATIENT: Final[dict[str, Callable[[Row, Counts, int], Any]]] = {
    k.STUDIES_OF_PATIENT: lambda row, counts, studies: studies,
    k.SERIES_OF_PATIENT: lambda row, counts, studies: counts.series,
    k.INSTANCES_OF_PATIENT: lambda row, counts, studies: counts.instances,
}


def _ascii(value: object) -> bytes:
    text = str(value)
    return (text if text.isascii() else charsets.transliterate(text)).encode()


def _as_pydicom(vr: str, value: Any) -> Any:
    if value in (None, ""):
        return None
    if vr in _NUMBERS:
        return value
    return str(value).split("\\") if isinstance(value, str) and "\\" in value else str(value)


def total(counts: Mapping[int, Counts]) -> Counts:
    """The counts of several studies together."""
    return Counts(
        series=sum(one.series for one in counts.values()), instances=sum(one.instances for one in counts.values())
    )

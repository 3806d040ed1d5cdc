"""Answers of C-FIND: what was asked, filled in and encoded in the asker's transfer syntax and character set.

Source: PS3.4 C.4.1.1.3.2
"""

import struct
from collections.abc import Callable, Mapping
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
from pacs_node.study_index.queries import Counts, Row, Search, columns, zone_of_the_node
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
        self._encoders = [(tag, self._encoder(tag)) for tag in self._tags]
        self._head = self._element(_CHARACTER_SET, "CS", terms[0].encode()) if terms[0] else b""

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
        values = self._values(row, counts, studies)
        if self._is_plain:
            return self._head + b"".join([write(values.get(tag)) for tag, write in self._encoders])
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
                value = values.get(tag)
                answer[number] = DataElement(number, vr, [] if vr == "SQ" else _as_pydicom(vr, value))
        shown = charsets.encode_dataset(answer, self._character_set)
        return (
            encode(shown, self._syntax.is_implicit_VR, self._syntax.is_little_endian, self._syntax.is_deflated) or b""
        )

    def _values(self, row: Row, counts: Counts, studies: int) -> dict[str, Any]:
        values: dict[str, Any] = {tag: row.values[position] for tag, position in self._at.items()}
        if self._zone is not None and self.level != "PATIENT":
            offset = zone_offset(values[k.TIMEZONE], self._default_offset)
            for date, time in PERIODS:
                if date.tag in values:
                    pair = shifted(values[date.tag], values[time.tag], self._zone - offset)
                    values[date.tag], values[time.tag] = pair
        values |= self._fixed
        if self.level == "PATIENT":
            values |= {
                k.STUDIES_OF_PATIENT: studies,
                k.SERIES_OF_PATIENT: counts.series,
                k.INSTANCES_OF_PATIENT: counts.instances,
            }
        else:
            values |= {
                k.MODALITIES_IN_STUDY: "\\".join(counts.modalities),
                k.SOP_CLASSES_IN_STUDY: "\\".join(counts.sop_classes),
                k.SERIES_OF_STUDY: counts.series,
                k.INSTANCES_OF_STUDY: counts.instances,
            }
        return values

    def _encoder(self, tag: str) -> Callable[[Any], bytes]:
        vr = k.vr_of(tag)
        empty = self._element(tag, vr, b"")
        if vr in _NUMBERS:
            form = ("<" if self._syntax.is_little_endian else ">") + _NUMBERS[vr]
            return lambda value: empty if value in (None, "") else self._element(tag, vr, struct.pack(form, value))
        if vr in charsets.TEXT_VRS:
            return lambda value: empty if value in (None, "") else self._element(tag, vr, self._text(vr, str(value)))
        return lambda value: (
            empty if value in (None, "") else self._element(tag, vr, charsets.transliterate(str(value)).encode())
        )

    def _text(self, vr: str, text: str) -> bytes:
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

"""Answers of QIDO-RS in the DICOM JSON Model, written as text: no object is built for an element.

Source: PS3.18 10.6.1.2, F.2
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from json.encoder import encode_basestring
from typing import Any, Final

from pydicom.datadict import tag_for_keyword

from pacs_node.study_index import keys as k
from pacs_node.study_index.conditions import zone_offset
from pacs_node.study_index.keys import BY_TAG, COLUMNS, KEPT, Level
from pacs_node.study_index.queries import Counts, Row, columns, zone_of_the_node
from pacs_node.study_index.searches import Search
from standards.errors import PermanentError
from standards.periods import shifted

_GROUPS: Final = ("Alphabetic", "Ideographic", "Phonetic")
_WHOLE_TEXTS: Final = frozenset({"LT", "ST", "UT"})
_OF_IMAGES: Final = frozenset(BY_TAG[tag].tag for tag in ("00280010", "00280011", "00280008"))
_ROWS: Final = "00280010"
_UIDS: Final[dict[Level, str]] = {"STUDY": "0020000D", "SERIES": "0020000E", "IMAGE": "00080018"}
_PLACES: Final[dict[Level, str]] = {"STUDY": "studies", "SERIES": "series", "IMAGE": "instances"}
_GROUP: Final = re.compile("([0-9A-Fa-f]{4})(?:xxxx)?", re.ASCII)
_ALL: Final = BY_TAG.keys() | KEPT.keys() | k.OF_STUDY
Part = Callable[[Row, Counts], str]
_NO_COUNTS: Final = Counts()
_dumped: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def tag_of(name: str) -> str:
    """Tag of a keyword, or of eight hexadecimal digits itself. Raises: PermanentError("unknown-attribute")."""
    if re.fullmatch(r"[0-9A-Fa-f]{8}", name):
        return name.upper()
    tag = tag_for_keyword(name)
    if tag is None:
        raise PermanentError("unknown-attribute", f"{name[:80]!r} is neither a tag nor a keyword of DICOM.")
    return f"{tag:08X}"


def _text(value: object) -> str:
    return encode_basestring(str(value))


def _name(value: str) -> str:
    groups = (f'"{name}":{_text(group)}' for name, group in zip(_GROUPS, value.split("="), strict=False) if group)
    return f"{{{','.join(groups)}}}"


def element(tag: str, vr: str, value: Any) -> str:
    """``"tag":{…}`` of a column's value; an empty one leaves ``Value`` out."""
    head = f'"{tag}":{{"vr":"{vr}"'
    if value is None or value == "" or value == []:
        return head + "}"
    if isinstance(value, int):
        return f'{head},"Value":[{value}]}}'
    if isinstance(value, str):
        value = value.split("\\") if "\\" in value and vr not in _WHOLE_TEXTS else [value]
    shown = (_name(one) if vr == "PN" else _text(one) for one in value)
    return f'{head},"Value":[{",".join(shown)}]}}'


_COUNTED: Final[dict[str, Part]] = {
    k.MODALITIES_IN_STUDY: lambda _, counts: element(k.MODALITIES_IN_STUDY, "CS", counts.modalities),
    k.SOP_CLASSES_IN_STUDY: lambda _, counts: element(k.SOP_CLASSES_IN_STUDY, "UI", counts.sop_classes),
    k.SERIES_OF_STUDY: lambda _, counts: element(k.SERIES_OF_STUDY, "IS", counts.series),
    k.INSTANCES_OF_STUDY: lambda _, counts: element(k.INSTANCES_OF_STUDY, "IS", counts.instances),
}

Fields = dict[str, "Fields | None"]
"""Tags that an answer shall include; of a sequence the attributes of its items, None for all of it."""


def fields_of(names: Iterable[str]) -> Fields:
    """What the values of ``includefield`` name; ``0010`` or ``0010xxxx`` is a whole group.

    Raises: PermanentError("unknown-attribute").
    """
    fields: Fields = {}
    for name in names:
        if group := _GROUP.fullmatch(name):
            fields |= dict.fromkeys(tag for tag in _ALL if tag.startswith(group[1].upper()))
            continue
        at = fields
        tags = [tag_of(part) for part in name.split(".")]
        for tag in tags[:-1]:
            inner = at.setdefault(tag, {})
            if inner is None:
                break
            at = inner
        else:
            at[tags[-1]] = None
    return fields


class Writer:
    """Writes the rows of one search. ``wanted`` None means everything; ``upper`` repeats the levels above."""

    def __init__(self, asked: Search, fields: Fields | None, base: str, *, upper: bool) -> None:
        self._asked, self._base, self._fields = asked, base, fields or {}
        levels = k.tables_of(asked.level)
        is_all, chosen = fields is None, self._fields.keys()
        own = levels[-1]
        shown = {
            one.tag
            for one in COLUMNS
            if one.level in levels
            and (
                is_all
                or one.tag in chosen
                or (one.default and (one.level == own or (upper and one.tag != k.INSTANCES_OF_SERIES)))
            )
        }
        shown |= {_UIDS[level] for level in levels}
        self._kept = frozenset(
            tag
            for tag, level in KEPT.items()
            if level in levels and (is_all or tag in chosen or (tag in k.KEPT_DEFAULT and (level == own or upper)))
        )
        self.wanted = sorted(shown | self._kept)
        self._columns = columns(asked.level, self.wanted)
        self._counted = k.OF_STUDY & chosen
        if is_all or asked.level == "STUDY":
            self._counted |= k.OF_STUDY - (frozenset() if is_all else {k.SOP_CLASSES_IN_STUDY} - chosen)
        self._parts = self._compiled()

    @property
    def counts(self) -> bool:
        """Whether ``Counts`` of the studies are written."""
        return bool(self._counted)

    @property
    def sop_classes(self) -> bool:
        """Whether the SOP classes of the studies are."""
        return k.SOP_CLASSES_IN_STUDY in self._counted

    def _compiled(self) -> list[tuple[str, Part]]:
        at = {tag: position for position, tag in enumerate(self._columns)}
        parts: dict[str, Part] = {tag: self._column(tag, position) for tag, position in at.items()}
        parts["00080005"] = _constant(element("00080005", "CS", "ISO_IR 192"))
        parts["00080056"] = _constant(element("00080056", "CS", "ONLINE"))
        levels = k.tables_of(self._asked.level)
        uids = [(_PLACES[level], at[_UIDS[level]]) for level in levels]
        base = _text(self._base)[1:-1]

        def url(row: Row, _counts: Counts) -> str:
            path = "".join(f"/{place}/{row.values[position]}" for place, position in uids)
            return f'"00081190":{{"vr":"UR","Value":["{base}{path}"]}}'

        parts["00081190"] = url
        parts |= {tag: part for tag, part in _COUNTED.items() if tag in self._counted}
        read = [level for level in levels if level in self._asked.kept or any(KEPT[tag] == level for tag in self._kept)]
        parts |= {tag: self._beside(tag, read.index(KEPT[tag])) for tag in self._kept - parts.keys()}
        if self._asked.zone is not None:
            self._zoned(parts, at)
        return sorted(parts.items())

    def _column(self, tag: str, position: int) -> Part:
        attribute = BY_TAG[tag]
        vr = attribute.vr
        if tag in _OF_IMAGES and _ROWS in self._columns:
            rows = self._columns.index(_ROWS)
            return lambda row, _: element(tag, vr, row.values[position]) if row.values[rows] is not None else ""
        if vr == "UI":  # checked when it was stored: nothing in it needs an escape
            head, tail = f'"{tag}":{{"vr":"UI","Value":["', '"]}'
            return lambda row, _: (
                f"{head}{row.values[position]}{tail}" if row.values[position] else element(tag, vr, "")
            )
        if vr in ("IS", "US"):
            head = f'"{tag}":{{"vr":"{vr}","Value":['
            return lambda row, _: f"{head}{v}]}}" if (v := row.values[position]) is not None else element(tag, vr, "")
        if vr == "PN":
            alphabetic = f'"{tag}":{{"vr":"PN","Value":[{{"Alphabetic":'

            def name(row: Row, _counts: Counts) -> str:
                value = row.values[position]
                if not value or "=" in value or "\\" in value:
                    return element(tag, vr, value)
                return f"{alphabetic}{encode_basestring(value)}}}]}}"

            return name
        is_silent = tag == k.TIMEZONE and tag not in self._fields  # without being asked for, only where it is known
        start, empty = f'"{tag}":{{"vr":"{vr}","Value":[', "" if is_silent else element(tag, vr, "")

        def text(row: Row, _counts: Counts) -> str:
            value = row.values[position]
            if not value:
                return empty
            return element(tag, vr, value) if "\\" in value else f"{start}{encode_basestring(value)}]}}"

        return text

    def _zoned(self, parts: dict[str, Part], at: Mapping[str, int]) -> None:
        zone, default = self._asked.zone or 0, zone_of_the_node()
        zone_at = at.get(k.TIMEZONE)

        def moved(tag: str, date: int, time: int | None, which: int) -> Part:
            def part(row: Row, _counts: Counts) -> str:
                offset = zone_offset(row.values[zone_at], default) if zone_at is not None else default
                pair = shifted(row.values[date], row.values[time] if time is not None else "", zone - offset)
                return element(tag, BY_TAG[tag].vr, pair[which])

            return part

        for date, time in k.PERIODS:
            if date.tag in at:
                parts[date.tag] = moved(date.tag, at[date.tag], at.get(time.tag), 0)
            if time.tag in at and date.tag in at:
                parts[time.tag] = moved(time.tag, at[date.tag], at[time.tag], 1)
        sign = "-" if zone < 0 else "+"
        shown = f"{sign}{abs(zone) // 60:02}{abs(zone) % 60:02}"
        parts[k.TIMEZONE] = _constant(element(k.TIMEZONE, "SH", shown))

    def row(self, row: Row, counts: Mapping[int, Counts]) -> str:
        """One entity as a JSON object."""
        of_study = counts.get(row.study_key, _NO_COUNTS)
        return f"{{{','.join([text for _, part in self._parts if (text := part(row, of_study))])}}}"

    def _beside(self, tag: str, position: int) -> Part:
        """An attribute that is kept beside the columns of the level that is read in this position."""

        def part(row: Row, _counts: Counts) -> str:
            kept = row.kept[position].get(tag)
            return "" if kept is None else f'"{tag}":{_dumped(self._chosen(tag, kept))}'

        return part

    def _chosen(self, tag: str, kept: dict[str, Any]) -> dict[str, Any]:
        fields = self._fields.get(tag)
        return kept if fields is None else _only(kept, fields)


def _only(kept: dict[str, Any], fields: Fields) -> dict[str, Any]:
    """A sequence whose items have these attributes alone."""
    items = [
        {
            tag: one if fields[tag] is None else _only(one, fields[tag] or {})
            for tag, one in item.items()
            if tag in fields
        }
        for item in kept.get("Value", [])
        if isinstance(item, dict)
    ]
    return {"vr": kept["vr"], "Value": items} if items else {"vr": kept["vr"]}


def _constant(text: str) -> Part:
    return lambda _row, _counts: text

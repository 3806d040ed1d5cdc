"""The DICOM JSON Model in both directions.

Source: PS3.18 F
"""

import base64
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.valuerep import PersonName, format_number_as_ds

from standards import charsets
from standards.element_walker import PixelElement
from standards.errors import PermanentError

BulkDataURI = Callable[[str, int], str | None]
"""(path, length) of a binary value → its BulkDataURI, or None to send it inline. The path is tags and item indices,
as in ``7FE00010`` or ``54000100/0/54001010``."""

Json = dict[str, Any]

BINARY_VRS: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_WORD_BYTES: Final = {"OD": 8, "OF": 4, "OL": 4, "OV": 8, "OW": 2}
_INTEGER_VRS: Final = frozenset({"IS", "SL", "SS", "SV", "UL", "US", "UV"})
_FLOAT_VRS: Final = frozenset({"DS", "FD", "FL"})
_GROUPS: Final = ("Alphabetic", "Ideographic", "Phonetic")
MAX_DEPTH: Final = 64
_UNREADABLE: Final = (
    ValueError, TypeError, AttributeError, LookupError, OverflowError, NotImplementedError, BytesLengthException,
)  # fmt: skip


def to_json(
    dataset: Dataset,
    bulk_data_uri: BulkDataURI | None = None,
    *,
    notes: list[str] | None = None,
    extra: Mapping[str, Json] | None = None,
) -> Json:
    """The data set as a JSON object of UTF-8 text, ready for ``json.dumps``.

    A value that cannot be read is left out, its tag and reason going to ``notes``; everything else is still given. What
    only has its place in ``dataset`` (``tell_places`` of ``part10.read_header``) is given by its BulkDataURI.
    (0008,0005) becomes ISO_IR 192, as the text now is UTF-8. ``extra`` adds ready elements by tag, such as the
    BulkDataURI of pixel data that the parser skipped.
    """
    result = _dataset(dataset, bulk_data_uri, notes if notes is not None else [], "", 0)
    if "00080005" in result:
        result["00080005"] = {"vr": "CS", "Value": ["ISO_IR 192"]}
    result.update(extra or {})
    return dict(sorted(result.items()))


def _dataset(dataset: Dataset, bulk: BulkDataURI | None, notes: list[str], path: str, depth: int) -> Json:
    result: Json = {}
    for tag in sorted(dataset.keys()):
        name = f"{tag:08X}"
        if tag.element == 0:
            # Group lengths have no place in the model.
            continue
        try:
            element = dataset[tag]
            if element.VR in _WORD_BYTES and dataset.original_encoding[1] is False:
                element = _little_endian(element)
            result[name] = _element(element, bulk, notes, f"{path}{name}", depth)
        except _UNREADABLE as error:
            raw = dataset.get_item(tag)
            result[name] = {"vr": raw.VR if isinstance(raw, RawDataElement | DataElement) and raw.VR else "UN"}
            notes.append(f"{path}{name}: {type(error).__name__}")
    return result


def _little_endian(element: DataElement) -> DataElement:
    """A copy of a binary element from a big-endian data set, as the model's bytes are little-endian."""
    value = element.value if isinstance(element.value, bytes) else b""
    size = _WORD_BYTES[element.VR]
    if len(value) % size:
        raise ValueError("not whole words")
    swapped = b"".join(value[start : start + size][::-1] for start in range(0, len(value), size))
    return DataElement(element.tag, element.VR, swapped, already_converted=True)


def _element(element: DataElement, bulk: BulkDataURI | None, notes: list[str], path: str, depth: int) -> Json:
    vr = element.VR
    if " or " in vr:
        vr = "OW" if "OW" in vr else "US"
    if vr == "SQ":
        if depth >= MAX_DEPTH:
            raise ValueError("nested too deep")
        items = [
            _dataset(item, bulk, notes, f"{path}/{number}/", depth + 1) for number, item in enumerate(element.value)
        ]
        return {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
    value = element.value
    if isinstance(value, PixelElement):
        uri = bulk(path, value.length) if bulk else None
        return {"vr": vr, "BulkDataURI": uri} if uri else {"vr": vr}
    if vr in BINARY_VRS:
        return {"vr": vr} | _binary(value, bulk, path)
    if value is None or value == "" or (isinstance(value, MultiValue | list) and not value):
        return {"vr": vr}
    many = list(value) if isinstance(value, MultiValue | list | tuple) else [value]
    return {"vr": vr, "Value": [_single(vr, item) for item in many]}


def _binary(value: object, bulk: BulkDataURI | None, path: str) -> Json:
    raw = value if isinstance(value, bytes) else b""
    if not raw:
        return {}
    uri = bulk(path, len(raw)) if bulk else None
    return {"BulkDataURI": uri} if uri else {"InlineBinary": base64.b64encode(raw).decode("ascii")}


def _single(vr: str, value: Any) -> object:
    if value is None or value == "":
        return None
    if vr == "PN":
        return _person_name(value)
    if vr == "AT":
        return f"{Tag(value):08X}"
    if vr in _INTEGER_VRS:
        return int(value)
    if vr in _FLOAT_VRS:
        number = float(value)
        return number if math.isfinite(number) else None  # JSON has no other; the values beside it still count
    return str(value)


def _person_name(value: object) -> Json:
    groups = str(value).split("=")[:3]
    return {label: text for label, text in zip(_GROUPS, groups, strict=False) if text}


def from_json(text: str | bytes | Mapping[str, Any]) -> Dataset:
    """The data set of a DICOM JSON object; a value behind a BulkDataURI is empty.

    (0008,0005) is set to ISO_IR 192 where text needs it.

    Raises: PermanentError("invalid-dicom-json").
    """
    try:
        model = json.loads(text) if isinstance(text, str | bytes) else text
        if not isinstance(model, Mapping):
            raise ValueError("not an object")
        dataset = _from_model(model, 0)
    except (*_UNREADABLE, RecursionError) as error:
        raise PermanentError("invalid-dicom-json", str(error)[:200]) from error
    if not json.dumps(model, ensure_ascii=False).isascii() or "SpecificCharacterSet" in dataset:
        dataset.SpecificCharacterSet = "ISO_IR 192"
    return dataset


def _from_model(model: Mapping[str, Any], depth: int) -> Dataset:
    if depth > MAX_DEPTH:
        raise ValueError("nested too deep")
    dataset = Dataset()
    for name, entry in model.items():
        tag = Tag(int(name, 16))
        if len(name) != 8:
            raise ValueError(f"{name[:20]!r} is not a tag")
        vr = str(entry["vr"])
        if vr == "SQ":
            dataset.add_new(tag, vr, [_from_model(item, depth + 1) for item in entry.get("Value", [])])
        elif vr in BINARY_VRS:
            dataset.add_new(tag, vr, base64.b64decode(entry.get("InlineBinary", ""), validate=True))
        else:
            dataset.add_new(tag, vr, _from_values(vr, entry.get("Value", [])))
    return dataset


def _from_values(vr: str, values: list[Any]) -> object:
    converted = [_from_value(vr, value) for value in values]
    if not converted:
        return None
    return converted[0] if len(converted) == 1 else converted


def _from_value(vr: str, value: Any) -> object:
    if value is None:
        return ""
    if vr == "PN":
        groups = [str(value.get(label, "")) for label in _GROUPS]
        return PersonName("=".join(groups).rstrip("="), charsets.python_encodings("ISO_IR 192"))
    if vr == "AT":
        return Tag(int(str(value), 16))
    if vr in _INTEGER_VRS:
        return str(int(value)) if vr == "IS" else int(value)
    if vr in _FLOAT_VRS:
        return format_number_as_ds(float(value)) if vr == "DS" else float(value)
    return str(value)

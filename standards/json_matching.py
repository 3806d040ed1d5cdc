"""Attribute matching on data sets in the DICOM JSON Model, sequences included.

Source: PS3.4 C.2.2.2.6, PS3.18 F.2
"""

from collections.abc import Mapping
from typing import Any, Union

from standards.matching import Matcher

Keys = dict[str, Union[Matcher, "Keys"]]
"""Tag → what its value must match; for a sequence the keys that one of its items must match together."""


def matches(keys: Keys, attributes: Mapping[str, Any]) -> bool:
    """Whether ``attributes`` match every key."""
    return all(_matches(key, attributes.get(tag, {})) for tag, key in keys.items())


def _matches(key: Union[Matcher, "Keys"], element: Mapping[str, Any]) -> bool:
    values = element.get("Value") or []
    if isinstance(key, dict):
        items = [item for item in values if isinstance(item, dict)]
        return any(matches(key, item) for item in items) if items else matches(key, {})
    return any(key.matches(plain(value)) for value in values) if values else key.matches("")


def plain(value: Any) -> str:
    """A value of DICOM JSON as its text; a name with its writings parted by equals signs."""
    if isinstance(value, dict):
        groups = (str(value.get(name, "")) for name in ("Alphabetic", "Ideographic", "Phonetic"))
        return "=".join(groups).rstrip("=")
    return "" if value is None else str(value)

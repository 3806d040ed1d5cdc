"""The ``when`` of a rule: who sends to whom from where, what kind of object, and any tag of it."""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from pydicom._uid_dict import UID_dictionary
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag

from standards.errors import PermanentError
from standards.part10 import UNREADABLE

Test = Callable[[str], bool]

_PLACES: Final = frozenset({"calling_ae", "called_ae", "address"})
_HEX: Final = re.compile(r"\(?([0-9A-Fa-f]{4}),?([0-9A-Fa-f]{4})\)?")
_UID_OF_KEYWORD: Final = {entry[4]: uid for uid, entry in UID_dictionary.items() if entry[4]}


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sends, as far as an association tells."""

    calling_ae: str
    called_ae: str
    address: str


@dataclass(frozen=True, slots=True)
class Tag:
    """A data element as the rules file names it."""

    number: int
    keyword: str
    vr: str


def tag(name: str) -> Tag:
    """The element of a keyword (``PatientID``) or number (``0010,0020``); VR "" where the dictionary has none.

    Raises: PermanentError("invalid-rules").
    """
    match = _HEX.fullmatch(name)
    number = int(match[1] + match[2], 16) if match else tag_for_keyword(name)
    if number is None:
        raise PermanentError("invalid-rules", f"{name!r} is neither a keyword of DICOM nor a tag such as 0010,0020")
    try:
        vr = dictionary_VR(number)
    except KeyError:
        vr = ""
    return Tag(number, name, vr)


def values_of(dataset: Dataset, number: int) -> list[str] | None:
    """The values of an element as text; None when it is not there, [""] when it is empty or cannot be read."""
    if number not in dataset:
        return None
    try:
        value = dataset[BaseTag(number)].value
    except UNREADABLE:
        return [""]
    if value is None:
        return [""]
    if isinstance(value, MultiValue | list | tuple):
        return [str(one).strip(" \0") for one in value] or [""]
    return [str(value).strip(" \0")]


@dataclass(frozen=True)
class Condition:
    """All parts must hold. An element that is not there is tested as empty text."""

    places: tuple[tuple[str, Test], ...] = ()
    sop_class: Test | None = None
    tags: tuple[tuple[Tag, Test], ...] = ()
    present: tuple[Tag, ...] = ()
    absent: tuple[Tag, ...] = ()

    def may_hold(self, sender: Sender, sop_class: str | None = None) -> bool:
        """Whether it can hold, before anything of the data set is known (and of the command, with None)."""
        if not all(test(getattr(sender, place)) for place, test in self.places):
            return False
        return sop_class is None or self.sop_class is None or self.sop_class(sop_class)

    def holds(self, sender: Sender, sop_class: str, dataset: Dataset) -> bool:
        """Whether it holds for an instance."""
        if not self.may_hold(sender, sop_class):
            return False
        for named, test in self.tags:
            if not any(test(value) for value in values_of(dataset, named.number) or [""]):
                return False
        if any(named.number not in dataset for named in self.present):
            return False
        return not any(any(values_of(dataset, named.number) or []) for named in self.absent)


def read(raw: dict[str, Any]) -> Condition:
    """The condition of a rule's ``when`` table. Raises: PermanentError("invalid-rules")."""
    places, tags = [], []
    sop_class: Test | None = None
    for key, wanted in raw.items():
        if key in ("present", "absent"):
            continue
        if key == "address":
            places.append((key, _any(wanted, _address)))
        elif key in _PLACES:
            places.append((key, _any(wanted, _pattern)))
        elif key == "sop_class":
            sop_class = _any(wanted, _sop_class)
        else:
            tags.append((tag("Modality" if key == "modality" else key), _any(wanted, _pattern)))
    return Condition(
        tuple(places),
        sop_class,
        tuple(tags),
        tuple(tag(name) for name in texts(raw.get("present", []))),
        tuple(tag(name) for name in texts(raw.get("absent", []))),
    )


def texts(wanted: object) -> list[str]:
    """A text, or a list of them, as a list. Raises: PermanentError("invalid-rules")."""
    found = wanted if isinstance(wanted, list) else [wanted]
    if not all(isinstance(one, str) for one in found):
        raise PermanentError("invalid-rules", f"{wanted!r} is neither a text nor a list of texts")
    return [str(one) for one in found]


def _any(wanted: object, make: Callable[[str], Test]) -> Test:
    tests = [make(one) for one in texts(wanted)]
    return lambda value: any(test(value) for test in tests)


def _pattern(text: str) -> Test:
    """``/…/`` is a regular expression that is searched for, else * and ? are wildcards."""
    if len(text) > 1 and text.startswith("/") and text.endswith("/"):
        try:
            found = re.compile(text[1:-1]).search
        except re.error as error:
            raise PermanentError("invalid-rules", f"{text} is no regular expression: {error}") from error
        return lambda value: found(value) is not None
    return lambda value: fnmatchcase(value, text.replace("[", "[[]"))


def _address(text: str) -> Test:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return _pattern(text)

    def within(value: str) -> bool:
        try:
            return ipaddress.ip_address(value) in network
        except ValueError:
            return False

    return within


def _sop_class(text: str) -> Test:
    """By UID, or by the keyword of the class (``CTImageStorage``), both with wildcards."""
    if text[:1].isdigit():
        return _pattern(text)
    test = _pattern(text)
    uids = frozenset(uid for keyword, uid in _UID_OF_KEYWORD.items() if test(keyword))
    if not uids:
        raise PermanentError("invalid-rules", f"no SOP class is called {text!r}")
    return lambda value: value in uids

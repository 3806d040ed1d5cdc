"""Person names: their parts, and the keys by which they are found and sorted without any collation.

Source: PS3.5 6.2.1
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import reduce
from typing import Final

from standards.charsets import transliterate


@dataclass(frozen=True)
class ComponentGroup:
    """One writing of a name: family, given, middle, prefix, suffix."""

    family: str = ""
    given: str = ""
    middle: str = ""
    prefix: str = ""
    suffix: str = ""

    def __bool__(self) -> bool:
        return any((self.family, self.given, self.middle, self.prefix, self.suffix))


@dataclass(frozen=True)
class ParsedName:
    """A PN value: the alphabetic, ideographic and phonetic writings; an absent one is empty and false."""

    alphabetic: ComponentGroup
    ideographic: ComponentGroup
    phonetic: ComponentGroup


_SPACES = re.compile(r"\s+")
_NOT_WORD = re.compile(r"[\W_]+")
_WILD_NOT_WORD = re.compile(r"[^\w*?]+|_+")

# Every spelling scheme in use (passport, GOST, BGN, by ear) meets in one rough key; order matters, longest first.
_LATIN_FOLDS: Final = (
    ("iya", "a"), ("iia", "a"), ("ija", "a"), ("iye", "e"), ("iie", "e"), ("ije", "e"), ("iyu", "u"), ("iiu", "u"),
    ("iju", "u"),
    ("shch", "sc"), ("sch", "sc"), ("tsch", "c"), ("tch", "c"), ("zh", "z"), ("kh", "h"), ("tz", "s"), ("ts", "s"),
    ("ch", "c"), ("sh", "s"), ("ph", "f"), ("sc", "s"), ("ks", "x"), ("yo", "e"), ("jo", "e"), ("io", "e"),
    ("ye", "e"), ("je", "e"), ("ie", "e"), ("yu", "u"), ("ju", "u"), ("iu", "u"), ("ya", "a"), ("ja", "a"),
    ("ia", "a"), ("iy", "i"), ("yi", "i"), ("ij", "i"), ("ii", "i"), ("yy", "i"), ("ey", "e"), ("ei", "e"),
    ("oy", "o"), ("oi", "o"), ("ay", "a"), ("ai", "a"), ("j", "i"), ("y", "i"), ("w", "v"), ("q", "k"),
    ("c", "s"),
)  # fmt: skip
_REPEATED = re.compile(r"(.)\1+")


def parse(value: object) -> ParsedName:
    """The groups and components of a PN value (a string or pydicom's PersonName); missing parts are empty.

    Components past the fifth are kept in the suffix, as nothing of a name may be lost.
    """
    groups = [*str(value or "").split("="), "", "", ""][:3]
    return ParsedName(*(_group(text) for text in groups))


def _group(text: str) -> ComponentGroup:
    parts = [_SPACES.sub(" ", part).strip(" \0") for part in text.split("^")]
    if len(parts) > 5:
        parts[4:] = [" ".join(part for part in parts[4:] if part)]
    return ComponentGroup(*parts)


def display(pn: object) -> str:
    """The name as a person writes it: prefix, family, given, middle, suffix, of the first group that is not empty.

    ``Щёголев-Ящуржинский^Пётр^Ёжикович`` gives ``Щёголев-Ящуржинский Пётр Ёжикович``.
    """
    parsed = parse(pn)
    group = parsed.alphabetic or parsed.ideographic or parsed.phonetic
    name = " ".join(part for part in (group.prefix, group.family, group.given, group.middle) if part)
    return f"{name}, {group.suffix}" if name and group.suffix else name or group.suffix


def _bare(text: str) -> str:
    """Lower case without marks; й stays a letter of its own, ё becomes е."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFKC", text).casefold())
    letters = []
    for char in folded:
        if char == "й":
            letters.append(char)
            continue
        plain = (part for part in unicodedata.normalize("NFD", char) if not unicodedata.combining(part))
        letters.append("".join(plain))
    return "".join(letters)


def fold(text: str) -> str:
    """The matching key: case, ё and diacritics gone, each run of punctuation and spaces one space.

    ``fold(fold(x)) == fold(x)``; equal keys mean the same name to a person who reads Russian.
    """
    return _NOT_WORD.sub(" ", _bare(text)).strip()


def fold_pattern(text: str) -> str:
    """:func:`fold` for a matching key: ``*`` and ``?`` stay what they are."""
    return _WILD_NOT_WORD.sub(" ", _bare(text)).strip()


def folds(value: str) -> tuple[str, str, str]:
    """:func:`fold` of the alphabetic, ideographic and phonetic writing of a PN value; "" where there is none."""
    groups = [*value.split("="), "", ""]
    return fold(groups[0]), fold(groups[1]), fold(groups[2])


def rough_name(value: str) -> str:
    """:func:`latin_key` of the first writing of a PN value that says anything."""
    return latin_key(next((group for group in value.split("=") if fold(group)), ""))


def sort_key(text: str) -> str:
    """A key whose plain binary order is the order of the Russian alphabet, ё beside е, Latin before Cyrillic.

    Once folded, Russian letters already lie in alphabet order in Unicode. Where two names fold alike, the one with е
    comes before the one with ё.
    """
    plain = unicodedata.normalize("NFC", text).casefold()
    exact = _NOT_WORD.sub(" ", plain).strip()
    # U+0001 sorts below the space, so a shorter name stays before a longer one whatever the tie-break holds.
    return f"{fold(text)}\x01{exact}"


def latin_key(text: str) -> str:
    """A rough Latin key under which «Щёголев», ``Shchegolev``, ``SCHEGOLEV`` and ``Ščëgolev`` are one.

    Empty only if the name has no letters or digits. Differing names may share a key, so it proposes and never proves.
    """
    words = (_rough(word) for word in _latin(text).split(" "))
    return " ".join(words)


def latin_pattern(text: str) -> str:
    """:func:`latin_key` for a matching key: ``*`` and ``?`` stay what they are."""
    parts = re.split(r"([*?])", text)
    return "".join(part if part in ("*", "?") else _rough_with_edges(part) for part in parts)


def _rough_with_edges(part: str) -> str:
    # A space at the edge of a piece parts words and must outlive the folding.
    left = " " if part[:1] and _NOT_WORD.match(part) else ""
    right = " " if len(part) > 1 and _NOT_WORD.match(part[-1]) else ""
    key = latin_key(part)
    return f"{left}{key}{right}" if key else left


def _latin(text: str) -> str:
    prepared = unicodedata.normalize("NFC", text).casefold().replace("š", "sh").replace("č", "ch").replace("ž", "zh")
    return fold(transliterate(prepared).replace("'", ""))


def _rough(word: str) -> str:
    return _REPEATED.sub(r"\1", reduce(lambda rough, pair: rough.replace(*pair), _LATIN_FOLDS, word))

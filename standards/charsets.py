"""Text in the character set that (0008,0005) names, and text for those who cannot show it.

Reading is lenient: misspelt terms are understood, unknown ones are guessed, no byte is lost without a trace.
Writing is strict: what the target cannot show is transliterated, and never becomes "?".
"""

import copy
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

import pydicom.charset
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import PersonName

from standards.errors import PermanentError

TEXT_VRS: Final = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
"""VRs whose values (0008,0005) governs (PS3.5 6.1.2.3)."""

_DELIMITERS_PN: Final = frozenset("\\^=\r\n\t\f")
_DELIMITERS_TEXT: Final = frozenset("\\\r\n\t\f")

# Python's codecs for the terms, without ISO 2022 escapes; None where only ASCII may appear.
_CODECS: Final = {
    "": "ascii",
    "6": "ascii",
    "13": "shift_jis",
    "58": "gb2312",
    "87": "iso2022_jp",
    "100": "iso8859_1",
    "101": "iso8859_2",
    "109": "iso8859_3",
    "110": "iso8859_4",
    "126": "iso8859_7",
    "127": "iso8859_6",
    "138": "iso8859_8",
    "144": "iso8859_5",
    "148": "iso8859_9",
    "149": "euc_kr",
    "159": "iso2022_jp_2",
    "166": "iso8859_11",
    "192": "utf_8",
    "203": "iso8859_15",
}
_OVERRIDING: Final = "!"
_STANDALONE: Final = {"GB18030": "gb18030", "GBK": "gbk"}
_ESCAPE_SEQUENCE = re.compile(r"\x1b[\x20-\x2f]+[\x30-\x7e]")
_NUMBERED = re.compile(r"ISO[ _\-]?(?:(2022)[ _\-]?)?(?:IR)?[ _\-]?(\d+)")
_CANONICAL = re.compile(r"ISO(?:_IR| 2022 IR) (\d+)", re.ASCII)

# What the letters of Russian and its neighbours become, readable rather than reversible.
_LATIN: Final = {
    "а": "a", "б": "b", "в": "v", "г": "g", "д": "d", "е": "e", "ё": "yo", "ж": "zh", "з": "z", "и": "i",
    "й": "y", "к": "k", "л": "l", "м": "m", "н": "n", "о": "o", "п": "p", "р": "r", "с": "s", "т": "t",
    "у": "u", "ф": "f", "х": "kh", "ц": "ts", "ч": "ch", "ш": "sh", "щ": "shch", "ъ": "", "ы": "y", "ь": "",
    "э": "e", "ю": "yu", "я": "ya", "є": "ye", "і": "i", "ї": "yi", "ґ": "g", "ў": "u", "ј": "j", "љ": "lj",
    "њ": "nj", "ћ": "c", "ђ": "dj", "џ": "dz", "ѓ": "g", "ќ": "k", "ѕ": "dz",
}  # fmt: skip

# The Greek letter μ counts as the micro sign: read as m it would make micrograms into milligrams.
_SYMBOLS: Final = {
    "№": "No.", "«": '"', "»": '"', "„": '"', "“": '"', "”": '"', "‘": "'", "’": "'", "‚": "'", "‹": "'", "›": "'",
    "—": "-", "–": "-", "‒": "-", "―": "-", "‐": "-", "‑": "-", "−": "-", "…": "...", "•": "*", "·": ".", "×": "x",
    "÷": "/", "±": "+/-", "≤": "<=", "≥": ">=", "≈": "~", "≠": "!=", "°": " deg ", "º": "o", "ª": "a", "µ": "u",
    "μ": "u", "²": "2", "³": "3", "¹": "1", "½": "1/2", "¼": "1/4", "¾": "3/4", "€": "EUR", "₽": "RUB", "£": "GBP",
    "¥": "JPY", "¢": "c", "§": "par.", "©": "(c)", "®": "(R)", "™": "(TM)", "¶": "", "†": "+", "‡": "++", "→": "->",
    "←": "<-", "↑": "up", "↓": "down", "Ø": "O", "ø": "o", "ß": "ss", "Æ": "AE", "æ": "ae", "Œ": "OE", "œ": "oe",
    "Ł": "L", "ł": "l", "Đ": "D", "đ": "d", "Þ": "Th", "þ": "th", "Ð": "D", "ð": "d", "ı": "i", "¿": "", "¡": "",
    "\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u200b": "", "\ufeff": "", "\u00ad": "",
    "α": "a", "β": "v", "γ": "g", "δ": "d", "ε": "e", "ζ": "z", "η": "i", "θ": "th", "ι": "i", "κ": "k", "λ": "l",
    "ν": "n", "ξ": "x", "ο": "o", "π": "p", "ρ": "r", "σ": "s", "ς": "s", "τ": "t", "υ": "y", "φ": "f", "χ": "ch",
    "ψ": "ps", "ω": "o",
}  # fmt: skip


def terms(value: str | Sequence[str] | None) -> list[str]:
    """The defined terms of a Specific Character Set, spelt as the standard does; unknown terms stay as they are.

    Takes the element's value in any shape: None, one string (with or without backslashes) or several.
    ``ISO-IR 100``, ``ISO_IR_100``, ``iso ir 100`` and ``ISO 2022 IR_100`` are understood.
    """
    if value is None:
        return [""]
    parts = value.split("\\") if isinstance(value, str) else [str(item) for item in value]
    found = [_term(part) for part in parts]
    return found or [""]


def _term(part: str) -> str:
    text = part.strip(" \0")
    folded = text.upper()
    if folded in ("UTF-8", "UTF8", "UNICODE UTF-8"):
        return "ISO_IR 192"
    if folded in _STANDALONE or not folded:
        return folded
    match = _NUMBERED.fullmatch(folded)
    if match and match[2] in _CODECS:
        return f"ISO 2022 IR {match[2]}" if match[1] else f"ISO_IR {match[2]}"
    return text


def overriding(codec: str) -> str:
    """What to assume of a source whose texts are in this Python codec, whatever they declare: a default that overrides.

    It is no defined term: it stands only where the default of a source is named (``part10.read_header``).
    """
    return f"{_OVERRIDING}{codec}"


def overriding_codec(default: str) -> str:
    """The codec in such a default, "" in any other."""
    return default.removeprefix(_OVERRIDING) if default.startswith(_OVERRIDING) else ""


def is_known(value: str | Sequence[str] | None) -> bool:
    """Whether every term is one of the standard's, misspellings included."""
    return all(_codec(term) is not None for term in terms(value))


def _codec(term: str) -> str | None:
    if term in _STANDALONE:
        return _STANDALONE[term]
    match = _CANONICAL.fullmatch(term)
    return _CODECS.get(match[1]) if match else None if term else _CODECS[""]


def python_encodings(value: str | Sequence[str] | None) -> list[str]:
    """Python codec names in the form pydicom takes; an unknown term becomes Latin-1, which keeps every byte."""
    known = [term if _codec(term) is not None else "ISO_IR 100" for term in terms(value)]
    if known[0].endswith(" 203"):
        return [_CODECS["203"]]  # pydicom does not know it
    known = ["ISO_IR 100" if term.endswith(" 203") else term for term in known]
    if known[0] in ("ISO_IR 192", "GB18030", "GBK"):
        known = known[:1]
    else:
        known = [known[0], *(term for term in known[1:] if term not in ("ISO_IR 192", "GB18030", "GBK"))]
    return list(pydicom.charset.convert_encodings(known))


def decode(raw: bytes, charset: str | Sequence[str] | None, *, person_name: bool = False) -> str:
    """Text of ``raw`` in the Specific Character Set, code extensions included; never raises.

    Where the term is unknown, absent, or cannot explain the bytes, UTF-8 is tried, then Windows-1251 if the bytes look
    Cyrillic, then Latin-1, so a wrongly labelled name is still readable more often than not.
    """
    if raw.isascii() and b"\x1b" not in raw:
        return raw.decode("ascii")
    wanted = terms(charset)
    codec = _codec(wanted[0])
    if len(wanted) == 1 and b"\x1b" not in raw and codec not in (None, "ascii"):
        try:
            return raw.decode(codec or "ascii")
        except UnicodeDecodeError:
            return _guess(raw)
    if all(_codec(term) is not None for term in wanted) and (len(wanted) > 1 or b"\x1b" in raw):
        delimiters = {ord(char) for char in (_DELIMITERS_PN if person_name else _DELIMITERS_TEXT)}
        text: str = pydicom.charset.decode_bytes(raw, python_encodings(charset), delimiters)
        # pydicom leaves the escapes of GB 2312 in the text.
        text = _ESCAPE_SEQUENCE.sub("", text)
        if "\ufffd" not in text:
            return text
    return _guess(raw)


def _guess(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        high = [byte for byte in raw if byte >= 0x80]
        # In Windows-1251 nearly every Russian letter is 0xC0–0xFF, plus Ё 0xA8, ё 0xB8, № 0xB9.
        cyrillic = sum(byte >= 0xC0 or byte in (0xA8, 0xB8, 0xB9) for byte in high)
        # Western text mixes a few accented letters into ASCII; Russian words are made of high bytes.
        letters = sum(chr(byte).isalpha() for byte in raw if byte < 0x80)
        if cyrillic == len(high) and len(high) > letters:
            return raw.decode("cp1251")
        return raw.decode("latin-1")


def encode(text: str, charset: str | Sequence[str] | None) -> bytes:
    """``text`` in the Specific Character Set, with what it cannot show transliterated first."""
    showable = encode_for(text, charset)
    wanted = terms(charset)
    codec = _codec(wanted[0])
    if codec is not None and len(wanted) == 1:
        return showable.encode(codec)
    encoded: bytes = pydicom.charset.encode_string(showable, python_encodings(charset))
    return encoded


def transliterate(text: str) -> str:
    """``text`` in ASCII: Cyrillic as Latin letters, diacritics dropped, symbols spelt out; nothing becomes "?".

    Characters without any Latin reading (ideographs, emoji) are named by code point, as in ``U+4E2D``.
    """
    return "".join(_ascii_of(char, *neighbours) for char, *neighbours in _with_neighbours(text))


def _with_neighbours(text: str) -> Iterable[tuple[str, str, str]]:
    composed = unicodedata.normalize("NFC", text)
    padded = f" {composed} "
    return zip(composed, padded, padded[2:], strict=False)


def _ascii_of(char: str, before: str, after: str) -> str:
    if char.isascii():
        return char
    lower = char.lower()
    if lower in _LATIN:
        latin = _LATIN[lower]
        if lower == char or not latin:
            return latin
        # A capital inside a word written in capitals gives capitals (ЩУКА, SHCHUKA), otherwise only the first letter.
        loud = after.isupper() or (before.isupper() and not after.isalpha())
        return latin.upper() if loud else latin.capitalize()
    if char in _SYMBOLS:
        return _SYMBOLS[char]
    if lower in _SYMBOLS:
        return _SYMBOLS[lower].upper()
    plain = "".join(part for part in unicodedata.normalize("NFKD", char) if not unicodedata.combining(part))
    if plain.isascii():
        return plain
    if len(plain) == 1 and plain != char:
        return _ascii_of(plain, before, after)
    return f"U+{ord(char):04X}"


def _can_show(codecs: Sequence[str], text: str) -> bool:
    for codec in codecs:
        if codec == "shift_jis" and not all(char.isascii() or "\uff61" <= char <= "\uff9f" for char in text):
            # ISO-IR 13 is JIS X 0201 alone; Python's codec would add the two-byte set.
            continue
        try:
            text.encode(codec)
        except UnicodeEncodeError:
            continue
        return True
    return False


def encode_for(text: str, charset: str | Sequence[str] | None) -> str:
    """``text`` with every character the set cannot show transliterated; characters it can show stay.

    A sign with a near equivalent inside the set takes that (— in ISO 8859-5 becomes -), never "?".

    Raises: PermanentError("unknown-character-set") for a term that is not the standard's.
    """
    codecs: list[str] = []
    for term in terms(charset):
        codec = _codec(term)
        if codec is None:
            raise PermanentError("unknown-character-set", f"{term!r} is not a defined term of (0008,0005)")
        codecs.append(codec)
    return showable_in(text, codecs)


def showable_in(text: str, codecs: Sequence[str]) -> str:
    """:func:`encode_for` for Python codec names, of which any one may show a character."""
    composed = unicodedata.normalize("NFC", text)
    if _can_show(codecs, composed):
        return composed
    shown = []
    for char, before, after in _with_neighbours(composed):
        if _can_show(codecs, char):
            shown.append(char)
            continue
        bare = "".join(part for part in unicodedata.normalize("NFKD", char) if not unicodedata.combining(part))
        if bare and bare != char and char not in _SYMBOLS and _can_show(codecs, bare):
            shown.append(bare)
        else:
            shown.append(_ascii_of(char, before, after))
    return "".join(shown)


def name_for(text: str, charset: str | Sequence[str] | None) -> str:
    """:func:`encode_for` for a PN value, part by part: a spelt-out sign (≤ is "<=") brings in no delimiter of names."""
    return "".join(
        part if part in "^=" else re.sub(r"[\^=]", " ", encode_for(part, charset))
        for part in re.split(r"([\^=])", text)
    )


def encode_dataset(ds: Dataset, charset: str | Sequence[str] | None) -> Dataset:
    """A deep copy whose texts can all be shown in ``charset`` and whose (0008,0005) says so; ``ds`` is not touched.

    Nested (0008,0005) elements are dropped, so the outer one holds everywhere. An empty character set (ASCII) removes
    the element. Writing the result with pydicom encodes it in that set.

    Raises: PermanentError("unknown-character-set").
    """
    wanted = terms(charset)
    encode_for("", wanted)
    result = _showable(ds, wanted)
    if wanted == [""]:
        result.set_original_encoding(None, None, ["iso8859"])
    else:
        result.SpecificCharacterSet = wanted[0] if len(wanted) == 1 else wanted
        result.set_original_encoding(None, None, python_encodings(wanted))
    return result


def _showable(ds: Dataset, wanted: list[str]) -> Dataset:
    result = Dataset()
    for element in ds:
        if element.tag == 0x00080005:
            continue
        if element.VR == "SQ":
            items = [_showable(item, wanted) for item in element.value]
            result.add_new(element.tag, "SQ", items)
        elif element.VR in TEXT_VRS:
            result.add(DataElement(element.tag, element.VR, _showable_value(element, wanted), already_converted=True))
        else:
            result.add(copy.deepcopy(element))
    return result


def _showable_value(element: DataElement, wanted: list[str]) -> object:
    value = element.value
    if value is None:
        return value
    many = isinstance(value, MultiValue | list | tuple)
    texts = [str(item) for item in (value if many else [value])]
    texts = [name_for(text, wanted) if element.VR == "PN" else encode_for(text, wanted) for text in texts]
    encodings = python_encodings(wanted)
    shown: list[object] = [PersonName(text, encodings) for text in texts] if element.VR == "PN" else list(texts)
    return MultiValue(lambda item: item, shown) if many else shown[0]

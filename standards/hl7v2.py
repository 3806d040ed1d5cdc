"""HL7 v2 messages: character set, fields by path, and acknowledgements in the asker's character set.

Fields are read here rather than through hl7apy's tree, which rewrites formatting escapes (``\\.br\\``) and gives up a
whole message for one unknown segment; :meth:`Message.structured` gives that tree to who wants the standard's structure.

Source: HL7 v2.5.1 chapter 2
"""

import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from hl7apy.consts import VALIDATION_LEVEL  # type: ignore[import-untyped]
from hl7apy.exceptions import HL7apyException  # type: ignore[import-untyped]
from hl7apy.parser import parse_message  # type: ignore[import-untyped]

from standards import charsets
from standards.errors import PermanentError
from standards.mllp import MAX_MESSAGE, MllpReader, frame

__all__ = ["MAX_MESSAGE", "Message", "MllpReader", "Segment", "ack", "decode", "frame", "parse"]

AUTO: Final = "auto"
"""Default character set: UTF-8 where the bytes are valid UTF-8, else Windows-1251."""

# HL7 table 0211 and what Russian systems write into MSH-18, in upper case without spaces, dashes or underscores.
_CODECS: Final = {
    "ASCII": "ascii", "UNICODEUTF8": "utf_8", "UTF8": "utf_8", "UNICODE": "utf_8", "8859/1": "iso8859_1",
    "8859/2": "iso8859_2", "8859/3": "iso8859_3", "8859/4": "iso8859_4", "8859/5": "iso8859_5",
    "8859/6": "iso8859_6", "8859/7": "iso8859_7", "8859/8": "iso8859_8", "8859/9": "iso8859_9",
    "8859/15": "iso8859_15", "ISO88591": "iso8859_1", "ISO88595": "iso8859_5", "WINDOWS1251": "cp1251",
    "CP1251": "cp1251", "WIN1251": "cp1251", "1251": "cp1251", "WINDOWS1252": "cp1252", "CP1252": "cp1252",
    "KOI8R": "koi8_r", "CP866": "cp866", "GB180302000": "gb18030",
}  # fmt: skip
_PATH = re.compile(
    r"(?P<segment>[A-Z][A-Z0-9]{2})(?:\[(?P<occurrence>\d{1,4})\])?-(?P<field>\d{1,3})"
    r"(?:\[(?P<repetition>\d{1,4})\])?(?:\.(?P<component>\d{1,3}))?(?:\.(?P<subcomponent>\d{1,3}))?"
)
_SEGMENT_NAME = re.compile(r"[A-Z][A-Z0-9]{2}")


@dataclass(frozen=True)
class Delimiters:
    """The five encoding characters of a message (MSH-1, MSH-2)."""

    field: str = "|"
    component: str = "^"
    repetition: str = "~"
    escape: str = "\\"
    subcomponent: str = "&"


@dataclass(frozen=True)
class Segment:
    """One segment; ``fields[0]`` is its name, so that ``fields[n]`` is field n, still escaped."""

    name: str
    fields: tuple[str, ...]
    delimiters: Delimiters
    codec: str

    def get(self, path: str, default: str = "") -> str:
        """The text at ``5``, ``5.1``, ``3[2].4.1`` (repetitions, components and subcomponents count from 1).

        Without a component: the first one if there are several, unescaped. Absent or empty: ``default``.
        """
        found = _PATH.fullmatch(f"{self.name}-{path}")
        if not found:
            raise ValueError(f"{path!r} is not a path")
        field = self._field(int(found["field"]))
        text = field
        if self.name != "MSH" or found["field"] not in ("1", "2"):
            repetitions = field.split(self.delimiters.repetition)
            text = _nth(repetitions, found["repetition"])
            text = _nth(text.split(self.delimiters.component), found["component"])
            text = _nth(text.split(self.delimiters.subcomponent), found["subcomponent"])
        else:
            return text or default
        return self.unescape(text) or default

    def repetitions(self, field: int) -> list[list[str]]:
        """Every repetition of a field as its list of components, unescaped; subcomponents stay joined by ``&``."""
        raw = self._field(field)
        if not raw:
            return []
        return [
            [self.unescape(component) for component in repetition.split(self.delimiters.component)]
            for repetition in raw.split(self.delimiters.repetition)
        ]

    def _field(self, number: int) -> str:
        value = self.fields[number] if number < len(self.fields) else ""
        return "" if value == '""' else value

    def unescape(self, text: str) -> str:
        """Text with its escape sequences resolved: delimiters, ``\\Xhh\\``, ``\\.br\\`` (a line end); others vanish."""
        mark = re.escape(self.delimiters.escape)
        return re.sub(f"{mark}([^{mark}]*){mark}", lambda found: self._escape(found[1]), text)

    def _escape(self, code: str) -> str:
        single = {
            "F": self.delimiters.field,
            "S": self.delimiters.component,
            "T": self.delimiters.subcomponent,
            "R": self.delimiters.repetition,
            "E": self.delimiters.escape,
        }.get(code)
        if single is not None:
            return single
        if code[:1] == "X" and re.fullmatch(r"(?:[0-9A-Fa-f]{2})+", code[1:]):
            return bytes.fromhex(code[1:]).decode(self.codec, "replace")
        if code.startswith((".br", ".sp")):
            return "\n"
        return ""


def _nth(parts: list[str], number: str | None) -> str:
    index = int(number or 1) - 1
    return parts[index] if 0 <= index < len(parts) else ""


@dataclass(frozen=True)
class Message:
    """A parsed message: its segments in order, and the character set it came in."""

    segments: tuple[Segment, ...]
    text: str
    codec: str

    def get(self, path: str, default: str = "") -> str:
        """The text at ``PID-5.1``, ``PID-3[2].4.1`` or ``OBX[2]-5`` (all counts from 1); ``default`` if there is none.

        The HL7 null ``""`` reads as absent.
        """
        found = _PATH.fullmatch(path)
        if not found:
            raise ValueError(f"{path!r} is not a path")
        segment = self.segment(found["segment"], int(found["occurrence"] or 1))
        return segment.get(path.partition("-")[2], default) if segment else default

    def segment(self, name: str, occurrence: int = 1) -> Segment | None:
        """The n-th segment of that name, from 1."""
        return next((item for n, item in enumerate(self.all(name), 1) if n == occurrence), None)

    def all(self, name: str) -> Iterator[Segment]:
        """Every segment of that name, in order."""
        return (segment for segment in self.segments if segment.name == name)

    @property
    def type(self) -> str:
        """Message code and trigger event, as in ``ADT^A04``."""
        return "^".join(part for part in (self.get("MSH-9.1"), self.get("MSH-9.2")) if part)

    @property
    def control_id(self) -> str:
        """MSH-10."""
        return self.get("MSH-10")

    def structured(self) -> Any:
        """hl7apy's tree of the message with its groups.

        Raises: PermanentError("hl7-structure").
        """
        try:
            return parse_message(self.text, validation_level=VALIDATION_LEVEL.TOLERANT)
        except HL7apyException as error:
            raise PermanentError("hl7-structure", str(error)[:200]) from error


def parse(raw: bytes, default_charset: str = AUTO) -> Message:
    """A message as it came without framing. Segments may end in CR, LF or both; unknown ones are kept.

    ``default_charset`` (a value of MSH-18, or ``auto``) holds where MSH-18 is empty.

    Raises: PermanentError "not-hl7", "unknown-character-set", "undecodable-text", "message-too-large".
    """
    if len(raw) > MAX_MESSAGE:
        raise PermanentError("message-too-large", f"{len(raw)} bytes")
    text, codec = decode(raw.strip(b"\r\n \t\0"), default_charset)
    text = text.removeprefix("\ufeff").replace("\r\n", "\r").replace("\n", "\r")
    delimiters = _delimiters(text)
    segments = []
    for line in text.split("\r"):
        if not line.strip():
            continue
        fields = line.split(delimiters.field)
        if not _SEGMENT_NAME.fullmatch(fields[0]):
            raise PermanentError("not-hl7", f"a line begins with {fields[0][:10]!r}, which names no segment")
        if fields[0] == "MSH":
            fields.insert(1, delimiters.field)
        segments.append(Segment(fields[0], tuple(fields), delimiters, codec))
    return Message(tuple(segments), text, codec)


def _delimiters(text: str) -> Delimiters:
    if not text.startswith("MSH") or len(text) < 9:
        raise PermanentError("not-hl7", "the message does not begin with MSH")
    encoding = text[4:].split(text[3], 1)[0]
    given = text[3] + encoding[:4]
    if len(given) < 4 or len(set(given)) != len(given) or any(char.isalnum() or char.isspace() for char in given):
        raise PermanentError("not-hl7", "MSH-1 and MSH-2 do not name the delimiters")
    return Delimiters(given[0], given[1], given[2], given[3], given[4] if len(given) > 4 else "&")


def decode(raw: bytes, default_charset: str = AUTO) -> tuple[str, str]:
    """The text of a message and the Python codec it is in, by MSH-18 or ``default_charset``.

    Raises: PermanentError "not-hl7", "unknown-character-set", "undecodable-text".
    """
    body = raw.removeprefix(b"\xef\xbb\xbf")
    if not body.startswith(b"MSH") or len(body) < 9:
        raise PermanentError("not-hl7", "the message does not begin with MSH")
    header = re.split(rb"[\r\n]", body, maxsplit=1)[0].split(body[3:4])
    declared = header[17].decode("latin-1") if len(header) > 17 else ""
    declared = declared.split(chr(body[5]))[0].strip() or default_charset
    codec = _codec(declared, body)
    try:
        return body.decode(codec), codec
    except UnicodeDecodeError as error:
        raise PermanentError("undecodable-text", f"bytes at {error.start} are not {declared}") from error


def _codec(declared: str, body: bytes) -> str:
    if declared == AUTO:
        try:
            body.decode("utf-8")
        except UnicodeDecodeError:
            return "cp1251"
        return "utf_8"
    codec = _CODECS.get(re.sub(r"[\s_-]", "", declared.upper()))
    if codec is None:
        raise PermanentError("unknown-character-set", f"MSH-18 is {declared[:40]!r}")
    return codec


def escape(text: str, delimiters: Delimiters | None = None) -> str:
    """Text in which delimiters are escaped and line ends are ``\\.br\\``."""
    marks = delimiters or Delimiters()
    codes = {
        marks.escape: "E",
        marks.field: "F",
        marks.component: "S",
        marks.subcomponent: "T",
        marks.repetition: "R",
        "\n": ".br",
    }
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(f"{marks.escape}{codes[char]}{marks.escape}" if char in codes else char for char in plain)


def encode(text: str, codec: str) -> bytes:
    """Text in a codec, with what it cannot show transliterated."""
    return charsets.showable_in(text, [codec]).encode(codec)


def ack(message: Message | None, code: str, text: str = "", error: str | None = None) -> bytes:
    """An acknowledgement (AA, AE, AR) without framing, in the asker's character set.

    MSH-3…6 are swapped, MSA-2 is the asker's MSH-10, MSA-3 is ``text``. ``error`` is a stable code for ERR-5, with HL7
    error 207 in ERR-3. For bytes that are no message, ``message`` is None and the answer is addressed to nobody.

    Raises: ValueError for another code.
    """
    if code not in ("AA", "AE", "AR"):
        raise ValueError(f"{code!r} is not an acknowledgement code")
    marks = message.segments[0].delimiters if message else Delimiters()
    codec = message.codec if message else "utf_8"
    header = message.segments[0].fields if message else ()

    def raw(number: int) -> str:
        return header[number] if number < len(header) else ""

    trigger = message.get("MSH-9.2") if message else ""
    kind = marks.component.join(("ACK", trigger, "ACK") if trigger else ("ACK",))
    now = datetime.now(UTC).strftime("%Y%m%d%H%M%S+0000")
    msh = ["MSH", raw(2) or "^~\\&", raw(5), raw(6), raw(3), raw(4), now, "", kind, uuid.uuid4().hex[:20]]
    msh += [raw(11) or "P", raw(12) or "2.5.1"]
    if raw(18):
        msh += ["", "", "", "", "", raw(18)]
    lines = [marks.field.join(msh), marks.field.join(("MSA", code, raw(10), escape(text, marks)))]
    if error is not None or code != "AA":
        what = f"207{marks.component}Application internal error{marks.component}HL70357"
        fields = ("ERR", "", "", what, "E", escape(error or "", marks), "", "", escape(text, marks))
        lines.append(marks.field.join(fields))
    return encode("\r".join(lines) + "\r", codec)

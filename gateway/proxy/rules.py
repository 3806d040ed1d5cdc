"""The rules file of the proxy: one TOML file that a person can read; docs/guide/proxy.md explains it.

Rules are looked at in order, all that fit apply, ``stop = true`` ends. A rule with ``copy`` makes copies, and what else
it says holds for those copies alone. A rule without ``copy`` decides what passes on to the old PACS.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog
from pydicom.dataset import Dataset

from gateway.proxy import conditions
from gateway.proxy.conditions import Condition, Sender, Tag
from standards import charset_detection
from standards.charsets import is_known
from standards.errors import PermanentError

log = structlog.get_logger(__name__)

NODE: Final = "node"
"""The destination that is this node itself."""
OLD_PACS: Final = "old_pacs"
"""The destination that is the old PACS, for what is kept while it is down."""
REPAIR: Final = "repair"

TEXT_LIKE_VRS: Final = frozenset(
    {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"}
)
_RULE_KEYS: Final = frozenset(
    {
        "name", "when", "stop", "drop", "route", "copy", "deidentify",
        "set", "remove", "copy_tag", "map", "charset", "charset_to",
    }
)  # fmt: skip
_ADDRESS_KEYS: Final = frozenset({"ae_title", "host", "port"})
_IDENTITY_TAGS: Final = frozenset({0x00080016, 0x00080005})


@dataclass(frozen=True, slots=True)
class Peer:
    """An application entity and where it listens."""

    ae_title: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What becomes of a data set. Values that are set are text; ``mapped``: tag, old value → new value."""

    rule: str = ""
    charset: str = ""
    """Python codec that the source really writes, "repair" to find out, "" to leave texts alone."""
    charset_to: str = "ISO_IR 192"
    removed: tuple[Tag, ...] = ()
    copied: tuple[tuple[Tag, Tag], ...] = ()
    mapped: tuple[tuple[Tag, Mapping[str, str]], ...] = ()
    values: tuple[tuple[Tag, str], ...] = ()
    deidentify: bool = False

    @property
    def any(self) -> bool:
        """Whether anything is to be changed."""
        return bool(self.charset or self.removed or self.copied or self.mapped or self.values or self.deidentify)


@dataclass(frozen=True)
class Rule:
    """One rule; ``drop`` is the status to answer without passing on."""

    name: str
    when: Condition
    changes: Changes
    copy: tuple[str, ...] = ()
    route: str = ""
    drop: int | None = None
    stop: bool = False

    @property
    def is_inline(self) -> bool:
        """Whether it decides what passes to the old PACS."""
        return not self.copy and (self.drop is not None or bool(self.route) or self.changes.any)


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy that is to be made, changed as the rule says."""

    destination: str
    changes: Changes


@dataclass(frozen=True)
class Verdict:
    """What the rules say of one instance."""

    rules: tuple[str, ...] = ()
    drop: int | None = None
    route: str = ""
    changes: tuple[Changes, ...] = ()
    copies: tuple[Copy, ...] = ()


@dataclass(frozen=True)
class Rules:
    """A rules file that holds together."""

    rules: tuple[Rule, ...] = ()
    destinations: Mapping[str, Peer] = field(default_factory=dict)
    devices: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Called AE title → host and port, for associations that the old PACS opens."""
    store_and_forward: bool = False
    """Whether images are kept and delivered later while the old PACS cannot be reached."""
    watches_charsets: bool = True

    def inline(self, sender: Sender, sop_class: str | None = None) -> bool:
        """Whether an instance may have to be held until it is known whole."""
        return any(rule.is_inline and rule.when.may_hold(sender, sop_class) for rule in self.rules)

    def copies(self, sender: Sender, sop_class: str | None = None) -> bool:
        """Whether an instance may have to be copied."""
        return any(rule.copy and rule.when.may_hold(sender, sop_class) for rule in self.rules)

    def verdict(self, sender: Sender, sop_class: str, dataset: Dataset) -> Verdict:
        """What is to happen to an instance. The first drop or route that fits counts."""
        names: list[str] = []
        changes: list[Changes] = []
        copies: dict[str, Copy] = {}
        drop: int | None = None
        route = ""
        for rule in self.rules:
            if not rule.when.holds(sender, sop_class, dataset):
                continue
            names.append(rule.name)
            if rule.copy:
                for destination in rule.copy:
                    copies.setdefault(destination, Copy(destination, rule.changes))
            else:
                if drop is None and not route:
                    drop, route = rule.drop, rule.route
                if rule.changes.any:
                    changes.append(rule.changes)
            if rule.stop:
                break
        return Verdict(tuple(names), drop, route, tuple(changes), tuple(copies.values()))


def load(path: Path) -> Rules:
    """Read a rules file. Raises: PermanentError("invalid-rules") that says where and why, OSError."""
    try:
        return read(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PermanentError("invalid-rules", f"{path.name}: {error}") from error
    except (TypeError, ValueError, AttributeError, LookupError, RecursionError) as error:
        # What a person may write has no end, and whatever it is must not end the process that reads it.
        log.exception("rules-not-understood", path=str(path))
        raise PermanentError("invalid-rules", f"{path.name}: {type(error).__name__}: {error}") from error


def read(raw: Mapping[str, Any]) -> Rules:
    """The rules of a parsed file. Raises: PermanentError("invalid-rules")."""
    _known(raw, {"old_pacs", "destinations", "devices", "rule", "charsets"}, "the file")
    old_pacs = _table(raw, "old_pacs")
    _known(old_pacs, {"when_down"}, "[old_pacs]")
    when_down = old_pacs.get("when_down", "refuse")
    if when_down not in ("refuse", "store-and-forward"):
        raise PermanentError("invalid-rules", f"[old_pacs] when_down is {when_down!r}, not refuse or store-and-forward")
    charsets = _table(raw, "charsets")
    _known(charsets, {"watch"}, "[charsets]")
    destinations = {_folder(name): _peer(name, entry) for name, entry in _table(raw, "destinations").items()}
    if reserved := {NODE, OLD_PACS} & set(destinations):
        raise PermanentError("invalid-rules", f"[destinations.{min(reserved)}]: this name is taken")
    devices = {}
    for title, entry in _table(raw, "devices").items():
        peer = _peer(title, entry)
        devices[title] = (peer.host, peer.port)
    found: list[Rule] = []
    entries = raw.get("rule", [])
    if not isinstance(entries, list):
        raise PermanentError("invalid-rules", "rule is not written as [[rule]], with two brackets")
    for number, entry in enumerate(entries, 1):
        try:
            found.append(_rule(entry, destinations, number))
        except PermanentError as error:
            name = entry.get("name", "") if isinstance(entry, dict) else ""
            raise PermanentError("invalid-rules", f"rule {number} «{name}»: {error.detail}") from error
    names = [rule.name for rule in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise PermanentError("invalid-rules", f"two rules are called «{twice[0]}»")
    return Rules(
        tuple(found), destinations, devices, when_down == "store-and-forward", _flag(charsets, "watch", default=True)
    )


def _known(entry: Mapping[str, Any], keys: set[str] | frozenset[str], where: str) -> None:
    for key in entry:
        if key not in keys:
            raise PermanentError("invalid-rules", f"{where} has {key!r}, which is none of {', '.join(sorted(keys))}")


def _table(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    entry = raw.get(key, {})
    if not isinstance(entry, dict):
        raise PermanentError("invalid-rules", f"{key} is no table")
    return entry


def _flag(entry: Mapping[str, Any], key: str, *, default: bool = False) -> bool:
    value = entry.get(key, default)
    if not isinstance(value, bool):
        raise PermanentError("invalid-rules", f"{key} is {value!r}, not true or false")
    return value


def _folder(name: str) -> str:
    """A destination's name, which is that of a folder of the spool too."""
    if not name or len(name) > 64 or name.startswith(".") or not all(one.isalnum() or one in "_-. " for one in name):
        raise PermanentError("invalid-rules", f"[destinations.{name}]: letters, digits, _ and - make a name")
    return name


def _peer(name: str, entry: object) -> Peer:
    if not isinstance(entry, dict):
        raise PermanentError("invalid-rules", f"{name} is no table with ae_title, host and port")
    _known(entry, _ADDRESS_KEYS, name)
    title, host, port = entry.get("ae_title", name), entry.get("host", ""), entry.get("port", 0)
    if not (isinstance(title, str) and 0 < len(title) <= 16 and title.isascii()):
        raise PermanentError("invalid-rules", f"{name}: {title!r} is no AE title")
    if not (isinstance(host, str) and host and isinstance(port, int) and 0 < port < 65536):
        raise PermanentError("invalid-rules", f"{name}: host and port say where it listens")
    return Peer(title, host, port)


def _rule(entry: object, destinations: Mapping[str, Peer], number: int) -> Rule:
    if not isinstance(entry, dict):
        raise PermanentError("invalid-rules", "it is no [[rule]] table")
    _known(entry, _RULE_KEYS, "it")
    name = str(entry.get("name", "")).strip() or f"rule {number}"
    copy = tuple(conditions.texts(entry.get("copy", [])))
    route = str(entry.get("route", ""))
    for destination in (*copy, *([route] if route else [])):
        if destination not in destinations and not (destination == NODE and destination in copy):
            raise PermanentError("invalid-rules", f"there is no [destinations.{destination}]")
    drop = entry.get("drop", False)
    if not isinstance(drop, bool | int):
        raise PermanentError("invalid-rules", "drop is true, or the status to answer (0xA700)")
    status = (0x0000 if drop else None) if isinstance(drop, bool) else drop
    if status is not None and not 0 <= status <= 0xFFFF:
        raise PermanentError("invalid-rules", f"{drop} is no status")
    changes = _changes(entry, name)
    if changes.deidentify and not copy:
        raise PermanentError("invalid-rules", "deidentify goes with copy: the old PACS needs to know its patients")
    if NODE in copy and changes.any:
        raise PermanentError("invalid-rules", "the node keeps originals as they came; let other destinations have this")
    if copy and (route or status is not None):
        raise PermanentError("invalid-rules", "copy stands in a rule of its own, without drop or route")
    rule = Rule(name, conditions.read(_table(entry, "when")), changes, copy, route, status, _flag(entry, "stop"))
    if not copy and not rule.is_inline and not rule.stop:
        raise PermanentError("invalid-rules", "it does nothing")
    return rule


def _changes(entry: Mapping[str, Any], name: str) -> Changes:
    charset, target = str(entry.get("charset", "")), str(entry.get("charset_to", "ISO_IR 192"))
    if charset and charset != REPAIR:
        charset = charset_detection.codec(charset)
    if not is_known(target):
        raise PermanentError("invalid-rules", f"{target!r} is no Specific Character Set")
    maps = _table(entry, "map")
    return Changes(
        rule=name,
        charset=charset,
        charset_to=target,
        removed=tuple(
            _changeable(conditions.tag(one), any_vr=True) for one in conditions.texts(entry.get("remove", []))
        ),
        copied=tuple(
            (_changeable(conditions.tag(to)), _text(conditions.tag(_written(source))))
            for to, source in _table(entry, "copy_tag").items()
        ),
        mapped=tuple(
            (_changeable(conditions.tag(one)), {old: _written(new) for old, new in _table(maps, one).items()})
            for one in maps
        ),
        values=tuple((_changeable(conditions.tag(one)), _written(new)) for one, new in _table(entry, "set").items()),
        deidentify=_flag(entry, "deidentify"),
    )


def _written(value: object) -> str:
    if not isinstance(value, str | int | float):
        raise PermanentError("invalid-rules", f"{value!r} is no text")
    return str(value)


def _text(tag: Tag) -> Tag:
    if tag.vr and tag.vr not in TEXT_LIKE_VRS:
        raise PermanentError("invalid-rules", f"{tag.keyword} is {tag.vr}, and rules copy text only")
    return tag


def _changeable(tag: Tag, *, any_vr: bool = False) -> Tag:
    if tag.number in _IDENTITY_TAGS or tag.number >> 16 in (0x0000, 0x0002, 0x7FE0, 0xFFFE):
        raise PermanentError("invalid-rules", f"{tag.keyword} is not for rules to change")
    if tag.number == 0x00080018:
        raise PermanentError("invalid-rules", "the SOP Instance UID is not for rules to change")
    if not any_vr and tag.vr not in TEXT_LIKE_VRS:
        raise PermanentError("invalid-rules", f"{tag.keyword} is {tag.vr or 'unknown'}, and rules write text only")
    return tag

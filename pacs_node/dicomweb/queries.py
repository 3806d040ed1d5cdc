"""QIDO-RS parameters: what a search asks for. Source: PS3.18 8.3.4, 10.6.1"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from django.db.models import Q
from django.http import QueryDict

from pacs_node.dicomweb.attributes import Fields, fields_of, tag_of
from pacs_node.dicomweb.permissions import Reach
from pacs_node.study_index.keys import Level, vr_of
from pacs_node.study_index.searches import Search, Tree
from pacs_node.study_index.searches import search as understood
from standards.errors import PermanentError

MOST_RESULTS: Final = 1000
_CONTROL: Final = frozenset(
    {
        *("limit", "offset", "includefield", "fuzzymatching", "emptyvaluematching", "multiplevaluematching"),
        *("accept", "charset"),  # for links: the answer is in UTF-8 whatever is asked for. Source: PS3.18 8.3.3
    }
)
_MOST_COUNTED: Final = 999_999_999
_UID_OF: Final = {"study": "0020000D", "series": "0020000E"}


@dataclass(frozen=True)
class Request:
    """A search as asked, what to return, and which page. ``ignored``: keys that could not be matched, as they came."""

    search: Search
    fields: Fields | None
    limit: int
    offset: int
    ignored: list[str]


def parse(level: Level, query: QueryDict, reach: Reach, within: Mapping[str, str]) -> Request:
    """Read the parameters of a search below the study and series of ``within``.

    Raises: PermanentError "invalid-parameter", "unknown-attribute", "invalid-uid", "invalid-range", "invalid-number",
    "invalid-offset".
    """
    limit = min(_count(query, "limit", MOST_RESULTS), MOST_RESULTS)
    offset = _count(query, "offset", 0)
    flags = {name: _flag(query, name) for name in ("fuzzymatching", "emptyvaluematching", "multiplevaluematching")}
    names = [name.strip() for value in query.getlist("includefield") for name in value.split(",") if name.strip()]
    fields = None if "all" in (name.lower() for name in names) else fields_of(names)
    tree: Tree = {}
    came_as: dict[str, str] = {}
    for name, values in query.lists():
        if name not in _CONTROL:
            tags = [tag_of(part) for part in name.split(".")]
            came_as.setdefault(tags[0], name)
            _put(tree, tags, values)
    for place, uid in within.items():
        tag = _UID_OF[place]
        if str(tree.get(tag, "")).strip() not in ("", "*"):
            raise PermanentError("invalid-parameter", f"The {place} is named by the address already.")
        tree[tag] = uid
    search = understood(
        level,
        tree,
        fuzzy=flags["fuzzymatching"],
        combined=True,
        empty=flags["emptyvaluematching"],
        studies=reach.studies,
    )
    return Request(search, fields, limit, offset, [came_as[tag] for tag in search.ignored])


def _put(tree: Tree, tags: list[str], values: list[str]) -> None:
    at = tree
    for tag in tags[:-1]:
        inner = at.setdefault(tag, {})
        if not isinstance(inner, dict):
            raise PermanentError("invalid-parameter", f"{tag} is asked for both as a whole and by its parts.")
        at = inner
    if tags[-1] in at:
        raise PermanentError("invalid-parameter", f"{tags[-1]} is asked for twice.")
    text = "\\".join(value.replace("\0", "") for value in values)
    # No UID and no code has a comma in it, so a list of them may be written with commas.
    at[tags[-1]] = text.replace(",", "\\") if vr_of(tags[-1]) in ("UI", "CS") else text


def _flag(query: QueryDict, name: str) -> bool:
    value = query.get(name, "false").lower()
    if value not in ("true", "false"):
        raise PermanentError("invalid-parameter", f"{name} is true or false.")
    return value == "true"


def _count(query: QueryDict, name: str, default: int) -> int:
    value = query.get(name, "")
    if not value:
        return default
    if not value.isascii() or not value.isdigit():
        raise PermanentError("invalid-parameter", f"{name} is a whole number, not {value[:40]!r}.")
    return min(int(value[:20]), _MOST_COUNTED)


def held(prefix: str = "") -> Q:
    """The condition on instances that this node can give: not set aside as a variant, not released."""
    return Q(**{f"{prefix}is_variant": False, f"{prefix}released_at__isnull": True})

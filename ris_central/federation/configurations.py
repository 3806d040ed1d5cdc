"""The configuration of nodes: versions that a person made, each pushed to whom it concerns, none ever changed.

A node has its own newest version, or where it has none the region's. Going back is a new version with an old body, so
history only grows. Versions count through the whole region: the number that a node tells names one row.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection, transaction
from django.db.models import Max
from django.http import HttpRequest
from pydantic import ValidationError

from gateway.envelope import Configuration
from ris_central.audit.actions import record
from ris_central.federation import directories
from ris_central.federation.models import Node, NodeConfiguration
from ris_central.organizations.models import Site
from ris_central.organizations.queries import mirror_rules_of
from standards.errors import ConflictError, PermanentError

_NUMBERING = 0x5245_4749  # one advisory lock: two people at once get two numbers
_ENVELOPE = {"type", "version"}


@dataclass(frozen=True)
class Applied:
    """What a node should have and what it says it has. ``since``: when the version it lacks was made."""

    wanted: int
    told: int | None
    since: datetime | None

    @property
    def drifts(self) -> bool:
        """Whether the node has another version than the newest."""
        return self.told is not None and self.told != self.wanted


def checked(body: dict[str, Any]) -> dict[str, Any]:
    """The body as it is kept: every field that is known, nothing that is not.

    Raises: PermanentError("configuration-invalid") with the first fault, by its place.
    """
    given = {name: value for name, value in body.items() if name not in _ENVELOPE}
    try:
        parsed = Configuration.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise PermanentError("configuration-invalid", f"{place}: {first['msg']}") from error
    kept: dict[str, Any] = parsed.model_dump(mode="json", exclude=_ENVELOPE)
    if unknown := _unknown(given, kept, ""):
        raise PermanentError("configuration-invalid", f"{unknown}: no such setting")
    known = {*Node.objects.values_list("name", flat=True), *(one.name for one in parsed.mirror.outside)}
    for number, rule in enumerate(parsed.mirror.rules):
        for name in rule.destinations:
            if name not in known:
                raise PermanentError("configuration-invalid", f"mirror.rules.{number}.destinations: no node {name}")
    return kept


def _unknown(given: Any, kept: Any, place: str) -> str:
    """The first place that was given and is not kept: a setting that nobody has."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for name, value in given.items():
            here = f"{place}.{name}" if place else name
            if name not in kept:
                return here
            if found := _unknown(value, kept[name], here):
                return found
    if isinstance(given, list) and isinstance(kept, list):
        for number, (one, other) in enumerate(zip(given, kept, strict=False)):
            if found := _unknown(one, other, f"{place}.{number}"):
                return found
    return ""


def newest(node: Node | None) -> NodeConfiguration | None:
    """What counts for the node now, its own or the region's; without a node the region's."""
    own = NodeConfiguration.objects.filter(node=node).first() if node else None
    region = NodeConfiguration.objects.filter(node=None).first()
    return _counts(own, region)


def _counts(own: NodeConfiguration | None, region: NodeConfiguration | None) -> NodeConfiguration | None:
    return own if own is not None and (not own.follows_region or region is None) else region


def body_of(node: Node | None) -> dict[str, Any]:
    """The body that counts for the node now, with every field."""
    found = newest(node)
    return Configuration.model_validate(found.body if found else {}).model_dump(mode="json", exclude=_ENVELOPE)


def applied(node: Node) -> Applied:
    """What the node should have, and what it said last."""
    return applied_of([node])[node.pk]


def applied_of(nodes: Iterable[Node]) -> dict[int, Applied]:
    """:func:`applied` of many, in one look, by their keys."""
    rows = NodeConfiguration.objects.defer("body").order_by("node_id", "-version").distinct("node_id")
    own = {row.node_id: row for row in rows}
    found = {}
    for node in nodes:
        row = _counts(own.get(node.pk), own.get(None))
        told = node.status.get("configuration_version") if node.status else None
        found[node.pk] = Applied(row.version if row else 0, told, row.made_at if row else None)
    return found


@transaction.atomic
def save(
    node: Node | None,
    body: dict[str, Any],
    *,
    reason: str = "",
    based_on: int | None = None,
    restores: int | None = None,
    request: HttpRequest | None = None,
    made_by: str = "centre",
) -> NodeConfiguration:
    """A new version for the node, or without one for the region; it is on its way to whom it concerns.

    ``based_on``: the version that the writer saw. Raises: PermanentError "configuration-invalid",
    "configuration-changed" (somebody was quicker).
    """
    body = checked(body)
    version = _next_version()
    present = newest(node)
    if based_on is not None and based_on != (present.version if present else 0):
        raise ConflictError("configuration-changed", f"version {present.version if present else 0} was made meanwhile")
    return _add(node, version, body, reason, restores, request, made_by)


@transaction.atomic
def follow_region(node: Node, *, request: HttpRequest | None = None, reason: str = "") -> NodeConfiguration:
    """From now on the node has what all have."""
    return _add(node, _next_version(), {}, reason, None, request, "centre", follows_region=True)


@transaction.atomic
def roll_back(row: NodeConfiguration, *, request: HttpRequest | None = None) -> NodeConfiguration:
    """A new version with the body of an old one. Raises: PermanentError("configuration-invalid")."""
    if row.follows_region and row.node is not None:
        return follow_region(row.node, request=request)
    return save(row.node, row.body, reason="", restores=row.version, request=request)


def follow_storage_model(site: Site) -> None:
    """Listener: a site stores by another model, so its nodes mirror by the rules that it means."""
    rules = [rule.model_dump(mode="json") for rule in mirror_rules_of(site)]
    for node in Node.objects.filter(site=site).exclude(kind=Node.Kind.ARCHIVE):
        body = body_of(node)
        if body["mirror"]["rules"] != rules:
            save(node, {**body, "mirror": {**body["mirror"], "rules": rules}}, reason=site.get_storage_model_display())


def push(node: Node) -> None:
    """Send the node what counts for it, if anybody ever decided anything; call it in the transaction of the cause."""
    decided = NodeConfiguration.objects.filter(node=node).exists()
    if not decided and node.kind != Node.Kind.ARCHIVE and (rules := mirror_rules_of(node.site)):
        body = body_of(node)
        body["mirror"]["rules"] = [rule.model_dump(mode="json") for rule in rules]
        save(node, body, reason=str(node.site.get_storage_model_display()))
    elif (found := newest(node)) is not None:
        directories.send_command(node, Configuration.model_validate({**found.body, "version": found.version}))


def as_understood(body: dict[str, Any], understood: frozenset[str] | None) -> dict[str, Any]:
    """A command's body as a node is told it that understands these types of commands.

    Who does not know that a foreign PACS may be out of use, which came with ``foreign.probe``, is not told of it.
    """
    if body.get("type") != "configuration" or understood is None or "foreign.probe" in understood:
        return body
    return {**body, "foreign": [source for source in body.get("foreign", []) if source.get("enabled", True)]}


def _next_version() -> int:
    """Above all that were made, and above all that nodes have of a database that was restored since."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_NUMBERING])
    made = NodeConfiguration.objects.aggregate(Max("version"))["version__max"] or 0
    told = [
        int((status or {}).get("configuration_version") or 0)
        for status in Node.objects.values_list("status", flat=True)
    ]
    return int(max([made, *told])) + 1


def _add(
    node: Node | None,
    version: int,
    body: dict[str, Any],
    reason: str,
    restores: int | None,
    request: HttpRequest | None,
    made_by: str,
    *,
    follows_region: bool = False,
) -> NodeConfiguration:
    who = request.user.get_username() if request is not None and request.user.is_authenticated else made_by
    row = NodeConfiguration.objects.create(
        node=node,
        version=version,
        body=body,
        reason=reason[:255],
        restores=restores,
        made_by=who,
        follows_region=follows_region,
    )
    record(
        "configuration.made",
        request=request,
        actor=None if request else made_by,
        entity=node or ("region", "all nodes"),
        detail={"version": version, "reason": reason[:200], "restores": restores},
    )
    if node is not None:
        if node.joined_at is not None and node.revoked_at is None:
            push(node)
        return row
    for one in Node.objects.filter(joined_at__isnull=False, revoked_at=None).select_related("site"):
        own = NodeConfiguration.objects.filter(node=one).first()
        if own is None or own.follows_region:
            push(one)
    return row


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What differs, ``(place, before, after)`` in the order of the places; what is not there is an empty text."""
    old, new = _flat(before), _flat(after)
    return [
        (place, old.get(place, ""), new.get(place, ""))
        for place in sorted({*old, *new})
        if old.get(place) != new.get(place)
    ]


def _flat(value: Any, place: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        parts = [(f"{place}.{name}" if place else str(name), one) for name, one in value.items()]
    elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
        parts = [(f"{place}.{number + 1}", one) for number, one in enumerate(value)]
    elif value == []:
        return {}
    else:
        return {place: ", ".join(map(str, value)) if isinstance(value, list) else str(value)}
    return {name: text for one_place, one in parts for name, text in _flat(one, one_place).items()}

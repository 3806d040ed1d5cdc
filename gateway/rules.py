"""What the mirror's rules say of an instance at a moment: whether it may go to a destination, why not, and until when.

Pure: the policy, the hour in the site's zone and what was asked for the study go in, a decision comes out.
"""

import ipaddress
import socket
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from gateway.envelope import MirrorPolicy, MirrorRule

ROUTINE: Final = 50
"""Priorities below it are urgent: an hour at which nothing goes does not hold them."""
EVERYTHING: Final = MirrorRule()


@dataclass(frozen=True)
class Asked:
    """What somebody asked for a study: to go with this priority, or not to go at all."""

    priority: int
    is_held: bool = False


@dataclass(frozen=True)
class Decision:
    """``held_by`` is "" when it may go, else a reason of ``envelope.Held``; ``until`` when the clock ends it."""

    priority: int
    held_by: str = ""
    until: datetime | None = None


def rule_for(policy: MirrorPolicy, modality: str) -> MirrorRule:
    """The first rule that fits."""
    return next((rule for rule in policy.rules if not rule.modalities or modality in rule.modalities), EVERYTHING)


def decide(
    policy: MirrorPolicy,
    destination: str,
    modality: str,
    now: datetime,
    *,
    asked: Asked | None = None,
    may_leave: bool = True,
) -> Decision | None:
    """Whether an instance may go to ``destination`` now (aware, in the site's zone); None: no rule sends it there.

    ``may_leave``: whether the node is where its images may leave (``in_checkpoint``).
    """
    rule = rule_for(policy, modality)
    if rule.destinations and destination not in rule.destinations:
        return None
    priority = asked.priority if asked else rule.priority
    if asked and asked.is_held:
        return Decision(priority, "held")
    if not may_leave:
        return Decision(priority, "checkpoint")
    if not asked and rule.when == "on-demand":
        return Decision(priority, "on-demand")
    if not asked and rule.when == "night" and not within(now, policy.night_since, policy.night_until):
        return Decision(priority, "night", following(now, policy.night_since))
    cap, until = cap_at(policy, now)
    if cap == 0 and priority >= ROUTINE:
        return Decision(priority, "rate", until)
    return Decision(priority)


def cap_at(policy: MirrorPolicy, now: datetime) -> tuple[int | None, datetime | None]:
    """Kilobits a second that may leave the node at ``now``, None for no cap; and when that window ends."""
    for window in policy.rates:
        if within(now, window.since, window.until):
            return window.kilobits_per_second, following(now, window.until)
    return None, None


def within(now: datetime, since: str, until: str) -> bool:
    """Whether the clock of ``now`` is in ``[since, until)``, maybe over midnight. Equal ends are the whole day."""
    clock, begin, end = now.time().replace(tzinfo=None), time.fromisoformat(since), time.fromisoformat(until)
    return begin <= clock < end if begin < end else clock >= begin or clock < end


def following(now: datetime, clock: str) -> datetime:
    """The next time after ``now`` that the clock of its zone shows ``clock``."""
    there = datetime.combine(now.date(), time.fromisoformat(clock), now.tzinfo)
    return there if there > now else datetime.combine(now.date() + timedelta(days=1), there.time(), now.tzinfo)


def zone(name: str) -> ZoneInfo:
    """The zone of a site; UTC where this machine does not know it."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        return ZoneInfo("UTC")


def in_checkpoint(networks: list[str]) -> bool:
    """Whether this machine would speak to one of these networks from an address of that network itself.

    Nothing is sent: connecting a datagram socket only has the kernel choose a route.
    """
    return not networks or any(_is_in(network) for network in networks)


def _is_in(text: str) -> bool:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    somebody = network[1] if network.num_addresses > 1 else network[0]
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(somebody), 9))
            return ipaddress.ip_address(probe.getsockname()[0].partition("%")[0]) in network
    except OSError:
        return False  # no route there

"""Accession numbers from the blocks that the centre reserved, and the node's own emergency series after them.

A van that may not register a patient is worse than an ugly number: when the last reserved number is spent, the node
goes on with numbers of a form that the centre never gives (``A-E7-00001``), marks them everywhere, and asks for more.
"""

from dataclasses import dataclass
from typing import Final

import structlog
from django.db import transaction
from django.db.models import F, QuerySet, Sum

from gateway import actions as gateway
from gateway import envelope
from pacs_node.config import config
from pacs_node.offline.models import AccessionBlock

log = structlog.get_logger(__name__)

_EMERGENCY_LAST: Final = 99_999


@dataclass(frozen=True)
class Numbers:
    """How many reserved numbers are left, of how many in the newest block; ``highest`` is the last number of that."""

    left: int
    block: int
    highest: int

    @property
    def is_low(self) -> bool:
        """Whether a third or less of a block is left."""
        return self.left <= self.block // 3


@dataclass(frozen=True)
class Taken:
    """An accession number that is used up now."""

    number: str
    is_emergency: bool


def _reserved() -> QuerySet[AccessionBlock]:
    return AccessionBlock.objects.filter(is_emergency=False)


def numbers() -> Numbers:
    """What is left of the reserved blocks."""
    newest = _reserved().order_by("-last").first()
    if newest is None:
        return Numbers(0, 0, 0)
    left = _reserved().aggregate(left=Sum(F("last") - F("next_number") + 1))["left"] or 0
    return Numbers(left, newest.last - newest.first + 1, newest.last)


@transaction.atomic
def take_block(command: envelope.AccessionBlock) -> None:
    """Keep reserved numbers; the same block again changes nothing. The centre hears what is left now."""
    _, is_new = AccessionBlock.objects.get_or_create(
        prefix=command.prefix,
        first=command.first,
        defaults={"last": command.last, "next_number": command.first, "mark": command.mark},
    )
    if is_new:
        tell()


def tell() -> None:
    """Tell the centre how many numbers are left."""
    now = numbers()
    gateway.record_fact(envelope.AccessionState(left=now.left, highest=now.highest))


def take_number() -> Taken:
    """The next number; call it inside the transaction that uses it. The last third and the end are told."""
    block = _reserved().select_for_update().filter(next_number__lte=F("last")).order_by("first").first()
    if block is None:
        return Taken(_emergency_number(), is_emergency=True)
    number = f"{block.prefix}{block.next_number:08d}"
    block.next_number += 1
    block.save(update_fields=["next_number"])
    now = numbers()
    if now.left in (now.block // 3, 0):
        tell()
    return Taken(number, is_emergency=False)


def _emergency_number() -> str:
    newest = _reserved().order_by("-last").first()
    name = "".join(letter for letter in config().name.upper() if letter.isascii() and letter.isalnum())
    prefix = f"{newest.prefix}-E{newest.mark}-" if newest else f"{name[:4]}-E-"
    AccessionBlock.objects.get_or_create(
        prefix=prefix, first=1, defaults={"last": _EMERGENCY_LAST, "next_number": 1, "is_emergency": True}
    )
    series = AccessionBlock.objects.select_for_update().get(prefix=prefix, first=1)
    number = f"{prefix}{series.next_number:05d}"
    series.next_number += 1
    series.save(update_fields=["next_number"])
    log.warning("accession-numbers-spent", emergency_number=number)
    return number

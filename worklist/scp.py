"""Modality Worklist C-FIND over anything that knows the schedule.

Source: PS3.4 K.4.1.1.3, K.6.1.2
"""

from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from standards import charsets
from standards.matching import matches
from worklist.dataset import fitted, item_dataset
from worklist.feed import WorklistItem

GONE_STATUSES: Final = frozenset({"COMPLETED", "CANCELLED", "DISCONTINUED"})
"""Steps in these states are no longer offered to devices."""

_CHARACTER_SET: Final = 0x00080005


class ScheduleSource(Protocol):
    """Where the items come from; a source may narrow them by the query, the SCP decides."""

    def items(self, query: Dataset) -> Iterable[WorklistItem]:
        """At least every item that matches ``query``."""


def answers(query: Dataset, items: Iterable[WorklistItem], *, character_set: str) -> Iterator[Dataset]:
    """The answers to ``query`` (decoded), in ``character_set``: what was asked for, empty where it has no value.

    Raises: PermanentError "invalid-uid", "invalid-range", "unknown-character-set".
    """
    for item in items:
        if item.status.upper() in GONE_STATUSES:
            continue
        candidate = item_dataset(item)
        if matches(query, candidate):
            yield fitted(charsets.encode_dataset(_asked_for(query, candidate), character_set))


def _asked_for(query: Dataset, candidate: Dataset) -> Dataset:
    answer = Dataset()
    for key in query:
        if key.tag == _CHARACTER_SET or key.tag.element == 0:
            continue
        if key.VR != "SQ":
            answer[key.tag] = candidate[key.tag] if key.tag in candidate else DataElement(key.tag, key.VR, None)
            continue
        items = list(candidate[key.tag].value) if key.tag in candidate else []
        wanted = key.value[0] if key.value else None
        if wanted is not None and len(wanted):
            items = [_asked_for(wanted, item) for item in items]
        answer.add_new(key.tag, "SQ", items)
    return answer

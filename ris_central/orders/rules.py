"""When node and centre changed the same thing while they could not talk: whose side holds, by one table.

Nothing here wins silently: whatever a rule decides is kept as a ``ReturnDifference`` with both values and can be
decided otherwise by a person.
"""

from dataclasses import dataclass
from typing import Final

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from ris_central.orders.models import ReturnDifference, ServiceRequest

Side = ReturnDifference.Side


@dataclass(frozen=True)
class Rule:
    """Whose side holds, the sentence that people read, and whether a person must decide at once."""

    keeps: str
    sentence: str | Promise
    asks: bool = False


FIELDS: Final[dict[str, Rule]] = {
    "device": Rule(Side.NODE, _("Where it is done is decided where it is done: the node's device holds.")),
    "slot": Rule(Side.NODE, _("When it is done is decided where it is done: the node's time holds.")),
    "description": Rule(Side.CENTRE, _("What is ordered is decided by who orders: the centre's text holds.")),
    "reason": Rule(Side.CENTRE, _("What is ordered is decided by who orders: the centre's text holds.")),
    "referring_physician_name": Rule(Side.CENTRE, _("Who ordered it is known at the centre: its name holds.")),
    "priority": Rule(Side.BOTH, _("The more urgent of both holds.")),
    "patient_name": Rule(Side.CENTRE, _("Who a patient is, is decided in one place: the centre's identity holds.")),
    "patient_birth_date": Rule(
        Side.CENTRE, _("Who a patient is, is decided in one place: the centre's identity holds.")
    ),
    "patient_sex": Rule(Side.CENTRE, _("Who a patient is, is decided in one place: the centre's identity holds.")),
}
"""A field of a step that both ends changed, and differently."""

HAPPENINGS: Final[dict[str, Rule]] = {
    "cancelled-but-examined": Rule(
        Side.NODE, _("The centre cancelled it, but images were made: images are a fact, the order is open again.")
    ),
    "cancelled-but-changed": Rule(
        Side.CENTRE, _("The centre cancelled it while the node changed it, without images: it stays cancelled.")
    ),
    "changed-but-cancelled": Rule(
        Side.CENTRE, _("The node cancelled it while the centre changed it: the changed booking stays.")
    ),
    "examined-but-cancelled": Rule(Side.CENTRE, _("The node cancelled it, but it has images: it stays.")),
    "slot-taken": Rule(
        Side.NODE,
        _("The node's examination takes place: the time is its own, the centre's booking needs another one."),
        asks=True,
    ),
    "slot-shifted": Rule(
        Side.BOTH, _("Two examinations that took place share a time: the later one stands after the other.")
    ),
    "patient-alike": Rule(
        Side.NODE,
        _("A patient registered at the node may be one the centre knows: they stay two until a person decides."),
        asks=True,
    ),
    "patient-differs": Rule(
        Side.CENTRE, _("The node names the patient of this number otherwise: the centre's identity holds.")
    ),
    "patient-elsewhere": Rule(
        Side.CENTRE,
        _("The node named a patient of another site: their earlier studies open here only when a person confirms it."),
        asks=True,
    ),
    "patient-corrected": Rule(Side.NODE, _("The node corrected the patient and nobody else did: the node's holds.")),
    "patient-unknown": Rule(Side.NODE, _("Registered as an unknown patient: somebody must say who it is."), asks=True),
    "accession-twice": Rule(
        Side.CENTRE, _("The accession number was used already: the node's order got another, found by its Study UID.")
    ),
    "emergency-number": Rule(
        Side.NODE, _("The node's reserved numbers were spent: its emergency number holds, as its images bear it.")
    ),
    "device-unknown": Rule(
        Side.NODE, _("The node used a device the centre did not know: it is on file now, out of use."), asks=True
    ),
    "draft-at-both-ends": Rule(
        Side.BOTH, _("A report was begun at both ends: both texts are kept, their author joins them."), asks=True
    ),
}
"""What happened at both ends, other than a field."""

URGENCY: Final = (ServiceRequest.Priority.ROUTINE, ServiceRequest.Priority.URGENT, ServiceRequest.Priority.STAT)


@dataclass(frozen=True)
class Merged:
    """A field after both ends were looked at. ``differs``: both changed it, and not to the same."""

    value: str
    keeps: str
    differs: bool


def merge_field(field: str, before: str, node: str, centre: str) -> Merged:
    """The value of one field, from what it was, what the node made of it and what the centre has now."""
    if node in (before, centre):
        return Merged(centre, Side.CENTRE, differs=False)
    if centre == before:
        return Merged(node, Side.NODE, differs=False)
    if field == "priority":
        higher = max(node, centre, key=lambda value: URGENCY.index(ServiceRequest.Priority(value)))
        return Merged(higher, Side.NODE if higher == node else Side.CENTRE, differs=True)
    keeps = FIELDS[field].keeps
    return Merged(node if keeps == Side.NODE else centre, keeps, differs=True)


def rule_of(difference: ReturnDifference) -> Rule:
    """The row of the table by which it was decided."""
    return FIELDS[difference.field] if difference.rule == "field" else HAPPENINGS[difference.rule]

"""What a node did on its own while the centre was away, and what lets it: its reserved accession numbers."""

from typing import Literal

from pydantic import AwareDatetime, Field

from gateway.envelope.base import Wire
from worklist.feed import WorklistItem


class AccessionBlock(Wire):
    """A command: the accession numbers ``prefix`` + ``first`` … ``last`` are this node's alone.

    ``mark`` names the node within its site, for the numbers it makes itself once all blocks are spent.
    """

    type: Literal["accession.block"] = "accession.block"
    prefix: str = Field(max_length=4)
    first: int = Field(ge=1)
    last: int = Field(ge=1)
    mark: str = Field(default="", max_length=3)


class AccessionState(Wire):
    """An event: how many reserved numbers the node has left, and the last number of its newest block."""

    type: Literal["accession.state"] = "accession.state"
    left: int = Field(ge=0)
    highest: int = Field(default=0, ge=0)


class OrderRegistered(Wire):
    """An event: an examination was ordered and scheduled at the node. Patient, order and step are in ``item``.

    ``revision`` rises with every change of the step at the node; a revision that was taken is not taken again.
    """

    type: Literal["order.registered"] = "order.registered"
    item: WorklistItem
    revision: int = 1
    by: str = Field(description="the user name at the node")
    at: AwareDatetime
    unknown_patient: bool = Field(default=False, description="nobody knows yet who the patient is")
    emergency_number: bool = Field(default=False, description="the block was spent; the node made the number itself")


class OrderChanged(Wire):
    """An event: a step was changed at the node. ``base`` is the step as it was before, so that both ends can merge."""

    type: Literal["order.changed"] = "order.changed"
    item: WorklistItem
    base: WorklistItem
    revision: int
    by: str
    at: AwareDatetime


class OrderCancelled(Wire):
    """An event: a step was cancelled at the node. ``item`` is the step as it was before."""

    type: Literal["order.cancelled"] = "order.cancelled"
    item: WorklistItem
    revision: int
    by: str
    at: AwareDatetime
    reason: str = ""


class ReportDraft(Wire):
    """An event: the text of a report as somebody of the roster has it at the node. A higher ``version`` replaces it."""

    type: Literal["report.draft"] = "report.draft"
    study_instance_uid: str
    patient_id: str = ""
    author: str = Field(description="the user name at the node")
    version: int = Field(ge=1)
    findings: str = ""
    conclusion: str = ""
    saved_at: AwareDatetime

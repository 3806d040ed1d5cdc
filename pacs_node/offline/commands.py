"""What this node does when the centre reserves accession numbers or sends the schedule; and telling it of drafts."""

from gateway.envelope import AccessionBlock, Schedule
from gateway.registry import every, on_command
from pacs_node.offline import accessions, drafts, merging

_TELL_SECONDS = 5.0


def take_block(command: AccessionBlock) -> None:
    """Take reserved accession numbers."""
    accessions.take_block(command)


def take_schedule(command: Schedule) -> None:
    """Take Modality Worklist items, but not over what was changed here and the centre does not know yet."""
    merging.take_schedule(command)


def register() -> None:
    """Called once, when the app is ready."""
    on_command("accession.block", take_block)
    on_command("schedule", take_schedule)
    every(_TELL_SECONDS, drafts.tell_quiet)

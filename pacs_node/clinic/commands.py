"""What this node does when the centre sends a schedule or the AE registry."""

from gateway.envelope import Devices, Schedule
from gateway.registry import on_command
from pacs_node.clinic import actions


def apply_schedule(command: Schedule) -> None:
    """Take the new Modality Worklist items."""
    actions.apply_schedule(command.items, command.removed)


def apply_devices(command: Devices) -> None:
    """Take the new AE registry."""
    actions.apply_devices(command.devices)


def register() -> None:
    """Called once, when the app is ready."""
    on_command("schedule", apply_schedule)
    on_command("devices", apply_devices)

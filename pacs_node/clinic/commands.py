"""What this node does when the centre sends the AE registry. The schedule is taken by the app ``offline``."""

from gateway.envelope import Devices
from gateway.registry import on_command
from pacs_node.clinic import actions


def apply_devices(command: Devices) -> None:
    """Take the new AE registry."""
    actions.apply_devices(command.devices)


def register() -> None:
    """Called once, when the app is ready."""
    on_command("devices", apply_devices)

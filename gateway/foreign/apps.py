"""Django app foreign."""

from importlib import import_module

from django.apps import AppConfig

from gateway.registry import every, on_command


class ForeignConfig(AppConfig):
    """Foreign PACS: polled, listed, fetched from."""

    name = "gateway.foreign"
    label = "foreign"

    def ready(self) -> None:
        """Look after them in the gateway process (the modules need the models, which are loaded only now)."""
        loops = import_module("gateway.foreign.loops")
        every(loops.LOOK_SECONDS, loops.attendant.run)
        actions = import_module("gateway.foreign.actions")
        on_command("study.fetch", actions.apply_fetch)
        on_command("foreign.probe", actions.apply_probe)

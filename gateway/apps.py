"""Django app gateway."""

from django.apps import AppConfig

from gateway import registry


class GatewayConfig(AppConfig):
    """Studies on the move."""

    name = "gateway"

    def ready(self) -> None:
        """Take the commands that the gateway itself knows how to apply."""
        from gateway import actions  # noqa: PLC0415  models can be imported only now

        registry.on_command("directory", actions.apply_directory)
        registry.on_command("study.send", actions.apply_send_study)

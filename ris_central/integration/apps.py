"""Django app integration."""

from django.apps import AppConfig

from ris_central.reporting import listeners as reporting


class IntegrationConfig(AppConfig):
    name = "ris_central.integration"
    label = "integration"

    def ready(self) -> None:
        # The models of results are only importable once all apps are loaded.
        from ris_central.integration.results import enqueue  # noqa: PLC0415

        reporting.on_signed(enqueue)

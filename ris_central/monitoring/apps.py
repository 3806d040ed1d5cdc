"""Django app monitoring."""

from django.apps import AppConfig


class MonitoringConfig(AppConfig):
    """The state of sites and nodes, health and metrics."""

    name = "ris_central.monitoring"
    label = "monitoring"

    def ready(self) -> None:
        """Hear of peers that nodes turned away."""
        from ris_central.federation.listeners import on_event  # noqa: PLC0415  models exist only now
        from ris_central.monitoring.actions import take_association_refused  # noqa: PLC0415

        on_event("association.refused", take_association_refused)

"""Django app catalogue."""

from django.apps import AppConfig


class CatalogueConfig(AppConfig):
    name = "ris_central.catalogue"
    label = "catalogue"

    def ready(self) -> None:
        """Hear what nodes say of their images; put studies onto the patient page and open it with them."""
        from ris_central.catalogue import foreign as foreign_pages  # noqa: PLC0415
        from ris_central.catalogue import queries, views  # noqa: PLC0415  models are loaded only now
        from ris_central.catalogue.actions import arrivals, foreign, reconciling  # noqa: PLC0415
        from ris_central.federation.listeners import on_event, on_events  # noqa: PLC0415
        from ris_central.patients.listeners import add_grants, add_panel  # noqa: PLC0415

        on_events("series.changed", arrivals.take_series_changes)
        on_event("series.released", arrivals.take_series_released)
        on_event("series.held", reconciling.take_series_held)
        on_events("delivery.progress", arrivals.take_deliveries_progress)
        on_event("instance.conflicted", arrivals.take_instance_conflicted)
        add_grants(queries.patients_granted_to)
        add_panel("catalogue/_patient_panel.html", views.patient_panel, order=40)
        on_event("foreign.study", foreign.take_foreign_study)
        on_event("foreign.retrieval", foreign.take_foreign_retrieval)
        on_event("foreign.source", foreign.take_foreign_source)
        foreign_pages.register()

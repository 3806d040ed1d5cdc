"""Django app orders."""

from django.apps import AppConfig


class OrdersConfig(AppConfig):
    """Devices, orders, the day's schedule, and what nodes must know of them."""

    name = "ris_central.orders"
    label = "orders"

    def ready(self) -> None:
        """Feed nodes when they join and when people change; add orders to the patient page."""
        from ris_central.federation.listeners import on_event, on_node_joined  # noqa: PLC0415  models exist only now
        from ris_central.orders import accessions, node_feed, returns, views  # noqa: PLC0415
        from ris_central.organizations.listeners import on_people_changed  # noqa: PLC0415
        from ris_central.patients.listeners import add_panel  # noqa: PLC0415

        on_node_joined(node_feed.node_joined)
        on_node_joined(accessions.node_joined)
        on_event("accession.state", accessions.take_state)
        on_event("order.registered", returns.take_registered)
        on_event("order.changed", returns.take_changed)
        on_event("order.cancelled", returns.take_cancelled)
        on_people_changed(node_feed.people_changed)
        add_panel("orders/_patient_panel.html", views.patient_panel, order=50)

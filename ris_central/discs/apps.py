"""Django app discs."""

from django.apps import AppConfig

from ris_central.catalogue import listeners


class DiscsConfig(AppConfig):
    name = "ris_central.discs"
    label = "discs"

    def ready(self) -> None:
        """Put the form to order a disc onto the pages of studies and patients."""
        from ris_central.discs.views import patient_panel, study_panel  # noqa: PLC0415  models are loaded only now
        from ris_central.patients.listeners import add_panel  # noqa: PLC0415

        listeners.add_panel("discs/_study_panel.html", study_panel, 30)
        add_panel("discs/_patient_panel.html", patient_panel, 60)

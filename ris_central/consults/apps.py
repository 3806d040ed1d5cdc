"""Django app consults."""

from django.apps import AppConfig

from ris_central.catalogue import listeners


class ConsultsConfig(AppConfig):
    name = "ris_central.consults"
    label = "consults"

    def ready(self) -> None:
        """Hear of images, and put questions and opinions onto the study page."""
        from ris_central.consults.actions import images_changed  # noqa: PLC0415  models are loaded only now
        from ris_central.consults.views import panel_context  # noqa: PLC0415

        listeners.on_study_changed(images_changed)
        listeners.add_panel("consults/_panel.html", panel_context, 20)

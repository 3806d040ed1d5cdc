"""Django app reporting."""

from django.apps import AppConfig
from django.db.models import OuterRef, Q, Subquery
from django.utils.translation import gettext_lazy as _


class ReportingConfig(AppConfig):
    name = "ris_central.reporting"
    label = "reporting"

    def ready(self) -> None:
        """Put the report's state into the worklist and the editor onto the study page."""
        from ris_central.catalogue import listeners  # noqa: PLC0415  models are loaded only now
        from ris_central.federation.listeners import on_event  # noqa: PLC0415
        from ris_central.reporting import node_drafts  # noqa: PLC0415
        from ris_central.reporting.models import Report  # noqa: PLC0415
        from ris_central.reporting.views import panel_context  # noqa: PLC0415

        live = Report.objects.filter(study=OuterRef("pk")).exclude(status=Report.Status.CANCELLED)
        labels = dict(Report.Status.choices)
        listeners.add_worklist_column(
            "report_status", Subquery(live.values("status")[:1]), lambda status: str(labels.get(status, ""))
        )
        drafts = [Report.Status.PARTIAL, Report.Status.PRELIMINARY]
        signed = [Report.Status.FINAL, Report.Status.APPENDED]
        listeners.add_worklist_filter("unreported", _("Without report"), Q(report_status=None))
        listeners.add_worklist_filter("draft", _("Report in draft"), Q(report_status__in=drafts))
        listeners.add_worklist_filter("signed", _("Report signed"), Q(report_status__in=signed))
        listeners.add_panel("reporting/_panel.html", panel_context, 10)
        on_event("report.draft", node_drafts.take)
        listeners.on_study_changed(node_drafts.adopt_waiting)

"""Reports on the study page and in REST. Included at the root."""

from django.urls import include, path

from ris_central.accounts.api import ApiRouter
from ris_central.reporting import api, views

router = ApiRouter()
router.register("reports", api.ReportViewSet, basename="api-reports")

urlpatterns = [
    path("studies/<int:pk>/report/save", views.save, name="report_save"),
    path("studies/<int:pk>/report/sign", views.sign, name="report_sign"),
    path("studies/<int:pk>/report/node-draft/<int:draft>", views.node_draft, name="report_node_draft"),
    path("reports/<int:pk>/addendum", views.addendum, name="report_addendum"),
    path("reports/<int:pk>/report.pdf", views.pdf, name="report_pdf"),
    path("api/v1/", include(router.urls)),
]

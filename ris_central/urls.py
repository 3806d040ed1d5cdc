"""Every address of the centre."""

from django.urls import include, path
from drf_spectacular.views import SpectacularAPIView

from ris_central.accounts.api import ApiRouter, MeView
from ris_central.accounts.views import bad_request, not_found, permission_denied, server_error
from ris_central.audit.api import AuditEventViewSet
from ris_central.monitoring.metrics import metrics
from ris_central.monitoring.views import healthz
from ris_central.orders.api import DeviceViewSet, OrderViewSet
from ris_central.organizations.api import SiteViewSet
from ris_central.patients.api import PatientViewSet

router = ApiRouter()
router.register("sites", SiteViewSet, basename="api-sites")
router.register("patients", PatientViewSet, basename="api-patients")
router.register("devices", DeviceViewSet, basename="api-devices")
router.register("orders", OrderViewSet, basename="api-orders")
router.register("audit-events", AuditEventViewSet, basename="api-audit")

urlpatterns = [
    path("healthz", healthz, name="healthz"),
    path("metrics", metrics, name="metrics"),
    path("federation/v1/", include("ris_central.federation.urls")),
    path("api/schema/", SpectacularAPIView.as_view(), name="api-schema"),
    path("api/v1/me", MeView.as_view(), name="api-me"),
    path("api/v1/", include(router.urls)),
    path("", include("ris_central.accounts.urls")),
    path("people/", include("ris_central.organizations.urls")),
    path("patients/", include("ris_central.patients.urls")),
    path("schedule/", include("ris_central.orders.urls")),
    path("sites/", include("ris_central.monitoring.urls")),
    path("audit/", include("ris_central.audit.urls")),
    path("hl7/", include("ris_central.integration.urls")),
    path("", include("ris_central.catalogue.urls")),
    path("", include("ris_central.reporting.urls")),
    path("", include("ris_central.consults.urls")),
    path("", include("ris_central.discs.urls")),
]

handler400, handler403, handler404, handler500 = bad_request, permission_denied, not_found, server_error

"""Discs: desk, orders, downloads, REST. Included at the root."""

from django.urls import include, path

from ris_central.accounts.api import ApiRouter
from ris_central.discs import api, views

router = ApiRouter()
router.register("discs", api.DiscJobViewSet, basename="api-discs")

urlpatterns = [
    path("discs/", views.desk, name="discs"),
    path("discs/order", views.order, name="disc_order"),
    path("discs/<int:pk>/cancel", views.cancel, name="disc_cancel"),
    path("discs/<int:pk>/retry", views.retry, name="disc_retry"),
    path("discs/<int:pk>/disc.iso", views.download, name="disc_download"),
    path("api/v1/", include(router.urls)),
]

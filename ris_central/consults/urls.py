"""Consults: desk, one consult, REST. Included at the root."""

from django.urls import include, path

from ris_central.accounts.api import ApiRouter
from ris_central.consults import api, views

router = ApiRouter()
router.register("consults", api.ConsultViewSet, basename="api-consults")

urlpatterns = [
    path("studies/<int:pk>/consult", views.ask, name="consult_ask"),
    path("consults/", views.desk, name="consults"),
    path("consults/<int:pk>/", views.consult, name="consult"),
    path("consults/<int:pk>/take", views.take, name="consult_take"),
    path("consults/<int:pk>/return", views.give_back, name="consult_return"),
    path("consults/<int:pk>/reject", views.reject, name="consult_reject"),
    path("consults/<int:pk>/cancel", views.cancel, name="consult_cancel"),
    path("consults/<int:pk>/save", views.save, name="consult_save"),
    path("consults/<int:pk>/conclude", views.conclude, name="consult_conclude"),
    path("consults/<int:pk>/opinion.pdf", views.pdf, name="consult_pdf"),
    path("api/v1/", include(router.urls)),
]

"""The audit trail."""

from django.urls import path

from ris_central.audit import views

urlpatterns = [
    path("", views.audit, name="audit"),
    path("verify/", views.verify, name="audit_verify"),
]

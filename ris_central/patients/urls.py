"""Patients."""

from django.urls import path

from ris_central.patients import views

urlpatterns = [
    path("", views.patients, name="patients"),
    path("new/", views.patient_new, name="patient_new"),
    path("<int:pk>/", views.patient, name="patient"),
    path("<int:pk>/edit/", views.patient_edit, name="patient_edit"),
]

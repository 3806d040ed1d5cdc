"""Schedule, booking, devices."""

from django.urls import path

from ris_central.orders import views

urlpatterns = [
    path("", views.schedule, name="schedule"),
    path("book/", views.book, name="book"),
    path("patients/", views.patient_choice, name="patient_choice"),
    path("steps/<int:pk>/", views.step, name="step"),
    path("returned/", views.returned, name="returned"),
    path("returned/<int:pk>/decide/", views.returned_decide, name="returned_decide"),
    path("devices/", views.devices, name="devices"),
    path("devices/new/", views.device_new, name="device_new"),
    path("devices/<int:pk>/", views.device, name="device"),
]

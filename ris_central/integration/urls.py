"""Pages of the HL7 traffic."""

from django.urls import path

from ris_central.integration import views

urlpatterns = [
    path("", views.traffic, name="hl7"),
    path("receivers/new/", views.receiver, name="hl7_receiver_new"),
    path("receivers/<int:pk>/", views.receiver, name="hl7_receiver"),
    path("outgoing/<int:pk>/send/", views.send_now, name="hl7_send_now"),
]

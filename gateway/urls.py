"""URLs of the gateway, mounted at ``/gateway/v1/`` of every node."""

from django.urls import path

from gateway import views

app_name = "gateway"
urlpatterns = [
    path("wire", views.wire, name="wire"),
    path("instances/<str:sop_instance_uid>", views.instance, name="instance"),
    path("uploads/<str:sop_instance_uid>", views.upload, name="upload"),
    path("uploads/<str:sop_instance_uid>/<int:index>", views.chunk, name="chunk"),
]

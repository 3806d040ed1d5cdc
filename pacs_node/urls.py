"""Addresses of a node."""

from django.urls import include, path
from django.views.i18n import set_language

from pacs_node.dicomweb.wado_uri import wado_uri

urlpatterns = [
    path("gateway/v1/", include("gateway.urls")),
    path("", include("pacs_node.clinic.urls")),
    path("", include("pacs_node.offline.urls")),
    path("", include("pacs_node.dicomweb.viewer_urls")),
    path("dicom-web/", include("pacs_node.dicomweb.urls")),
    path("wado", wado_uri),
    path("i18n/setlang/", set_language, name="set_language"),
]

"""The viewer's addresses."""

from django.urls import path
from django.views.generic import RedirectView

from pacs_node.dicomweb import viewer

urlpatterns = [
    path("viewer", RedirectView.as_view(url="/viewer/")),
    path("viewer/", viewer.viewer, name="viewer"),
    path("viewer/app-config.js", viewer.app_config),
    path("viewer/<path:name>", viewer.viewer),
]

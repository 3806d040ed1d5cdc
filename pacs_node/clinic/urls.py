"""Pages of the node."""

from django.urls import path

from pacs_node.clinic import views
from pacs_node.dimse.views import proxy_page
from pacs_node.storage.views import storage_page

urlpatterns = [
    path("", views.studies, name="studies"),
    path("login/", views.login_page, name="login"),
    path("logout/", views.logout_page, name="logout"),
    path("state/", views.state, name="state"),
    path("storage/", storage_page, name="storage"),
    path("proxy/", proxy_page, name="proxy"),
    path("devices/", views.devices, name="devices"),
    path("devices/<int:key>/", views.device, name="device"),
    path("refused/", views.refused, name="refused"),
    path("refused/<int:refusal>/admit/", views.admit, name="admit"),
    path("worklist/", views.worklist, name="worklist"),
    path("audit/", views.audit_trail, name="audit"),
    path("healthz", views.healthz, name="healthz"),
    path("metrics", views.metrics, name="metrics"),
]
